//! Community ID: what other tools call the same conversation.

use community_id::calculate_community_id;

use crate::{decode::proto, meter::Metered};

/// Community ID v1 with seed 0. For ICMP its "ports" are type and code of what the originator sent.
#[must_use]
pub fn community_id(record: &Metered) -> String {
    let (source, destination) = match record.proto {
        proto::ICMP | proto::ICMPV6 => {
            let [kind, code] = record.resp.1.to_be_bytes();
            (Some(kind.into()), Some(code.into()))
        }
        proto::TCP | proto::UDP | proto::SCTP => (Some(record.orig.1), Some(record.resp.1)),
        _ => (None, None),
    };
    // An error would mean two address families in one packet, which no decoder yields.
    calculate_community_id(0, record.orig.0, record.resp.0, source, destination, record.proto, false)
        .unwrap_or_default()
}
