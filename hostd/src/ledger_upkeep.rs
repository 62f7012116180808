//! The ledger's upkeep, in a thread of its own with low priority: days that are over are compacted, what is too old is removed with its
//! proof, and a disk that fills is relieved of what the object store has.
//!
//! Nothing here may stop the recording: every failure is told, counted and left for the next pass.

use std::{
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use nix::sys::statvfs::statvfs;
use vestigo_ledger::{
    LedgerError, Signer, Signers,
    compact::{self, CompactError, CompactOptions},
    retention::{
        plan::{self, Limits, RetentionError},
        pressure::{self, Pressure, Space, Thresholds},
        tombstone::Undertaker,
        turn::{self, TurnError},
    },
    sign::TOMBSTONE_NAMESPACE,
};
use vestigo_model::{Clock, HostId, SystemClock, Timestamp};

use crate::recorder::{Recorder, chain};

/// How often the disk is looked at.
const TICK: Duration = Duration::from_secs(10);
/// How often the rest is done.
const PASS: Duration = Duration::from_secs(600);
const DAY: Duration = Duration::from_secs(86_400);

/// What the thread needs.
#[derive(Debug, Clone)]
pub struct UpkeepOptions {
    /// The ledger.
    pub root: PathBuf,
    /// Whose.
    pub host: HostId,
    /// The host's key.
    pub signer: Arc<Signer>,
    /// For how long records are kept.
    pub limits: Limits,
    /// Whether days that are over are compacted.
    pub compact: bool,
    /// How full the disk may be.
    pub thresholds: Thresholds,
    /// Where quarantine writes what it has shipped.
    pub shipped: PathBuf,
    /// The last record of an earlier life: a clock that is far from it is not believed at once.
    pub last_recorded: Option<Timestamp>,
}

/// What stops a pass.
#[derive(Debug, thiserror::Error)]
enum UpkeepError {
    #[error(transparent)]
    Compact(#[from] CompactError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Retention(#[from] RetentionError),
    #[error(transparent)]
    Signers(#[from] vestigo_ledger::sign::signers::SignersError),
    #[error("the ledger's thread has ended")]
    Ended,
}

#[derive(Debug, Default)]
struct Totals {
    compacted: AtomicU64,
    expired: AtomicU64,
    evicted: AtomicU64,
    freed: AtomicU64,
    alarms: AtomicU64,
    failures: AtomicU64,
}

/// A handle to the thread's numbers.
#[derive(Debug, Clone, Default)]
pub struct Upkeep {
    totals: Arc<Totals>,
}

impl Upkeep {
    /// Starts the thread. It ends with the process: a crash at any of its steps loses nothing.
    ///
    /// # Errors
    /// No thread.
    pub fn start(options: UpkeepOptions, recorder: Recorder) -> io::Result<Self> {
        let upkeep = Self::default();
        let keeper = Keeper {
            begun: (SystemClock.now(), Instant::now()),
            options,
            recorder,
            totals: Arc::clone(&upkeep.totals),
            pressed: false,
            distrusted: false,
        };
        std::thread::Builder::new().name("ledger-upkeep".into()).spawn(move || keeper.run())?;
        Ok(upkeep)
    }

    /// Segments compacted, expired and moved out; bytes that came free; alarms of a full disk; passes that failed.
    #[must_use]
    pub fn counters(&self) -> [(&'static str, u64); 6] {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let Totals { compacted, expired, evicted, freed, alarms, failures } = self.totals.as_ref();
        [
            ("compacted_segments", of(compacted)),
            ("expired_segments", of(expired)),
            ("evicted_segments", of(evicted)),
            ("freed_bytes", of(freed)),
            ("space_alarms", of(alarms)),
            ("failures", of(failures)),
        ]
    }
}

struct Keeper {
    options: UpkeepOptions,
    recorder: Recorder,
    totals: Arc<Totals>,
    begun: (Timestamp, Instant),
    /// Whether an alarm has been told.
    pressed: bool,
    distrusted: bool,
}

impl Keeper {
    fn run(mut self) {
        let mut next = Instant::now() + TICK;
        loop {
            std::thread::sleep(TICK);
            self.relieve();
            if Instant::now() >= next {
                next = Instant::now() + PASS;
                self.pass();
            }
        }
    }

    /// One's turn, or `None`: an administrator is at it, and the next tick sees.
    fn turn(&self) -> Option<File> {
        match turn::take(&self.options.root) {
            Ok(turn) => Some(turn),
            Err(TurnError::Busy { .. }) => None,
            Err(TurnError::Io(error)) => {
                self.failed("take the upkeep's lock", &error);
                None
            }
        }
    }

    fn pass(&mut self) {
        let Some(_turn) = self.turn() else { return };
        if self.options.compact
            && let Err(error) = self.compact()
        {
            self.failed("compact the ledger", &error);
        }
        if let Err(error) = self.expire() {
            self.failed("remove what is too old", &error);
        }
    }

    fn compact(&self) -> Result<(), UpkeepError> {
        let UpkeepOptions { root, host, .. } = &self.options;
        self.freed(compact::tidy(root, host)?);
        for plan in compact::plan(root, host, CompactOptions::default(), SystemClock.now())? {
            let segments = plan.segments.len();
            // One day that cannot be compacted must not keep the others.
            match plan.prepare() {
                Ok(prepared) => self.adopt(prepared)?,
                Err(error) => {
                    self.failed("compact a day of the ledger", &error);
                    continue;
                }
            }
            add(&self.totals.compacted, u64::try_from(segments).unwrap_or(u64::MAX));
            tracing::info!(folder = %plan.folder.display(), segments, "a day of the ledger was compacted");
        }
        self.freed(compact::tidy(root, host)?);
        Ok(())
    }

    /// The chain has one owner: the ledger's thread.
    fn adopt(&self, prepared: compact::Prepared) -> Result<(), UpkeepError> {
        let (tell, told) = mpsc::sync_channel(1);
        self.recorder.with_writer(move |writer| {
            // Whoever asked has gone only if its thread has.
            let _ = tell.send(writer.adopt(&prepared, SystemClock.now()).map(drop));
        });
        Ok(told.recv().map_err(|_| UpkeepError::Ended)??)
    }

    fn expire(&mut self) -> Result<(), UpkeepError> {
        let now = SystemClock.now();
        let uptime = self.begun.1.elapsed();
        let trusted = is_trusted(self.begun.0, uptime, self.options.last_recorded, now);
        if !trusted {
            if !std::mem::replace(&mut self.distrusted, true) {
                tracing::error!(%now, "the clock is far from the ledger's last record or has jumped: nothing is removed by its age for a day; set the clock, or wait");
            }
            return Ok(());
        }
        self.distrusted = false;
        let UpkeepOptions { root, host, signer, limits, .. } = &self.options;
        let own = Signers::parse(
            root,
            format!("{host} namespaces=\"{TOMBSTONE_NAMESPACE}\" {}\n", signer.public()).as_bytes(),
        )?;
        self.freed(plan::finish(root, Some(host), &|found| found.is_signed(&own))?);
        let plan = plan::plan(root, Some(host), *limits, limits.maximum, now)?;
        let undertaker = Undertaker { signer, principal: None, now };
        let (segments, bytes) = plan::apply(&plan, &undertaker).map_err(RetentionError::from)?;
        if segments > 0 {
            tracing::info!(segments, bytes, days = limits.maximum, "records older than the maximum were removed");
        }
        add(&self.totals.expired, segments);
        self.freed(bytes);
        Ok(())
    }

    fn relieve(&mut self) {
        let space = match space(&self.options.root) {
            Ok(space) => space,
            Err(error) => return self.failed("look at the ledger's disk", &error),
        };
        let pressure = pressure::judge(space, self.options.thresholds);
        self.alarm(pressure, space);
        let Pressure::Evict(needed) = pressure else { return };
        let Some(_turn) = self.turn() else { return };
        let UpkeepOptions { root, host, signer, shipped, .. } = &self.options;
        let undertaker = Undertaker { signer, principal: None, now: SystemClock.now() };
        match pressure::relieve(root, host, shipped, needed, &undertaker) {
            Ok(relief) => {
                if relief.segments > 0 {
                    tracing::warn!(
                        segments = relief.segments,
                        bytes = relief.bytes,
                        "the disk is nearly full: files that the object store has were removed"
                    );
                }
                add(&self.totals.evicted, relief.segments);
                self.freed(relief.bytes);
            }
            Err(error) => self.failed("make room on the ledger's disk", &error),
        }
    }

    fn alarm(&mut self, pressure: Pressure, space: Space) {
        let pressed = pressure != Pressure::Fine;
        if pressed && !self.pressed {
            add(&self.totals.alarms, 1);
            let (free, total) = (space.free, space.total);
            tracing::error!(
                free,
                total,
                "the ledger's disk fills up; what was not shipped is never removed: make room, or let quarantine ship"
            );
        } else if !pressed && self.pressed {
            tracing::info!(free = space.free, "the ledger's disk has room again");
        }
        self.pressed = pressed;
    }

    fn failed(&self, what: &str, error: &dyn std::error::Error) {
        add(&self.totals.failures, 1);
        tracing::error!(error = %chain(error), "cannot {what}");
    }

    fn freed(&self, bytes: u64) {
        add(&self.totals.freed, bytes);
    }
}

fn add(total: &AtomicU64, number: u64) {
    total.fetch_add(number, Ordering::Relaxed);
}

fn space(root: &std::path::Path) -> Result<Space, nix::Error> {
    let stat = statvfs(root)?;
    Ok(Space { total: stat.blocks() * stat.fragment_size(), free: stat.blocks_available() * stat.fragment_size() })
}

/// Whether the clock may decide what is too old. One that has jumped while hostd ran is not, and one that is more than a week from the
/// last record is only after a day: time for somebody to see the alarm.
fn is_trusted(begun: Timestamp, uptime: Duration, last: Option<Timestamp>, now: Timestamp) -> bool {
    let expected = begun + uptime;
    let apart = |a: Timestamp, b: Timestamp| a.since(b).max(b.since(a));
    let steady = apart(now, expected) <= DAY;
    let near = last.is_none_or(|last| apart(begun, last) <= 7 * DAY);
    steady && (near || uptime >= DAY)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_clock_that_jumped_removes_nothing() {
        let at = |days: u64| Timestamp::from_nanos(0) + DAY * u32::try_from(days).unwrap();
        let hour = Duration::from_secs(3600);
        assert!(is_trusted(at(100), hour, Some(at(99)), at(100) + hour));
        assert!(is_trusted(at(100), hour, None, at(100) + hour), "a new ledger holds nothing old");
        assert!(!is_trusted(at(100), hour, Some(at(99)), at(465)), "a year forward while hostd ran");
        assert!(!is_trusted(at(465), hour, Some(at(99)), at(465) + hour), "a year forward before it began");
        assert!(!is_trusted(at(10), hour, Some(at(99)), at(10) + hour), "backward");
        assert!(is_trusted(at(465), DAY, Some(at(99)), at(466)), "a host that was off for a year, after a day");
    }

    #[test]
    fn the_disk_says_how_full_it_is() {
        let space = space(std::path::Path::new("/")).unwrap();
        assert!(space.total > 0 && space.free <= space.total);
    }
}
