#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

const NESTED: u16 = 0x8000;

fn address(ip: IpAddr, v4: u16) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => attribute(v4, &ip.octets()),
        IpAddr::V6(ip) => attribute(v4 + 2, &ip.octets()),
    }
}

fn tuple_of(kind: u16, (src, dst): (End, End), proto: &[u8], zone: Option<u16>) -> Vec<u8> {
    let mut inner = attribute(NESTED | 1, &[address(src.0, 1), address(dst.0, 2)].concat());
    inner.extend(attribute(NESTED | 2, proto));
    inner.extend(zone.into_iter().flat_map(|zone| attribute(3, &zone.to_be_bytes())));
    attribute(NESTED | kind, &inner)
}

fn ports(proto: u8, (src, dst): (End, End)) -> Vec<u8> {
    [attribute(1, &[proto]), attribute(2, &src.1.to_be_bytes()), attribute(3, &dst.1.to_be_bytes())].concat()
}

fn datagram(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(20 + attributes.len()).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([7_u32.to_ne_bytes(), [0; 4]].concat());
    bytes.extend([2, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

fn end(text: &str) -> End {
    let end: std::net::SocketAddr = text.parse().unwrap();
    (end.ip(), end.port())
}

fn only(bytes: &[u8]) -> Result<Message, Malformed> {
    let all: Vec<_> = messages(bytes).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all.into_iter().next().unwrap().1
}

#[test]
fn a_masqueraded_connection_is_read_with_its_zone_and_stamps() {
    let original = (end("10.0.0.5:41000"), end("192.0.2.9:443"));
    let reply = (end("192.0.2.9:443"), end("198.51.100.1:61000"));
    let stamps = [attribute(1, &5_u64.to_be_bytes()), attribute(2, &9_u64.to_be_bytes())].concat();
    let attributes = [
        tuple_of(1, original, &ports(6, original), Some(3)),
        tuple_of(2, reply, &ports(6, reply), None),
        attribute(12, &0xdead_u32.to_be_bytes()),
        attribute(NESTED | 20, &stamps),
        attribute(99, b"a newer kernel's"),
    ];
    let expected = Entry { proto: 6, zone: 3, original, reply, id: Some(0xdead), began: Some(5), ended: Some(9) };
    assert!(expected.is_translated());
    assert_eq!(only(&datagram(CT_NEW, 0, &attributes.concat())), Ok(Message::New(expected.clone())));
    assert_eq!(only(&datagram(CT_DELETE, 0, &attributes.concat())), Ok(Message::Destroyed(expected)));
}

#[test]
fn an_echo_has_its_identifier_for_a_port_and_an_answer_keeps_the_questions_type() {
    let echo = |id: u16, kind: u8| {
        [attribute(1, &[1]), attribute(4, &id.to_be_bytes()), attribute(5, &[kind]), attribute(6, &[0])].concat()
    };
    let (vm, peer, public) = (end("10.0.0.5:0"), end("192.0.2.9:0"), end("198.51.100.1:0"));
    let attributes =
        [tuple_of(1, (vm, peer), &echo(77, 8), None), tuple_of(2, (peer, public), &echo(78, 0), None)].concat();
    let Ok(Message::New(entry)) = only(&datagram(CT_NEW, 0, &attributes)) else { panic!("no entry") };
    assert_eq!(entry.original, (end("10.0.0.5:77"), end("192.0.2.9:2048")));
    assert_eq!(entry.reply, (end("192.0.2.9:2048"), end("198.51.100.1:78")));
    let plain = [tuple_of(1, (vm, peer), &echo(77, 8), None), tuple_of(2, (peer, vm), &echo(77, 0), None)].concat();
    let Ok(Message::New(entry)) = only(&datagram(CT_NEW, 0, &plain)) else { panic!("no entry") };
    assert!(!entry.is_translated());
}

#[test]
fn what_is_cut_or_lacks_a_tuple_is_malformed_and_what_follows_is_read() {
    let original = (end("[fd00::5]:41000"), end("[2001:db8::9]:443"));
    let one = tuple_of(1, original, &ports(6, original), None);
    let half = datagram(CT_NEW, 0, &one);
    let done = datagram(NLMSG_DONE, NLM_F_DUMP_INTR, &[]);
    let both: Vec<_> = messages(&[half.clone(), done].concat()).map(|(_, message)| message).collect();
    assert_eq!(both, [Err(Malformed), Ok(Message::Done { interrupted: true })]);
    assert_eq!(only(half.get(..30).unwrap()), Err(Malformed));
    assert_eq!(only(&[3, 0, 0, 0]), Err(Malformed), "a length below a header's");
    let error = datagram(NLMSG_ERROR, 0, &[]);
    assert_eq!(only(error.get(..16).unwrap()), Err(Malformed));
    let mut refused = datagram(NLMSG_ERROR, 0, &[]);
    refused.get_mut(16..20).unwrap().copy_from_slice(&(-1_i32).to_ne_bytes());
    assert_eq!(only(&refused), Ok(Message::Error(1)));
}

proptest! {
    #[test]
    fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(messages(&bytes).count() <= bytes.len() / HEADER + 1);
    }
}
