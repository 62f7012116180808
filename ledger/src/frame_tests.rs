#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]
use super::*;
use proptest::prelude::*;

fn framed(texts: &[String]) -> (Vec<u8>, Vec<Vec<u8>>, Vec<usize>) {
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    let payloads: Vec<Vec<u8>> = texts.iter().map(|t| format!("{{{t:?}:1}}").into_bytes()).collect();
    for payload in &payloads {
        encode(payload, &mut bytes).unwrap();
        ends.push(bytes.len());
    }
    (bytes, payloads, ends)
}

proptest! {
    #[test]
    fn frames_round_trip_and_a_cut_keeps_exactly_the_whole_ones(texts in prop::collection::vec(".{0,40}", 1..6)) {
        let (bytes, payloads, ends) = framed(&texts);
        for cut in 0..=bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let good = ends[..whole].last().copied().unwrap_or(0);
            let found = scan(&bytes[..cut]);
            prop_assert_eq!(found.payloads, payloads[..whole].iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!((found.good, found.torn, found.damaged), (good, cut - good, 0));
        }
    }

    #[test]
    fn a_damaged_frame_costs_only_itself(
        texts in prop::collection::vec(".{0,40}", 3..6), at: prop::sample::Index, bit in 0_u8..8,
    ) {
        let (mut bytes, payloads, ends) = framed(&texts);
        let middle = ends[0]..ends[1];
        let at = middle.start + at.index(middle.len());
        bytes[at] ^= 1 << bit;
        let found = scan(&bytes);
        let expected: Vec<&[u8]> = payloads.iter().enumerate().filter(|(n, _)| *n != 1).map(|(_, p)| p.as_slice()).collect();
        prop_assert_eq!(found.payloads, expected);
        prop_assert_eq!((found.damaged, found.torn), (middle.len(), 0));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        let found = scan(&bytes);
        prop_assert_eq!(found.good + found.torn, bytes.len());
    }
}

#[test]
fn zeros_are_no_frames_and_long_payloads_are_refused() {
    assert_eq!(scan(&[0; 64]), Scan { torn: 64, ..Scan::default() });
    assert_eq!(encode(&vec![b'x'; MAX_PAYLOAD + 1], &mut Vec::new()), Err(TooLong(MAX_PAYLOAD + 1)));
}

#[test]
fn text_inside_a_payload_cannot_pass_for_a_frame() {
    let mut inner = Vec::new();
    encode(b"{\"forged\":1}", &mut inner).unwrap();
    let text = serde_json::to_vec(&serde_json::json!({ "command": String::from_utf8_lossy(&inner) })).unwrap();
    let mut bytes = Vec::new();
    encode(&text, &mut bytes).unwrap();
    // Break the outer frame, so that the search walks through its payload.
    bytes[4] ^= 1;
    assert_eq!(scan(&bytes).payloads.len(), 0);
}
