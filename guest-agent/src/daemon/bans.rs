//! What a ban does in this VM: everything that it hits is frozen, then killed, and the hypervisor is told when nothing of it
//! is left (or what is).

use std::{
    fs, io,
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

use tracing::{error, info, warn};
use vestigo_model::{Ban, BanApplied, Clock, PayloadClaim, SystemClock, Timestamp, link::Claim};

use super::{
    live::Hit,
    state::{Shared, State},
};
use crate::suspend::Bans;

/// How long what a ban hit gets to be gone. What is stuck in the kernel for longer is reported as left, and cut off.
const PATIENCE: Duration = Duration::from_secs(5);

/// Obeys the hypervisor until the link ends. Runs in a thread of its own.
pub(super) fn obey(state: &Shared, lists: &Receiver<Vec<Ban>>) {
    for list in lists {
        let received = SystemClock.now();
        let fresh = state.live.replace_bans(list);
        keep(state);
        for ban in fresh {
            let applied = apply(state, &ban, received);
            info!(ban = %ban.id, payloads = applied.payloads, left = applied.left, "ban in force");
            match state.link.record(Claim::BanApplied(applied)).made() {
                Ok(_) => state.live.told(&ban.id),
                Err(error) => error!(ban = %ban.id, %error, "that a ban is in force cannot be told"),
            }
        }
        keep(state);
    }
}

/// Freeze first, all of it, so that nothing can run away or hide while the rest is killed.
fn apply(state: &State, ban: &Ban, received: Timestamp) -> BanApplied {
    let hits = state.live.hit(ban, received);
    for tree in hits.iter().filter_map(|hit| hit.tree.as_ref()) {
        if let Err(error) = tree.freeze() {
            warn!(ban = %ban.id, %error, "a payload cannot be frozen; it is killed running");
        }
    }
    let frozen = SystemClock.now();
    let processes = count(&hits);
    let until = Instant::now() + PATIENCE;
    for Hit { killer, tree, .. } in &hits {
        killer.kill();
        if let Some(Err(error)) = tree.as_ref().map(|tree| tree.kill_by(until)) {
            warn!(ban = %ban.id, %error, "a payload's processes cannot be killed");
        }
    }
    let mut left = 0;
    for hit in &hits {
        let alone = hit.killer.dead_within(until.saturating_duration_since(Instant::now()));
        let empty = hit.tree.as_ref().is_none_or(|tree| tree.wait_empty(until));
        if !(alone && empty) {
            left += count(std::slice::from_ref(hit)).max(1);
            state.networks().remove(&hit.line);
        }
    }
    BanApplied {
        id: ban.id.clone(),
        payloads: u32::try_from(hits.len()).unwrap_or(u32::MAX),
        processes,
        left,
        received,
        frozen,
        dead: SystemClock.now(),
    }
}

fn count(hits: &[Hit]) -> u32 {
    let of = |hit: &Hit| hit.tree.as_ref().and_then(|tree| tree.processes().ok()).map_or(0, |pids| pids.len());
    u32::try_from(hits.iter().map(of).sum::<usize>()).unwrap_or(u32::MAX)
}

/// The list outlives the agent within one boot: in open mode payloads start without the hypervisor's word.
fn keep(state: &State) {
    let (path, fresh) = (state.config.state_dir.join("bans.json"), state.config.state_dir.join("bans.new"));
    let text = serde_json::to_vec(&state.live.bans()).map_err(io::Error::other);
    let kept = text.and_then(|text| fs::write(&fresh, text)).and_then(|()| fs::rename(&fresh, path));
    if let Err(error) = kept {
        warn!(%error, "the bans cannot be written down; a restart of the agent would have to hear them again");
    }
}

/// What an earlier agent of this boot was told.
///
/// # Errors
/// The file is there and cannot be read.
pub(super) fn kept(folder: &std::path::Path) -> io::Result<Bans> {
    match fs::read(folder.join("bans.json")) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Bans::default()),
        Err(error) => Err(error),
    }
}

/// Why this payload must not start, for its pilot. From now on a ban that comes finds it in the list.
pub(super) fn refusal(state: &State, claim: &PayloadClaim) -> Option<String> {
    let ban = state.live.judge(claim, SystemClock.now())?;
    Some(format!("refused by the hypervisor's ban {}: {}", ban.id, ban.reason))
}
