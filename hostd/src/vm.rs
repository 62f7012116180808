//! One running VM as hostd holds it: its record, its taps' captures, its agent's link.

use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::Sender;
use vestigo_model::{BootId, Coverage, CoverageState, Instance, LinkPosition, Tap, TapName, Timestamp};

use crate::{
    attribute::AgentState,
    capture::{CaptureError, Observed, PnetSource, Report, TapCapture, Tapped},
    guestlink::{BanList, LinkHandle},
    meter::MeterOptions,
    quota::{Pace, Quota},
    recorder::chain,
    tally::{Tally, TapTally},
    witness::{Marking, TapWitness, WitnessCounts},
};

/// What one VM can make hostd write beside its payloads: rates that no honest agent comes near.
#[derive(Debug)]
pub struct Limits {
    /// Connections seen by its agent.
    pub connections: Quota,
    /// Every other statement that is no payload: refusals, alarms, effects of bans, faults.
    pub statements: Quota,
    /// Flows outside of every lease.
    pub contradictions: Pace,
    /// The last of these.
    pub last_contradiction: Option<String>,
    /// Flows from addresses that the VM was not given.
    pub spoofed: Pace,
    /// The last of these.
    pub last_spoofed: Option<String>,
    /// Flows that the VM marks as another VO's.
    pub mismarked: Pace,
    /// The last of these.
    pub last_mismarked: Option<String>,
    /// Where its chain stands when the last statement of it was left out.
    pub unkept: Option<LinkPosition>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: Quota::new(10.0, 1000.0),
            statements: Quota::new(5.0, 500.0),
            contradictions: Pace::default(),
            last_contradiction: None,
            spoofed: Pace::default(),
            last_spoofed: None,
            mismarked: Pace::default(),
            last_mismarked: None,
            unkept: None,
        }
    }
}

/// A VM.
pub struct Vm {
    /// Its record, as last written.
    pub instance: Instance,
    /// Its agent's channel.
    pub channel: Option<(PathBuf, LinkHandle)>,
    /// The guest's boot, once its agent has said so.
    pub boot: Option<BootId>,
    /// What it may still say, and what of its flows has been told.
    pub limits: Limits,
    /// The bans that its agent was told last.
    pub told_bans: BanList,
    /// Since when its flows are seen.
    pub watched: Timestamp,
    /// Its numbers.
    pub tally: Tally,
    /// Whether it marks its packets by flow label.
    pub marking: Marking,
    heard: Option<Timestamp>,
    taps: HashMap<TapName, TapCapture>,
    witnesses: HashMap<TapName, TapWitness>,
    /// What the captures reported since the last statement of coverage.
    reports: HashMap<TapName, Report>,
    tap_tallies: HashMap<TapName, TapTally>,
    polled: Instant,
    failures: HashMap<TapName, String>,
    channel_fault: Option<String>,
    covered_to: Timestamp,
}

impl Vm {
    /// A VM with nothing open yet. Coverage is stated from `now` on.
    #[must_use]
    pub fn new(instance: Instance, now: Timestamp) -> Self {
        Self {
            instance,
            channel: None,
            boot: None,
            limits: Limits::default(),
            told_bans: BanList::default(),
            watched: now,
            tally: Tally::default(),
            marking: Marking::default(),
            heard: None,
            taps: HashMap::new(),
            witnesses: HashMap::new(),
            reports: HashMap::new(),
            tap_tallies: HashMap::new(),
            polled: Instant::now(),
            failures: HashMap::new(),
            channel_fault: None,
            covered_to: now,
        }
    }

    /// Whether the record has to be written again, with the times of the one that is held.
    #[must_use]
    pub fn differs(&self, seen: &Instance) -> bool {
        let aligned = Instance { start: self.instance.start, end: self.instance.end, ..seen.clone() };
        aligned != self.instance
    }

    /// Opens a capture on each tap that can be seen and has none.
    pub fn watch_taps(&mut self, options: MeterOptions, queue: &Sender<Tapped>) {
        let instance = &self.instance;
        for tap in instance.taps.iter().filter(|tap| tap.not_capturable.is_none()) {
            if self.taps.contains_key(&tap.name) {
                continue;
            }
            let observed = Observed {
                host: instance.host.clone(),
                domain: instance.domain,
                instance: instance.id.clone(),
                vo: instance.vo.clone(),
                tap: tap.clone(),
                witness: self.witness_of(tap),
            };
            let witness = observed.witness.clone();
            match open(observed, options, queue) {
                Ok(capture) => {
                    self.failures.remove(&tap.name);
                    self.taps.insert(tap.name.clone(), capture);
                    self.witnesses.insert(tap.name.clone(), witness);
                }
                Err(error) => {
                    let why = chain(&error);
                    if self.failures.insert(tap.name.clone(), why.clone()).as_ref() != Some(&why) {
                        tracing::error!(domain = %instance.domain, tap = %tap.name, error = why, "a tap is not captured");
                    }
                }
            }
        }
    }

    /// Whether this very fault has been reported; notes it if not.
    pub fn complained_of_channel(&mut self, why: &str) -> bool {
        self.channel_fault.replace(why.to_owned()).as_deref() == Some(why)
    }

    /// The agent spoke.
    pub fn heard(&mut self, now: Timestamp) {
        self.heard = Some(now);
    }

    /// What is known of the agent.
    #[must_use]
    pub fn agent(&self, now: Timestamp, silent_after: Duration) -> AgentState {
        match self.heard {
            None => AgentState::Absent,
            Some(heard) if now.since(heard) > silent_after => AgentState::Silent,
            Some(_) => AgentState::Present,
        }
    }

    /// The same as before, where the tap was captured before.
    fn witness_of(&self, tap: &Tap) -> TapWitness {
        let known = self.witnesses.get(&tap.name).filter(|witness| witness.mac() == tap.mac);
        known.cloned().unwrap_or_else(|| TapWitness::new(tap.mac, tap.learnt.clone()))
    }

    /// Takes over what is known of the taps' addresses from the record that this one replaces: libvirt does not know them.
    pub fn keep_learnt(seen: &mut Instance, known: &Instance) {
        for tap in &mut seen.taps {
            let same = known.taps.iter().find(|of| of.name == tap.name && of.mac == tap.mac);
            tap.learnt = same.map(|of| of.learnt.clone()).unwrap_or_default();
        }
    }

    /// Writes into the record which addresses were learnt on its taps. Whether that is news.
    pub fn note_learnt(&mut self) -> bool {
        let mut news = false;
        for tap in &mut self.instance.taps {
            let Some(witness) = self.witnesses.get(&tap.name) else { continue };
            let memory = witness.memory();
            if memory.learnt() != tap.learnt {
                tap.learnt = memory.learnt().to_vec();
                news = true;
            }
        }
        news
    }

    /// Asks the captures what they have counted.
    pub fn poll(&mut self) {
        let seconds = std::mem::replace(&mut self.polled, Instant::now()).elapsed().as_secs_f64();
        for (name, capture) in &self.taps {
            let report = capture.take_report();
            self.reports.entry(name.clone()).or_default().add(&report);
            self.tap_tallies.entry(name.clone()).or_default().add(&report, seconds);
        }
    }

    /// What was counted on a tap, and learnt there.
    #[must_use]
    pub fn tap(&self, name: &TapName) -> (TapTally, Option<WitnessCounts>, Option<String>) {
        let tally = self.tap_tallies.get(name).cloned().unwrap_or_default();
        let witness = self.witnesses.get(name).map(|witness| witness.memory().counts());
        (tally, witness, self.failures.get(name).cloned())
    }

    /// States what could be seen since the last statement.
    pub fn coverage(&mut self, now: Timestamp, silent_after: Duration) -> Vec<Coverage> {
        self.poll();
        let reports = std::mem::take(&mut self.reports);
        // A tap that went away is captured anew when it is back; not before its last report is in.
        self.taps.retain(|_, capture| !capture.ended());
        self.state(&reports, now, silent_after)
    }

    /// Ends every capture and gives the last statement. Blocks for about a tenth of a second a tap.
    pub fn close(&mut self, now: Timestamp, silent_after: Duration) -> Vec<Coverage> {
        self.channel = None;
        for (name, capture) in self.taps.drain() {
            self.reports.entry(name).or_default().add(&capture.stop());
        }
        let reports = std::mem::take(&mut self.reports);
        self.state(&reports, now, silent_after)
    }

    fn state(&mut self, reports: &HashMap<TapName, Report>, now: Timestamp, silent_after: Duration) -> Vec<Coverage> {
        let from = std::mem::replace(&mut self.covered_to, now).min(now);
        let mut states: Vec<(Option<TapName>, CoverageState)> = Vec::new();
        for tap in &self.instance.taps {
            let why = tap.not_capturable.as_ref().or_else(|| self.failures.get(&tap.name));
            match (reports.get(&tap.name), why) {
                (_, Some(why)) => {
                    states.push((Some(tap.name.clone()), CoverageState::NotCapturable { why: why.clone() }));
                }
                (Some(report), None) => {
                    states.extend(seen(report).into_iter().map(|state| (Some(tap.name.clone()), state)));
                }
                (None, None) => states.push((Some(tap.name.clone()), lost(None, "no-capture"))),
            }
        }
        match self.agent(now, silent_after) {
            AgentState::Absent => states.push((None, CoverageState::AgentAbsent)),
            AgentState::Silent => states.push((None, CoverageState::AgentSilent)),
            AgentState::Present => {}
        }
        let (host, domain) = (&self.instance.host, Some(self.instance.domain));
        states
            .into_iter()
            .map(|(tap, state)| Coverage { host: host.clone(), domain, tap, from, to: now, state })
            .collect()
    }
}

fn open(observed: Observed, options: MeterOptions, queue: &Sender<Tapped>) -> Result<TapCapture, CaptureError> {
    let source = PnetSource::open(&observed.tap.name)?;
    TapCapture::start(Box::new(source), observed, options, queue.clone())
}

/// What a tap's report amounts to.
fn seen(report: &Report) -> Vec<CoverageState> {
    let losses: Vec<_> = [(report.dropped, "ring"), (report.unqueued, "queue"), (report.counts.orphans, "fragments")]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, place)| lost(Some(count), place))
        .collect();
    if !losses.is_empty() {
        losses
    } else if report.counts.frames > 0 {
        vec![CoverageState::Ok]
    } else {
        vec![CoverageState::Nodata]
    }
}

/// A loss, named by its stage.
#[must_use]
pub fn lost(count: Option<u64>, place: &str) -> CoverageState {
    CoverageState::Lost { count, place: place.to_owned() }
}
