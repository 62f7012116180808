#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use proptest::prelude::*;

use super::*;

/// Bytes of one message, as strace shows what `nft` sends, without what is ours (flags, no set id).
fn golden(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

#[test]
#[cfg(target_endian = "little")]
fn a_block_is_encoded_as_nft_does() {
    let ports = PortBlock { first: 20480, last: 21503 };
    let block = Element::Block(Ipv4Addr::new(100, 64, 0, 14), Ipv4Addr::new(10, 9, 0, 1), ports);
    let bytes = add("vgp3", &[block]);
    // From: nft add element inet vestigo blocks { "vgp3" . 100.64.0.14 : 10.9.0.1 . 20480-21503 } (nftables 1.0.6).
    let body = b"\x01\0\0\0\x0c\0\x01\0vestigo\0\x0b\0\x02\0blocks\0\0\
        \x3c\0\x03\x80\x38\0\x01\x80\x1c\0\x01\x80\x18\0\x01\0vgp3\0\0\0\0\0\0\0\0\0\0\0\0\x64\x40\0\x0e\
        \x18\0\x02\x80\x14\0\x01\0\x0a\x09\0\x01\x50\0\0\0\x0a\x09\0\x01\x53\xff\0\0";
    let expected =
        [golden(0x10, 1, 0, &[0, 0, 0, 10]), golden(0x0a0c, 0x605, 1, body), golden(0x11, 1, 2, &[0, 0, 0, 10])]
            .concat();
    assert_eq!(bytes, expected);
}

#[test]
#[cfg(target_endian = "little")]
fn addresses_and_bare_interfaces_are_encoded_as_nft_does() {
    let bytes = remove("vgp3", &[Element::Source6("2001:db8::7".parse().unwrap()), Element::Pace]);
    let address = b"\x01\0\0\0\x0c\0\x01\0vestigo\0\x0b\0\x02\0inner6\0\0\
        \x30\0\x03\x80\x2c\0\x01\x80\x28\0\x01\x80\x24\0\x01\0vgp3\0\0\0\0\0\0\0\0\0\0\0\0\
        \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07";
    let bare = b"\x01\0\0\0\x0c\0\x01\0vestigo\0\x09\0\x02\0pace\0\0\0\0\
        \x20\0\x03\x80\x1c\0\x01\x80\x18\0\x01\x80\x14\0\x01\0vgp3\0\0\0\0\0\0\0\0\0\0\0\0";
    let expected = [
        golden(0x10, 1, 0, &[0, 0, 0, 10]),
        golden(0x0a0e, 0x0d, 1, address),
        golden(0x0a0e, 0x0d, 2, bare),
        golden(0x11, 1, 3, &[0, 0, 0, 10]),
    ]
    .concat();
    assert_eq!(bytes, expected);
}

#[test]
fn answers_are_counted_and_the_first_error_wins() {
    let said = |code: i32| golden(2, 0, 1, &[code.to_ne_bytes().as_slice(), &[0; 16]].concat());
    let mut answer = Answer::default();
    answer.take(&[said(0), said(0)].concat());
    assert!(answer.verdict(2).is_ok() && answer.verdict(3).is_err());
    answer.take(&said(-17));
    answer.take(&said(-2));
    assert_eq!(answer.verdict(2).unwrap_err().raw_os_error(), Some(17));
}

#[test]
fn an_echo_tells_how_many_packets() {
    let value = [attribute(1, &0u64.to_be_bytes()), attribute(2, &7u64.to_be_bytes())].concat();
    let expression = [attribute(1, b"counter\0"), attribute(2 | NESTED, &value)].concat();
    let element = [attribute(1 | NESTED, &attribute(1, b"key.")), attribute(7 | NESTED, &expression)].concat();
    let list = attribute(3 | NESTED, &attribute(1 | NESTED, &element));
    let body = [vec![1, 0, 0, 0], attribute(1, b"vestigo\0"), list].concat();
    let mut answer = Answer::default();
    answer.take(&message(DELETE_ELEMENT, 0, 1, &body));
    answer.take(&message(DELETE_ELEMENT, 0, 2, &body));
    assert_eq!(answer, Answer { packets: 14, ..Answer::default() });
}

proptest! {
    #[test]
    fn any_datagram_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        Answer::default().take(&bytes);
        // And behind a header that promises an echo.
        Answer::default().take(&message(DELETE_ELEMENT, 0, 1, &bytes));
    }

    #[test]
    fn batches_are_whole_messages(first in any::<u16>(), name in "vgp[0-9]{1,12}") {
        let elements =
            [Element::Pace, Element::Block([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), PortBlock { first, last: first })];
        let bytes = add(&name, &elements);
        let (mut rest, mut count) = (bytes.as_slice(), 0);
        while let Some((_, body, after)) = next_message(rest) {
            prop_assert_eq!(body.len() % 4, 0);
            (rest, count) = (after, count + 1);
        }
        prop_assert_eq!((rest.len(), count), (0, 4));
    }
}
