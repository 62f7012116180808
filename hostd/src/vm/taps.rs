//! The taps of one VM: their captures, and what can be said of what was seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use vestigo_model::{CoverageState, Instance, Learnt, Tap, TapName, Timestamp};

use super::lost;
use crate::{
    capture::{Capture, CaptureError, Observed, Report, TapCapture, TapQueues},
    meter::{Meter, MeterOptions},
    recorder::chain,
    tally::TapTally,
    witness::{TapWitness, WitnessCounts},
};

/// What it takes to watch a tap.
#[derive(Debug, Clone)]
pub struct Watching {
    /// Opens interfaces.
    pub capture: Capture,
    /// Timeouts and bounds of metering.
    pub meter: MeterOptions,
    /// Where records go.
    pub queues: Arc<TapQueues>,
}

/// What can be said of one tap and one stretch of time.
pub type Statement = (TapName, (Timestamp, Timestamp), CoverageState);

/// The taps of one VM, by name.
#[derive(Debug, Default)]
pub struct Taps(BTreeMap<TapName, Held>);

#[derive(Debug)]
struct Held {
    tap: Tap,
    /// Until when coverage has been stated.
    covered_to: Timestamp,
    capture: Option<TapCapture>,
    failure: Option<String>,
    unplugged: bool,
    witness: TapWitness,
    /// What the captures reported since the last statement.
    report: Report,
    tally: TapTally,
    polled: Instant,
}

/// What is to be shown of a tap.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// What was counted.
    pub tally: TapTally,
    /// What became of the frames that its witness was shown.
    pub witness: WitnessCounts,
    /// Why it is not captured.
    pub failure: Option<String>,
}

impl Taps {
    /// Opens a capture on each tap that can be seen and has none, but for names that belong to others now. Of a tap that is new
    /// here nothing was seen since `since`. Gives what is to be said of captures that had ended.
    pub fn watch(
        &mut self,
        instance: &Instance,
        since: impl Fn(&TapName) -> Timestamp,
        others: &BTreeSet<TapName>,
        watching: &Watching,
    ) -> Vec<Statement> {
        for (name, held) in &mut self.0 {
            held.unplugged = instance.taps.iter().all(|tap| tap.name != *name);
            if held.unplugged {
                held.end();
            }
        }
        let mut statements = Vec::new();
        for tap in &instance.taps {
            let held = self.0.entry(tap.name.clone()).or_insert_with(|| Held::new(tap.clone(), since(&tap.name)));
            if let Some(ended) = held.ended() {
                statements.extend(held.state(ended));
            }
            if held.witness.mac() != tap.mac {
                held.witness = TapWitness::new(tap.mac, tap.learnt.clone());
            }
            held.tap.clone_from(tap);
            if tap.not_capturable.is_some() || held.capture.is_some() {
                continue;
            }
            let opened = if others.contains(&tap.name) {
                Err("its name belongs to a tap of a VM that began later".to_owned())
            } else {
                open(instance, held, watching).map_err(|error| chain(&error))
            };
            held.opened(opened, instance);
        }
        statements
    }

    /// Asks the captures what they have counted.
    pub fn poll(&mut self) {
        self.0.values_mut().for_each(Held::poll);
    }

    /// What is to be shown of a tap.
    #[must_use]
    pub fn shown(&self, name: &TapName) -> Shown {
        let shown = |held: &Held| Shown {
            tally: held.tally.clone(),
            witness: held.witness.memory().counts(),
            failure: held.failure.clone(),
        };
        self.0.get(name).map(shown).unwrap_or_default()
    }

    /// The addresses learnt on a tap.
    #[must_use]
    pub fn learnt(&self, name: &TapName) -> Option<Vec<Learnt>> {
        self.0.get(name).map(|held| held.witness.memory().learnt().to_vec())
    }

    /// Whether a tap of that name ought to be captured, and is not.
    #[must_use]
    pub fn misses(&self, name: &TapName) -> bool {
        self.0.get(name).is_some_and(Held::misses)
    }

    /// Whether some tap ought to be captured and is not.
    #[must_use]
    pub fn misses_any(&self) -> bool {
        self.0.values().any(Held::misses)
    }

    /// Ends the capture of a name that is another VM's now.
    pub fn release(&self, name: &TapName) {
        if let Some(held) = self.0.get(name) {
            held.end();
        }
    }

    /// Ends all captures; their last records are on the way.
    pub fn end(&self) {
        self.0.values().for_each(Held::end);
    }

    /// What can be said since the last time. A tap that was unplugged is not spoken of any more once its capture has ended.
    pub fn state(&mut self, now: Timestamp) -> Vec<Statement> {
        let statements = self.0.values_mut().flat_map(|held| held.state(now)).collect();
        self.0.retain(|_, held| !held.unplugged || held.capture.is_some());
        statements
    }

    /// Waits for the ends of all captures, and gives the last statements.
    pub fn close(&mut self, now: Timestamp) -> Vec<Statement> {
        self.end();
        self.0.values_mut().filter_map(|held| held.capture.as_mut()).for_each(TapCapture::wait);
        self.state(now)
    }
}

impl Held {
    fn new(tap: Tap, since: Timestamp) -> Self {
        Self {
            covered_to: since,
            capture: None,
            failure: None,
            unplugged: false,
            witness: TapWitness::new(tap.mac, tap.learnt.clone()),
            report: Report::default(),
            tally: TapTally::default(),
            polled: Instant::now(),
            tap,
        }
    }

    fn poll(&mut self) {
        let seconds = std::mem::replace(&mut self.polled, Instant::now()).elapsed().as_secs_f64();
        let report = self.capture.as_ref().map(TapCapture::take_report).unwrap_or_default();
        self.tally.add(&report, seconds);
        self.report.add(&report);
    }

    fn ended(&self) -> Option<Timestamp> {
        self.capture.as_ref().and_then(TapCapture::ended)
    }

    fn misses(&self) -> bool {
        let captured = self.capture.as_ref().is_some_and(|capture| capture.ended().is_none());
        !captured && !self.unplugged && self.tap.not_capturable.is_none()
    }

    fn end(&self) {
        self.capture.iter().for_each(TapCapture::end);
    }

    fn opened(&mut self, opened: Result<TapCapture, String>, instance: &Instance) {
        match opened {
            Ok(capture) => (self.capture, self.failure) = (Some(capture), None),
            Err(why) => {
                if self.failure.as_ref() != Some(&why) {
                    tracing::error!(domain = %instance.domain, tap = %self.tap.name, error = why, "a tap is not captured");
                }
                self.failure = Some(why);
            }
        }
    }

    /// What can be said from the last statement until `now`.
    fn state(&mut self, now: Timestamp) -> Vec<Statement> {
        self.poll();
        let from = std::mem::replace(&mut self.covered_to, now).min(now);
        let said = |span, state| (self.tap.name.clone(), span, state);
        if let Some(why) = &self.tap.not_capturable {
            return vec![said((from, now), CoverageState::NotCapturable { why: why.clone() })];
        }
        let Some(capture) = self.capture.take() else {
            let state = match &self.failure {
                Some(why) => CoverageState::NotCapturable { why: why.clone() },
                None => lost(None, "no-capture"),
            };
            return vec![said((from, now), state)];
        };
        let report = std::mem::take(&mut self.report);
        let opened = capture.opened().clamp(from, now);
        let until = report.ended.unwrap_or(now).clamp(opened, now);
        let unseen = [(from, opened), (until, now)].into_iter().filter(|(from, to)| from < to);
        let mut statements: Vec<_> = unseen.map(|span| said(span, lost(None, "no-capture"))).collect();
        statements.extend(seen(&report).into_iter().map(|state| said((opened, until), state)));
        self.capture = report.ended.is_none().then_some(capture);
        statements
    }
}

fn open(instance: &Instance, held: &Held, watching: &Watching) -> Result<TapCapture, CaptureError> {
    let (tap, witness) = (&held.tap, held.witness.clone());
    let source = watching.capture.open(&tap.name)?;
    let observed = Observed {
        host: instance.host.clone(),
        domain: instance.domain,
        instance: instance.id.clone(),
        vo: instance.vo.clone(),
        tap: tap.clone(),
        witness: witness.clone(),
    };
    let queue = watching.queues.open(Arc::new(observed));
    TapCapture::start(&tap.name, source, Meter::with_witness(watching.meter, Some(tap.mac), witness), queue)
}

/// What a tap's report amounts to.
fn seen(report: &Report) -> Vec<CoverageState> {
    let losses = [(report.dropped, "ring"), (report.unqueued, "queue"), (report.counts.orphans, "fragments")];
    let losses = losses.into_iter().filter(|(count, _)| *count > 0).map(|(count, place)| lost(Some(count), place));
    let folded = Some(report.counts.folded).filter(|count| *count > 0).map(|count| CoverageState::Folded { count });
    let short: Vec<_> = losses.chain(folded).collect();
    if !short.is_empty() {
        short
    } else if report.counts.frames > 0 {
        vec![CoverageState::Ok]
    } else {
        vec![CoverageState::Nodata]
    }
}
