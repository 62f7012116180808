//! Any frames at any times into a small meter, asked for records now and then with little room: what goes in comes out, and the bounds hold.
#![no_main]

#[path = "../../../hostd/src/decode/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the rest of hostd uses more of it")]
mod decode;
#[path = "../../../hostd/src/meter/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the rest of hostd uses more of it")]
mod meter;

use decode::Heading;
use meter::{Frame, Meter, MeterOptions, Metered};
use vestigo_model::Timestamp;

const MAX_FLOWS: usize = 3;

/// Packets and bytes of records.
fn sum(records: &[Metered]) -> (u64, u64) {
    records.iter().fold((0, 0), |(packets, bytes), record| {
        assert!(record.began <= record.first && record.first <= record.last);
        let (orig, resp) = (record.from_orig, record.from_resp);
        (packets + orig.0 + resp.0, bytes + orig.1 + resp.1)
    })
}

// A frame is: its length, a byte of what happens with it, how far the clock goes (signed, in quarters of a second), then its bytes.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    let options = MeterOptions { max_flows: MAX_FLOWS, scitags: true, ..MeterOptions::default() };
    let mut meter = Meter::new(options, None);
    let (mut now, mut records, mut expected) = (0i64, Vec::new(), (0, 0));
    let mut frames = 0;
    while let [length, what, step, after @ ..] = rest {
        let (bytes, behind) = after.split_at(usize::from(*length).min(after.len()));
        rest = behind;
        now += i64::from(i8::from_ne_bytes([*step])) * 250_000_000;
        let wire_len = bytes.len() + usize::from(what >> 4) * 5000;
        let heading = if what & 1 == 0 { Heading::FromVm } else { Heading::ToVm };
        if let Ok(packet) = decode::ethernet(bytes, wire_len, None) {
            expected = (expected.0 + 1, expected.1 + packet.ip_bytes);
        }
        meter.frame(&Frame { bytes, wire_len, vlan: None, time: Timestamp::from_nanos(now), heading });
        frames += 1;
        if what & 2 != 0 {
            let (before, room) = (records.len(), usize::from(what >> 2 & 3));
            meter.due(Timestamp::from_nanos(now), room, &mut records);
            assert!(records.len() - before <= room);
        }
        assert!(meter.len() <= MAX_FLOWS);
    }
    meter.flush(&mut records);
    assert!(meter.is_empty());
    assert_eq!(sum(&records), expected);
    let counts = meter.take_counts();
    assert_eq!((counts.frames, expected.0), (frames, frames - counts.undecodable.values().sum::<u64>()));
});
