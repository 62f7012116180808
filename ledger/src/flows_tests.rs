#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]
use std::net::Ipv6Addr;

use vestigo_model::{Label, SciTagSource};

use super::*;
use crate::{
    fixture::*,
    frame::{self, MAX_PAYLOAD},
};

/// A flow of a place and a reason of its own, with every text and number at its longest.
fn longest(number: usize) -> Flow {
    let text = |length: usize| format!("{number:0>length$}");
    let widest = |part: usize| IpAddr::V6(Ipv6Addr::from(u128::MAX - u128::try_from(number * 8 + part).unwrap()));
    let mut flow = flow(&instance("hv1", 1, None, "10.0.0.5"), u16::MAX, "14:00:00", None);
    flow.host = HostId::new(text(64)).unwrap();
    flow.tap = TapName::new(text(15)).unwrap();
    flow.instance = InstanceId::new(text(128)).unwrap();
    flow.vo = Some(Vo::new(text(64)).unwrap());
    (flow.orig_ip, flow.resp_ip, flow.resp_port, flow.proto) = (widest(0), widest(1), u16::MAX, u8::MAX);
    flow.vlan = Some(4095);
    (flow.first, flow.last) = (Timestamp::from_nanos(i64::MIN / 2), Timestamp::from_nanos(i64::MAX / 2));
    (flow.orig_packets, flow.orig_bytes, flow.resp_packets, flow.resp_bytes) = (u64::MAX, u64::MAX, u64::MAX, u64::MAX);
    flow.post_nat = Some(PostNat { ip: widest(2), port: u16::MAX });
    flow.notes = FlowNotes {
        inner_vlan: Some(4095),
        tunnel: Some(Tunnel::Geneve(u32::MAX)),
        folded: Some(Folded { flows: u64::MAX, last_port: u16::MAX }),
        speaks_of: Some(Tuple {
            src_ip: widest(3),
            src_port: u16::MAX,
            dst_ip: widest(4),
            dst_port: u16::MAX,
            proto: u8::MAX,
        }),
        icmp_error: Some(u16::MAX),
        scitag: Some(SciTag { experiment: u16::MAX, activity: u8::MAX, by: SciTagSource::FlowLabel }),
    };
    let reason = Label::new(text(255)).unwrap().as_str().to_owned();
    flow.attribution = Attribution { quality: Quality::Instance, payload: Some(nth_uid(number)), reason };
    flow
}

#[test]
fn a_full_batch_of_the_longest_flows_fits_into_a_frame_and_comes_back() {
    let flows: Vec<Flow> = (0..BATCH).map(longest).collect();
    let payload = Flows::of(&flows).encode().unwrap();
    eprintln!("{} of {MAX_PAYLOAD} bytes", payload.len());
    frame::encode(&payload, &mut Vec::new()).unwrap();
    assert_eq!(Flows::decode(&payload).unwrap().iter().collect::<Vec<_>>(), flows);
}

#[test]
fn a_flow_during_which_the_clock_was_set_back_spans_both_readings() {
    let mut flow = flow(&instance("hv1", 1, None, "10.0.0.5"), 41000, "15:00:00", None);
    flow.last = at("14:00:01");
    let payload = Flows::of(std::slice::from_ref(&flow)).encode().unwrap();
    let kept = Flows::decode(&payload).unwrap().iter().next().unwrap();
    assert_eq!((kept.first, kept.last), (at("14:00:01"), at("15:00:00")));
}
