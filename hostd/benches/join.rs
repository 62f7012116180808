//! What it costs to join a flow: one VM, as many live payloads as a VM may have. Prints `name: value` lines.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{collections::BTreeMap, hint::black_box, time::Instant};

use hostd::{
    attribute::{AgentState, LeaseBook, MAX_LIVE},
    capture::{Observed, Tapped},
    join::join,
    meter::Metered,
    witness::TapWitness,
};
use uuid::Uuid;
use vestigo_model::*;

/// Flows joined in one round, and rounds.
const FLOWS: u32 = 1 << 18;
const ROUNDS: usize = 7;

fn main() {
    let domain = DomainUuid(Uuid::from_u128(1));
    let observed = Observed {
        witness: TapWitness::new(Mac([2, 0, 0, 0, 0, 1]), Vec::new()),
        host: HostId::new("hv1").unwrap(),
        domain,
        instance: InstanceId::new("0b2f2b7e-5a2c-4a43-9f0c-6c2a7b6c1d11").unwrap(),
        vo: Vo::new("atlas").ok(),
        tap: Tap {
            name: TapName::new("vnet0").unwrap(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            expected: vec!["10.0.0.5".parse().unwrap()],
            learnt: Vec::new(),
            network: None,
            not_capturable: None,
        },
    };
    // 54 blocks of 1024 ports, as agents give them out; beyond them, what a guest may announce on top of one of them.
    let honest = (0..54u16).map(|n| PortBlock { first: 10_240 + n * 1024, last: 10_240 + n * 1024 + 1023 });
    let ports_apart = (0..MAX_LIVE).map(|n| u16::try_from(10_240 + n * 48).unwrap());
    let apart = ports_apart.map(|first| PortBlock { first, last: first + 47 });
    let on_top = (0..MAX_LIVE).map(|_| PortBlock { first: 10_240, last: 26_623 });
    let cases: [(&str, Vec<PortBlock>); 3] =
        [("honest_54", honest.collect()), ("apart_1024", apart.collect()), ("overlapping_1024", on_top.collect())];
    let observed = std::sync::Arc::new(observed);
    for (name, blocks) in cases {
        let mut book = LeaseBook::new();
        for (uid, block) in blocks.into_iter().enumerate() {
            book.enter(payload(domain, uid as u128, block));
        }
        let mut times: Vec<f64> = (0..ROUNDS).map(|_| round(&book, &observed)).collect();
        times.sort_by(f64::total_cmp);
        let median = times.get(ROUNDS / 2).copied().unwrap_or_default();
        println!("join_ns_per_flow_{name}: {:.0}", median * 1e9 / f64::from(FLOWS));
        println!("join_flows_per_s_{name}: {:.0}", f64::from(FLOWS) / median);
    }
}

fn round(book: &LeaseBook, observed: &std::sync::Arc<Observed>) -> f64 {
    let time = Timestamp::from_nanos(1_000_000_000);
    let records: Vec<Tapped> = (0..FLOWS)
        .map(|n| Tapped {
            observed: std::sync::Arc::clone(observed),
            record: Metered {
                direction: Direction::Outgoing,
                orig: ("10.0.0.5".parse().unwrap(), u16::try_from(10_240 + n.wrapping_mul(40_503) % 55_000).unwrap()),
                resp: (std::net::Ipv4Addr::from(0xc000_0200 | (n % 256)).into(), 443),
                proto: 6,
                vlan: None,
                began: time,
                first: time,
                last: time,
                from_orig: (1, 60, 2),
                from_resp: (0, 0, 0),
                end_reason: EndReason::Idle,
                initiator: Initiator::Seen,
                notes: FlowNotes::default(),
            },
        })
        .collect();
    let start = Instant::now();
    for record in &records {
        black_box(join(record, book, AgentState::Present));
    }
    start.elapsed().as_secs_f64()
}

fn payload(domain: DomainUuid, uid: u128, block: PortBlock) -> Payload {
    let label = |text: &str| Label::new(text).unwrap();
    Payload {
        host: HostId::new("hv1").unwrap(),
        domain,
        received: Timestamp::from_nanos(0),
        claimed: Timestamp::from_nanos(0),
        claim: PayloadClaim {
            uid: PayloadUid(Uuid::from_u128(uid)),
            holder: Holder::Payload,
            pilot: PilotId::new("p").unwrap(),
            payload: PayloadId::new("t").unwrap(),
            user: User { issuer: label("i"), subject: label("s") },
            vo: Vo::new("atlas").unwrap(),
            trust: Trust::AssertedByVo,
            task: None,
            token: None,
            access: None,
            executable: None,
            interpreter: None,
            command: vec![],
            leases: vec![Lease::Ports(block)],
            isolation: BTreeMap::new(),
            withheld: None,
        },
        end: None,
    }
}
