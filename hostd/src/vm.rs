//! One running VM as hostd holds it: its record, its taps' captures, its agent's link.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use tokio::sync::mpsc::Sender;
use vestigo_model::{BootId, Coverage, CoverageState, Instance, LinkPosition, TapName, Timestamp};

use crate::{
    attribute::AgentState,
    capture::{CaptureError, Observed, PnetSource, Report, TapCapture, Tapped},
    guestlink::{BanList, LinkHandle},
    meter::MeterOptions,
    quota::{Pace, Quota},
    recorder::chain,
    witness::TapWitness,
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
    heard: Option<Timestamp>,
    taps: HashMap<TapName, TapCapture>,
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
            heard: None,
            taps: HashMap::new(),
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
                witness: TapWitness::new(tap.mac, tap.learnt.clone()),
            };
            match open(observed, options, queue) {
                Ok(capture) => {
                    self.failures.remove(&tap.name);
                    self.taps.insert(tap.name.clone(), capture);
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

    /// States what could be seen since the last statement.
    pub fn coverage(&mut self, now: Timestamp, silent_after: Duration) -> Vec<Coverage> {
        let reports: HashMap<TapName, Report> =
            self.taps.iter().map(|(name, capture)| (name.clone(), capture.take_report())).collect();
        // A tap that went away is captured anew when it is back; not before its last report is in.
        self.taps.retain(|_, capture| !capture.ended());
        self.state(&reports, now, silent_after)
    }

    /// Ends every capture and gives the last statement. Blocks for about a tenth of a second a tap.
    pub fn close(&mut self, now: Timestamp, silent_after: Duration) -> Vec<Coverage> {
        self.channel = None;
        let reports = self.taps.drain().map(|(name, capture)| (name, capture.stop())).collect();
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
