#![allow(clippy::unwrap_used, clippy::panic)]
use std::collections::BTreeMap;

use proptest::prelude::*;
use vestigo_model::{Exit, link::LineReader};

use super::*;

fn boot(n: u128) -> BootId {
    BootId(uuid::Uuid::from_u128(n))
}

fn session(saved: Option<Saved>) -> Session {
    Session::new(boot(1), Label::new("test").unwrap(), 1 << 20, saved)
}

fn end(n: u128) -> Claim {
    Claim::PayloadEnd { uid: PayloadUid(uuid::Uuid::from_u128(n)), exit: Exit::Code(0), silent: false }
}

fn now() -> Timestamp {
    Timestamp::from_nanos(0)
}

/// A host that checks the chain as hostd does.
#[derive(Default)]
struct Host {
    durable: Vec<Record>,
    head: Option<Digest>,
    reader: LineReader,
    out: Vec<Vec<u8>>,
}

impl Host {
    fn take(&mut self, bytes: &[u8]) {
        for line in self.reader.push(bytes) {
            // A line cut by a disconnect is no frame; the empty line ended it.
            let Ok(frame) = decode::<GuestFrame>(&line.clone().unwrap()) else { continue };
            match frame {
                GuestFrame::Hello(_) => self.send(&HostFrame::Welcome {
                    protocol: PROTOCOL,
                    acked: self.durable.len() as u64,
                    head: self.head.unwrap_or(Digest::ZERO),
                    time: now(),
                }),
                GuestFrame::Record(record) => self.record(record, &line.unwrap()),
                _ => {}
            }
        }
    }

    fn record(&mut self, record: Record, line: &[u8]) {
        let known = self.durable.len() as u64;
        if record.seq == known + 1 {
            assert_eq!(record.prev, self.head.unwrap_or(Digest::ZERO), "broken chain at {}", record.seq);
            self.head = Some(Digest::of(line));
            self.durable.push(record);
        } else {
            assert!(record.seq <= known, "gap: {} after {known}", record.seq);
        }
        self.send(&HostFrame::Ack { seq: self.durable.len() as u64 });
    }

    fn send(&mut self, frame: &HostFrame) {
        self.out.push(encode(frame).unwrap());
    }
}

#[derive(Debug, Clone)]
enum Step {
    Record,
    /// The channel opens (or reopens), by either side.
    Open,
    Identify,
    /// The guest writes so many lines; the last is cut after some bytes if the channel breaks.
    Write(usize),
    /// The host's answers arrive.
    Answer(usize),
    /// The channel breaks; bytes on the way are lost, half a line may have arrived.
    Break(usize),
    /// The agent dies and comes back with what it saved.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Record),
        2 => Just(Step::Open),
        1 => Just(Step::Identify),
        3 => (0usize..4).prop_map(Step::Write),
        3 => (0usize..6).prop_map(Step::Answer),
        1 => (0usize..200).prop_map(Step::Break),
        1 => Just(Step::Restart),
    ]
}

struct World {
    guest: Session,
    host: Host,
    made: u128,
    verdicts: BTreeMap<Ticket, Verdict>,
    connected: bool,
}

impl World {
    fn apply(&mut self, step: Step) {
        match step {
            Step::Record => {
                self.made += 1;
                self.guest.append(end(self.made), now()).unwrap();
            }
            Step::Open => {
                self.host.out.clear();
                self.connected = true;
                let bytes = self.guest.opened(now());
                self.host.take(&bytes);
            }
            Step::Identify if self.connected => {
                self.host.send(&HostFrame::Identify { protocol: PROTOCOL, time: now() })
            }
            Step::Write(count) if self.connected => (0..count).for_each(|_| {
                let line = self.guest.next_line();
                line.into_iter().for_each(|line| self.host.take(&line));
            }),
            Step::Answer(count) if self.connected => {
                let count = count.min(self.host.out.len());
                let lines: Vec<Vec<u8>> = self.host.out.drain(..count).collect();
                lines.iter().for_each(|line| self.answer(line));
            }
            Step::Break(keep) => {
                if let Some(line) = self.guest.next_line().filter(|_| self.connected) {
                    self.host.take(&line[..keep.min(line.len() - 1)]);
                }
                self.disconnect();
            }
            Step::Restart => {
                self.disconnect();
                self.guest = session(Some(self.guest.saved()));
                self.verdicts.clear();
            }
            _ => {}
        }
    }

    fn answer(&mut self, line: &[u8]) {
        let (verdicts, hello) = self.guest.received(line.trim_ascii_end(), now());
        for (ticket, verdict) in verdicts {
            assert!(self.verdicts.insert(ticket, verdict).is_none(), "two verdicts for one record");
        }
        hello.into_iter().for_each(|hello| self.host.take(&hello));
    }

    fn disconnect(&mut self) {
        self.connected = false;
        self.guest.closed();
        self.host.out.clear();
    }

    fn settle(&mut self) {
        self.apply(Step::Open);
        for _ in 0..3 {
            self.apply(Step::Answer(usize::MAX));
            self.apply(Step::Write(self.made as usize + 1));
        }
        self.apply(Step::Answer(usize::MAX));
    }
}

proptest! {
    /// Whatever breaks in whatever order: in the end the host has every record once and in order, and nothing was called
    /// acknowledged that it does not have.
    #[test]
    fn nothing_lost_nothing_twice(steps in proptest::collection::vec(step(), 0..120)) {
        let mut world = World { guest: session(None), host: Host::default(), made: 0, verdicts: BTreeMap::new(), connected: false };
        for step in steps {
            world.apply(step);
            prop_assert!(world.guest.header().acked <= world.host.durable.len() as u64);
        }
        world.settle();
        prop_assert_eq!(world.host.durable.len() as u128, world.made);
        for (index, record) in world.host.durable.iter().enumerate() {
            prop_assert_eq!(&record.claim, &end(index as u128 + 1));
        }
        prop_assert_eq!(world.guest.header().acked as u128, world.made);
        prop_assert_eq!(world.guest.counters().0, 0);
        prop_assert_eq!(world.guest.counters().1, 0);
    }

    /// No line of a host makes the session fall over.
    #[test]
    fn no_line_panics(line: Vec<u8>) {
        let mut guest = session(None);
        let _ = guest.append(end(1), now());
        let _ = guest.received(&line, now());
    }
}

#[test]
fn a_host_that_knows_more_gets_the_rest_behind_what_it_has() {
    let mut guest = session(None);
    let (ticket, _) = guest.append(end(9), now()).unwrap();
    guest.opened(now());
    let head = Digest::of(b"theirs");
    let welcome = encode(&HostFrame::Welcome { protocol: PROTOCOL, acked: 7, head, time: now() }).unwrap();
    guest.received(&welcome, now());
    let line = guest.next_line().unwrap();
    let Ok(GuestFrame::Record(record)) = decode(&line) else { panic!("no record") };
    assert_eq!((record.seq, record.prev, record.claim), (8, head, end(9)));
    let (verdicts, _) = guest.received(&encode(&HostFrame::Ack { seq: 8 }).unwrap(), now());
    assert_eq!(verdicts, [(ticket, Verdict::Acknowledged)]);
}

#[test]
fn a_host_that_forgot_gets_what_waits_in_a_chain_it_can_take() {
    let mut guest = session(None);
    guest.append(end(1), now()).unwrap();
    guest.opened(now());
    let forgetful = HostFrame::Welcome { protocol: PROTOCOL, acked: 0, head: Digest::ZERO, time: now() };
    guest.received(&encode(&forgetful).unwrap(), now());
    guest.received(&encode(&HostFrame::Ack { seq: 1 }).unwrap(), now());
    guest.append(end(2), now()).unwrap();
    guest.closed();
    guest.opened(now());
    guest.received(&encode(&forgetful).unwrap(), now());
    let Ok(GuestFrame::Record(record)) = decode(&guest.next_line().unwrap()) else { panic!("no record") };
    assert_eq!((record.seq, record.prev, record.claim), (1, Digest::ZERO, end(2)));
    assert_eq!(guest.counters().1, 1);
}

#[test]
fn a_refused_record_keeps_its_place_in_the_chain() {
    let mut guest = session(None);
    let (first, _) = guest.append(end(1), now()).unwrap();
    guest.append(end(2), now()).unwrap();
    guest.opened(now());
    let welcome = HostFrame::Welcome { protocol: PROTOCOL, acked: 0, head: Digest::ZERO, time: now() };
    guest.received(&encode(&welcome).unwrap(), now());
    let refuse = HostFrame::Refuse { seq: 1, reason: Label::new("banned").unwrap() };
    let (verdicts, _) = guest.received(&encode(&refuse).unwrap(), now());
    assert_eq!(verdicts, [(first, Verdict::Refused("banned".into()))]);
    let (verdicts, _) = guest.received(&encode(&HostFrame::Ack { seq: 1 }).unwrap(), now());
    assert!(verdicts.is_empty(), "its place is taken, and no more than that");
    let (verdicts, _) = guest.received(&encode(&HostFrame::Ack { seq: 2 }).unwrap(), now());
    assert_eq!(verdicts.len(), 1);
}

#[test]
fn a_welcome_does_not_say_whether_a_record_was_refused() {
    let mut guest = session(None);
    let (ticket, line) = guest.append(end(1), now()).unwrap();
    guest.opened(now());
    let welcome = |acked, head| encode(&HostFrame::Welcome { protocol: PROTOCOL, acked, head, time: now() }).unwrap();
    guest.received(&welcome(0, Digest::ZERO), now());
    guest.next_line().unwrap();
    // The host refuses it, and the refusal is lost with the connection.
    guest.closed();
    guest.opened(now());
    let (verdicts, _) = guest.received(&welcome(1, Digest::of(&line)), now());
    assert_eq!(verdicts, [(ticket, Verdict::Unclear)]);
}

#[test]
fn what_was_refused_is_not_offered_to_a_host_that_forgot() {
    let mut guest = session(None);
    guest.append(end(1), now()).unwrap();
    guest.append(end(2), now()).unwrap();
    guest.opened(now());
    let welcome = |acked, head| encode(&HostFrame::Welcome { protocol: PROTOCOL, acked, head, time: now() }).unwrap();
    guest.received(&welcome(0, Digest::ZERO), now());
    let refuse = HostFrame::Refuse { seq: 1, reason: Label::new("banned").unwrap() };
    guest.received(&encode(&refuse).unwrap(), now());
    guest.received(&welcome(7, Digest::of(b"theirs")), now());
    let Ok(GuestFrame::Record(record)) = decode(&guest.next_line().unwrap()) else { panic!("no record") };
    assert_eq!((record.seq, record.claim), (8, end(2)));
    assert!(guest.next_line().is_none());
}

#[test]
fn another_boot_starts_another_chain() {
    let mut guest = session(None);
    guest.append(end(1), now()).unwrap();
    let after = Session::new(boot(2), Label::new("test").unwrap(), 1 << 20, Some(guest.saved()));
    assert_eq!((after.header().last, after.header().head), (0, Digest::ZERO));
}

#[test]
fn an_acknowledgement_of_the_future_is_no_acknowledgement() {
    let mut guest = session(None);
    guest.append(end(1), now()).unwrap();
    guest.opened(now());
    let (verdicts, _) = guest.received(&encode(&HostFrame::Ack { seq: 1 }).unwrap(), now());
    assert!(verdicts.is_empty(), "an acknowledgement before the welcome is of another life");
    let welcome = HostFrame::Welcome { protocol: PROTOCOL, acked: 0, head: Digest::ZERO, time: now() };
    guest.received(&encode(&welcome).unwrap(), now());
    let (verdicts, _) = guest.received(&encode(&HostFrame::Ack { seq: 5 }).unwrap(), now());
    assert!(verdicts.is_empty());
    assert_eq!(guest.counters().1, 1);
}

#[test]
fn a_host_without_numbers_left_is_not_believed() {
    let mut session = session(None);
    session.opened(now());
    let far = HostFrame::Welcome { protocol: PROTOCOL, acked: u64::MAX, head: Digest::ZERO, time: now() };
    session.received(&encode(&far).unwrap(), now());
    assert!(!session.is_open());
    assert!(session.append(end(1), now()).is_ok());
    assert_eq!(session.header().last, 1);
}
