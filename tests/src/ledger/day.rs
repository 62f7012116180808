//! Everything that one host writes down on one UTC day, in the order in which it does.

use anyhow::Result;
use vestigo_model::{
    Coverage, CoverageState, DomainUuid, Event, EventKind, Fact, FactRecord, Flow, Label, TapName, Timestamp,
    Translation,
};

use super::{
    Site,
    draw::{Draw, key, small, whole},
    machines::{Machine, Reach, machines},
    shape::{DAY, HOUR, SECOND},
    traffic::Traffic,
    work::{Run, runs},
};

/// How often hostd is down for a while on a day.
const DOWN: f64 = 0.04;

/// A day of a host.
#[derive(Debug, Default)]
pub struct Day {
    /// Facts, by the time of writing.
    pub facts: Vec<FactRecord>,
    /// Flow records, by their last packet.
    pub flows: Vec<Flow>,
}

/// When hostd was down that day, if it was.
#[must_use]
pub fn outage(site: &Site, host: u32, day: u32) -> Option<(i64, i64)> {
    let mut draw = Draw::new(key(&[site.shape.seed, 40, u64::from(host), u64::from(day)]));
    let from = site.shape.midnight(day) + draw.between(HOUR, 22 * HOUR);
    let to = from + draw.between(60 * SECOND, 1800 * SECOND);
    draw.happens(DOWN).then_some((from, to))
}

/// Makes the day.
///
/// # Errors
/// The site has no such host.
pub fn day(site: &Site, host: u32, day: u32) -> Result<Day> {
    let span = (site.shape.midnight(day), site.shape.midnight(day + 1));
    let machines = machines(site, host, span.0, span.1)?;
    let work = machines.iter().map(|machine| runs(site, machine)).collect::<Result<Vec<_>>>()?;
    let blind = outage(site, host, day);
    let mut made = Day { facts: Vec::new(), flows: flows(site, (host, day), &machines, &work, blind)? };
    let mut facts = Facts { site, host, span, blind, facts: &mut made.facts };
    facts.host_itself(day)?;
    for (machine, runs) in machines.iter().zip(&work) {
        facts.machine(machine)?;
        runs.iter().try_for_each(|run| facts.run(machine, run))?;
        facts.coverage_of(machine)?;
        facts.translations(machine)?;
    }
    made.facts.sort_by_key(|fact| fact.recorded);
    made.flows.sort_by_key(|flow| flow.last);
    Ok(made)
}

fn flows(
    site: &Site,
    (host, day): (u32, u32),
    machines: &[Machine<'_>],
    work: &[Vec<Run<'_>>],
    blind: Option<(i64, i64)>,
) -> Result<Vec<Flow>> {
    let span = (site.shape.midnight(day), site.shape.midnight(day + 1));
    let traffic = machines.iter().zip(work).filter_map(|(m, runs)| Traffic::new(site, m, runs, span, blind));
    let mut traffic: Vec<Traffic<'_>> = traffic.collect();
    let (mut left, mut weight) = (site.shape.flows_of(host, day), traffic.iter().map(Traffic::weight).sum::<f64>());
    let mut flows = Vec::with_capacity(usize::try_from(left)?);
    for machine in &mut traffic {
        let share = machine.weight() / weight;
        #[allow(clippy::cast_precision_loss)] // A share of it.
        let count = whole((left as f64 * share).round()).min(left);
        machine.records(count, &mut flows)?;
        left -= count;
        weight -= machine.weight();
    }
    Ok(flows)
}

/// Puts down the facts of a day.
struct Facts<'a> {
    site: &'a Site,
    host: u32,
    span: (i64, i64),
    blind: Option<(i64, i64)>,
    facts: &'a mut Vec<FactRecord>,
}

impl Facts<'_> {
    fn today(&self, time: i64) -> bool {
        (self.span.0..self.span.1).contains(&time)
    }

    /// What happens while hostd is down is written when it is up again.
    fn put(&mut self, time: i64, fact: Fact) {
        let late = self.blind.filter(|(from, to)| (*from..*to).contains(&time)).map_or(time, |(_, to)| to);
        let recorded = Timestamp::from_nanos(late.min(self.span.1 - 1));
        self.facts.push(FactRecord { recorded, fact, link: None });
    }

    fn host_itself(&mut self, day: u32) -> Result<()> {
        let began = (day == 0).then_some(self.span.0);
        for time in [began, self.blind.map(|(_, to)| to)].into_iter().flatten() {
            let event = Event {
                host: self.site.host(self.host)?.clone(),
                domain: None,
                time: Timestamp::from_nanos(time),
                what: EventKind::HostStarted,
                detail: [("version".to_owned(), "0.1.0".to_owned())].into(),
            };
            self.put(time, Fact::Event(event));
        }
        if let Some((from, to)) = self.blind {
            let lost = CoverageState::Lost { count: None, place: "hostd-down".to_owned() };
            self.say((from, to), (None, None), lost)?;
        }
        for part in self.statements(self.span) {
            self.say(part, (None, None), CoverageState::NatOk)?;
        }
        Ok(())
    }

    fn machine(&mut self, machine: &Machine<'_>) -> Result<()> {
        for (time, ended) in [(machine.start, false), (machine.end, true)] {
            if self.today(time) {
                self.put(time, Fact::Instance(machine.instance(self.site, ended)?));
            }
        }
        Ok(())
    }

    fn run(&mut self, machine: &Machine<'_>, run: &Run<'_>) -> Result<()> {
        for (time, ended) in [(run.received, false), (run.until(machine), true)] {
            if self.today(time) {
                // A claim is stamped when it arrives: that of a moment without hostd would wait, so there is none.
                let recorded = Timestamp::from_nanos(time);
                let fact = Fact::Payload(run.payload(self.site, machine, ended)?);
                self.facts.push(FactRecord { recorded, fact, link: None });
            }
        }
        Ok(())
    }

    /// The stretches of hostd's statements within the span, without the time in which it was down.
    fn statements(&self, (from, to): (i64, i64)) -> Vec<(i64, i64)> {
        let step = i64::try_from(self.site.shape.statement.as_nanos()).unwrap_or(DAY).max(SECOND);
        let mut parts = Vec::new();
        let mut at = from;
        while at < to {
            // Statements end on the same beat whatever they begin with.
            let next = (self.span.0 + ((at - self.span.0) / step + 1) * step).min(to);
            match self.blind {
                Some((down, up)) if at < up && down < next => {
                    parts.extend([(at, down), (up, next)].into_iter().filter(|(from, to)| from < to));
                }
                _ => parts.push((at, next)),
            }
            at = next;
        }
        parts
    }

    fn coverage_of(&mut self, machine: &Machine<'_>) -> Result<()> {
        let span = (machine.start.max(self.span.0), machine.end.min(self.span.1));
        for part in self.statements(span) {
            self.say(part, (Some(machine.domain), Some(machine.tap.clone())), CoverageState::Ok)?;
            if !machine.agent {
                self.say(part, (Some(machine.domain), None), CoverageState::AgentAbsent)?;
            }
        }
        Ok(())
    }

    fn say(
        &mut self,
        (from, to): (i64, i64),
        (domain, tap): (Option<DomainUuid>, Option<TapName>),
        state: CoverageState,
    ) -> Result<()> {
        let host = self.site.host(self.host)?.clone();
        let (from, until) = (Timestamp::from_nanos(from), Timestamp::from_nanos(to));
        self.put(to, Fact::Coverage(Coverage { host, domain, tap, from, to: until, state }));
        Ok(())
    }

    /// Translations of which no flow record tells: a few a day of each VM behind the host's NAT.
    fn translations(&mut self, machine: &Machine<'_>) -> Result<()> {
        let Reach::Behind(public) = machine.reach else { return Ok(()) };
        let mut draw = Draw::new(key(&[machine.key, 41, self.span.0.cast_unsigned()]));
        for _ in 0..draw.below(4) {
            let time = draw.between(self.span.0, self.span.1);
            let (peer, port) = (self.site.peer(&mut draw), 32_768 + small(draw.below(28_000)));
            let outside = 1024 + small(draw.below(64_000));
            if !(machine.start + 60 * SECOND..machine.end).contains(&time) {
                continue;
            }
            let server = (peer.v4.into(), peer.port);
            let translation = Translation {
                host: self.site.host(self.host)?.clone(),
                namespace: Label::new("host")?,
                zone: 0,
                proto: 6,
                original: ((machine.address.into(), port), server),
                reply: (server, (public.into(), outside)),
                not_before: Some(Timestamp::from_nanos(time - SECOND)),
                until: Timestamp::from_nanos(time),
                ended: true,
                why: Label::new("no-flow")?,
            };
            self.put(time, Fact::Event(translation.event()));
        }
        Ok(())
    }
}
