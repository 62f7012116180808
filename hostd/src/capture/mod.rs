//! Frames off a tap, behind one trait, and the thread that meters them.
//!
//! ```text
//! kernel ─► ring or queue ─► FrameSource ─► Meter ─► queue of the tap ─► service, in turn with all other taps
//!             `dropped`                     `folded`    waits for room
//! ```
//! Nothing on this way is shared by two taps: a VM can fill only what is its own.
//!
//! Two backends. [`RingSource`] reads whole blocks out of memory that the kernel fills (docs/decisions/0045). [`PnetSource`] is the
//! portable one, frame by frame (docs/decisions/0003).

pub mod block;
pub mod budget;
pub mod filter;
pub mod links;
mod open;
mod pnet;
mod queue;
mod ring;
mod socket;
mod tap;

use std::io;

use vestigo_model::TapName;

use crate::meter::Frame;

pub use self::{
    block::Batch,
    open::{Backend, Capture},
    pnet::PnetSource,
    queue::{Observed, TapQueues, TapSender, Tapped, Turn},
    ring::RingSource,
    socket::{Link, PacketSocket, Statistics},
    tap::{Report, TapCapture},
};

/// Where frames come from: what differs between the backends. Counting, waiting and ending are the socket's.
pub trait FrameSource: Send {
    /// The socket: to wait for frames, to ask what was lost, and what has become of the interface.
    fn socket(&self) -> &PacketSocket;

    /// Hands over some of the frames that wait, in the order in which they came; never waits itself. `None` when none is there.
    ///
    /// # Errors
    /// The interface is down or gone ([`PacketSocket::link`] tells which).
    fn take(&mut self, visit: &mut dyn FnMut(&Frame<'_>)) -> io::Result<Option<Batch>>;
}

/// Why a tap is not captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// No such interface in this network namespace.
    #[error("interface {0} does not exist (any more)")]
    NoInterface(TapName),
    /// The socket could not be opened or bound.
    #[error("cannot capture on {tap}; hostd needs CAP_NET_RAW, and memory for the ring")]
    Open {
        /// Which.
        tap: TapName,
        /// Why.
        source: io::Error,
    },
    /// No thread for it.
    #[error("cannot start the capture thread of {tap}")]
    Thread {
        /// Which.
        tap: TapName,
        /// Why.
        source: io::Error,
    },
}
