//! Where it is switched on: the connections of payloads, told to the hypervisor one by one.

use std::{io, os::fd::OwnedFd, time::Duration};

use nix::unistd::Pid;
use vestigo_model::{Label, PayloadUid, link::Claim};

use super::{live::Hit, state::Shared};
use crate::detail::{Detail, Payload, Seen};

/// What waits for the hypervisor beyond this is told no more: detail must not take the room of payloads' starts.
const SPOOL_SHARE: usize = 4;

struct Watched(PayloadUid, Hit);

impl Payload for Watched {
    fn uid(&self) -> PayloadUid {
        self.0
    }

    fn namespace(&self) -> io::Result<OwnedFd> {
        self.1.namespace.as_ref().ok_or(io::ErrorKind::NotFound)?.try_clone()
    }

    fn processes(&self) -> Vec<Pid> {
        self.1.tree.as_ref().and_then(|tree| tree.processes().ok()).unwrap_or_default()
    }
}

/// Watches until the daemon ends. Runs in a thread of its own.
pub(super) fn run(state: &Shared, every: Duration) {
    let live = || Some(state.live.reaches().into_iter().map(|(uid, hit)| Watched(uid, hit)).collect());
    let record = |seen: Seen| {
        if state.link.status().spooled > state.config.spool_bytes / SPOOL_SHARE {
            return;
        }
        let claim = match seen {
            Seen::Connection(connection) => Claim::Connection(connection),
            Seen::Missed(uid, counters) => Claim::Alarm { what: Label::cut(&format!("payload {uid}: {counters}")) },
        };
        let _ = state.link.record(claim).made();
    };
    Detail::default().run(every, live, record);
}
