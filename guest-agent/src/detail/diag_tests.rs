#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]
use proptest::prelude::*;

use super::*;

/// As the kernel lays it out.
fn encode(sequence: u32, socket: &Socket, gone: bool) -> Vec<u8> {
    let v4 = socket.local.is_ipv4();
    let mut body = vec![if v4 { 2 } else { 10 }, 1, 0, 0];
    body.extend(socket.local.port().to_be_bytes());
    body.extend(socket.peer.port().to_be_bytes());
    for end in [socket.local, socket.peer] {
        let mut address = match end.ip() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        address.resize(16, 0);
        body.extend(address);
    }
    body.extend([0; 4]);
    body.extend(socket.cookie.to_ne_bytes());
    body.extend([0; 12]);
    body.extend(socket.uid.to_ne_bytes());
    body.extend(socket.inode.to_ne_bytes());
    if gone {
        // Another attribute first, of a length that needs padding.
        for (kind, content) in [(8_u16, &[9_u8, 9][..]), (PROTOCOL, &[socket.proto])] {
            body.extend((4 + content.len() as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(content);
            body.resize(body.len().next_multiple_of(4), 0);
        }
    }
    frame(BY_FAMILY, sequence, &body)
}

fn frame(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((16 + body.len() as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend([0; 2]);
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

fn any_socket() -> impl Strategy<Value = Socket> {
    let end = |v4: bool| {
        (any::<u32>(), any::<u128>(), any::<u16>()).prop_map(move |(four, six, port)| {
            let six = Ipv6Addr::from(six | 1 << 127);
            SocketAddr::new(if v4 { Ipv4Addr::from(four).into() } else { six.into() }, port)
        })
    };
    any::<bool>().prop_flat_map(move |v4| {
        let numbers = (any::<u64>(), any::<u32>(), any::<u32>());
        (end(v4), end(v4), numbers, prop_oneof![Just(TCP), Just(UDP)])
            .prop_map(|(local, peer, (cookie, inode, uid), proto)| Socket { proto, local, peer, cookie, inode, uid })
    })
}

proptest! {
    #[test]
    fn what_the_kernel_says_is_read(sockets in prop::collection::vec(any_socket(), 0..20), sequence: u32, gone: bool) {
        let mut bytes: Vec<u8> = sockets.iter().flat_map(|socket| encode(sequence, socket, gone)).collect();
        bytes.extend(frame(NLMSG_DONE, sequence, &(-4_i32).to_ne_bytes()));
        for socket in &sockets {
            let read: Vec<Message> = messages(&bytes, (!gone).then_some(socket.proto)).collect();
            prop_assert_eq!(read.len(), sockets.len() + 1);
        }
        if gone {
            let mut expected: Vec<Message> = sockets.iter().map(|socket| Message::Socket(sequence, *socket)).collect();
            expected.push(Message::End(sequence, 4));
            prop_assert_eq!(messages(&bytes, None).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..600), protocol: Option<u8>) {
        prop_assert!(messages(&bytes, protocol).count() <= bytes.len() / 16);
    }

    #[test]
    fn a_spoilt_answer_ends(socket in any_socket(), at in 0_usize..104, value: u8, cut in 0_usize..104) {
        let mut bytes = [encode(1, &socket, true), encode(1, &socket, true)].concat();
        bytes[at] = value;
        bytes.truncate(bytes.len() - cut);
        prop_assert!(messages(&bytes, None).count() <= bytes.len() / 16);
    }
}

#[test]
fn a_gone_socket_without_a_protocol_is_none() {
    let socket = Socket {
        proto: TCP,
        local: "[2001:db8::1]:1".parse().unwrap(),
        peer: "[2001:db8::2]:2".parse().unwrap(),
        cookie: 3,
        inode: 4,
        uid: 5,
    };
    assert_eq!(messages(&encode(0, &socket, false), None).count(), 0);
    assert_eq!(messages(&encode(0, &socket, false), Some(UDP)).count(), 1);
}

#[test]
fn the_remains_of_a_connection_are_none() {
    let end = |port| SocketAddr::from(([10, 0, 0, 1], port));
    let socket = Socket { proto: TCP, local: end(1), peer: end(2), cookie: 3, inode: 0, uid: 0 };
    let mut bytes = encode(1, &socket, false);
    assert_eq!(messages(&bytes, Some(TCP)).next(), Some(Message::Socket(1, socket)));
    bytes[HEADER + 2] = WAITING;
    assert_eq!(messages(&bytes, Some(TCP)).next(), None);
}

#[test]
fn a_request_has_its_length_and_states() {
    let bytes = request((10, TCP), 7);
    assert_eq!((bytes.len(), u32_at(&bytes, 0)), (72, Some(72)));
    assert_eq!(&bytes[16..20], [10, 6, 0, 0]);
    let states = u32_at(&bytes, 20).unwrap();
    // Neither listening (10), waiting (6) nor half-open of a peer's making (3, 12).
    assert_eq!(states & (1 << 10 | 1 << 6 | 1 << 3 | 1 << 12), 0);
    assert_eq!(u32_at(&request((2, UDP), 7), 20), Some(2));
}

#[test]
fn mapped_addresses_are_what_they_are_on_the_wire_and_what_stays_inside_is_known() {
    let end = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
    let of = |local: &str, peer: &str, port| Socket {
        proto: TCP,
        local: end(local, 1),
        peer: end(peer, port),
        cookie: 0,
        inode: 0,
        uid: 0,
    };
    let bytes = encode(1, &of("::ffff:10.0.0.1", "::ffff:10.0.0.2", 80), false);
    let Some(Message::Socket(_, read)) = messages(&bytes, Some(TCP)).next() else { unreachable!("no socket") };
    assert_eq!((read.local, read.peer), (end("10.0.0.1", 1), end("10.0.0.2", 80)));
    assert!(read.leaves());
    for (peer, port) in [("127.0.0.9", 80), ("10.0.0.1", 80), ("0.0.0.0", 80), ("10.0.0.2", 0), ("::1", 80)] {
        assert!(!of("10.0.0.1", peer, port).leaves(), "{peer}");
    }
}
