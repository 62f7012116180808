//! What an agent saw of one connection of a payload: detail for the curious, never what attribution rests on.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::PayloadUid;

/// A connection and the process that holds it, in numbers of the payload's own namespaces. Sampled: a short one may be
/// missed, and a process can hand its socket to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Whose.
    pub payload: PayloadUid,
    /// IP protocol: 6 or 17.
    pub proto: u8,
    /// The payload's end, before source NAT.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// Process, its parent, its session.
    pub pid: (i32, i32, i32),
    /// Real and effective user.
    pub uid: (u32, u32),
    /// Real and effective group.
    pub gid: (u32, u32),
    /// Device number of its terminal; 0: none.
    pub tty: u32,
    /// Path of its program, cut to 256 bytes.
    pub executable: String,
}
