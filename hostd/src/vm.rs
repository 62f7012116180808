//! One running VM as hostd holds it: its record, its taps' captures, its agent's link.

mod taps;

use std::{path::PathBuf, time::Duration};

use vestigo_model::{BootId, Coverage, CoverageState, Instance, LinkPosition, Timestamp};

use crate::{
    attribute::AgentState,
    guestlink::{BanList, LinkHandle},
    quota::{Pace, Quota},
    tally::Tally,
    witness::Marking,
};

pub use taps::{Shown, Statement, Taps, Watching};

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

/// From when a domain is there to be looked at until libvirt says that it has started, at most.
const LONGEST_START: Duration = Duration::from_secs(60);

/// A VM.
pub struct Vm {
    /// Its record, as last written.
    pub instance: Instance,
    /// libvirt's number of this run of it.
    pub run: Option<u32>,
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
    /// Its interfaces.
    pub taps: Taps,
    heard: Option<Timestamp>,
    channel_fault: Option<String>,
    covered_to: Timestamp,
}

impl Vm {
    /// A VM with nothing open yet. Coverage is stated from `now` on.
    #[must_use]
    pub fn new(instance: Instance, now: Timestamp) -> Self {
        Self {
            instance,
            run: None,
            channel: None,
            boot: None,
            limits: Limits::default(),
            told_bans: BanList::default(),
            watched: now,
            tally: Tally::default(),
            marking: Marking::default(),
            taps: Taps::default(),
            heard: None,
            channel_fault: None,
            covered_to: now,
        }
    }

    /// Whether a start at this time, of which libvirt tells now, is that of the run that is held: it was met by a look before libvirt
    /// told of it. The numbers begin again when libvirtd does, so the same number long after is another run.
    #[must_use]
    pub fn is_start_of(&self, run: Option<u32>, began: Timestamp) -> bool {
        let same = run.is_some() && run == self.run && began.since(self.instance.start) < LONGEST_START;
        same || began <= self.instance.start
    }

    /// Whether the record has to be written again, with the times of the one that is held.
    #[must_use]
    pub fn differs(&self, seen: &Instance) -> bool {
        let aligned = Instance { start: self.instance.start, end: self.instance.end, ..seen.clone() };
        aligned != self.instance
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
            let Some(learnt) = self.taps.learnt(&tap.name).filter(|learnt| *learnt != tap.learnt) else { continue };
            tap.learnt = learnt;
            news = true;
        }
        news
    }

    /// States what could be seen since the last statement.
    pub fn coverage(&mut self, now: Timestamp, silent_after: Duration) -> Vec<Coverage> {
        let taps = self.taps.state(now);
        self.stated(taps, now, silent_after)
    }

    /// Ends its captures and its link, and gives the last statements. Blocks until the captures have ended.
    pub fn close(&mut self, now: Timestamp, silent_after: Duration) -> Vec<Coverage> {
        self.channel = None;
        let taps = self.taps.close(now);
        self.stated(taps, now, silent_after)
    }

    fn stated(&mut self, taps: Vec<Statement>, now: Timestamp, silent_after: Duration) -> Vec<Coverage> {
        let from = std::mem::replace(&mut self.covered_to, now).min(now);
        let agent = match self.agent(now, silent_after) {
            AgentState::Absent => Some(CoverageState::AgentAbsent),
            AgentState::Silent => Some(CoverageState::AgentSilent),
            AgentState::Present => None,
        };
        let (host, domain) = (self.instance.host.clone(), Some(self.instance.domain));
        let agent = agent.map(|state| Coverage { host, domain, tap: None, from, to: now, state });
        self.of_taps(taps).into_iter().chain(agent).collect()
    }

    /// Statements of its taps as the ledger keeps them.
    #[must_use]
    pub fn of_taps(&self, statements: Vec<Statement>) -> Vec<Coverage> {
        let (host, domain) = (&self.instance.host, Some(self.instance.domain));
        let coverage =
            |(tap, (from, to), state)| Coverage { host: host.clone(), domain, tap: Some(tap), from, to, state };
        statements.into_iter().map(coverage).collect()
    }
}

/// A loss, named by its stage.
#[must_use]
pub fn lost(count: Option<u64>, place: &str) -> CoverageState {
    CoverageState::Lost { count, place: place.to_owned() }
}
