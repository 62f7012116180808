#![allow(clippy::unwrap_used)]
use std::{net::UdpSocket, os::fd::AsRawFd};

use proptest::prelude::*;

use super::*;

const TEXT: &str = "Name:\tNSpid: 9\\nUid:\t0\t0\nState:\tS\nPid:\t4711\nPPid:\t4700\nUid:\t200003\t200004\t0\t0\n\
                    Gid:\t5\t6\t0\t0\nNStgid:\t4711\t12\nNSpid:\t4711\t12\t1\nNSpgid:\t1\t1\t1\nNSsid:\t4700\t3\t0\n";

#[test]
fn numbers_are_the_payload_s() {
    let status = Status::parse(TEXT).unwrap();
    assert_eq!((status.parent, status.uid, status.gid), (4700, (200_003, 200_004), (5, 6)));
    let parent = |pids: &[i32]| Status { pids: pids.to_vec(), ..status.clone() };
    assert_eq!(status.numbers(Some(&parent(&[4700, 3]))), (12, 3, 3), "not what it calls itself in its own namespace");
    assert_eq!(status.numbers(Some(&parent(&[4700]))), (12, 0, 3), "the parent is outside");
    assert_eq!(status.numbers(None), (12, 0, 3));
    let bare = Status { sessions: vec![7], ..parent(&[5]) };
    assert_eq!(bare.numbers(Some(&parent(&[4]))), (5, 4, 7), "without a PID namespace");
}

#[test]
fn users_are_the_payload_s() {
    let ids = Ids::parse("      1000     200003          1\n 0 100000 65536\nnonsense\n1 2\n");
    let called: Vec<u32> = [200_003, 200_004, 100_000, 165_535, 165_536, 0].map(|id| ids.inside(id)).into();
    assert_eq!(called, [1000, UNKNOWN, 0, 65_535, UNKNOWN, UNKNOWN]);
    assert_eq!(Ids::parse("0 0 4294967295").inside(1000), 1000);
}

#[test]
fn a_terminal_is_found_behind_any_name() {
    assert_eq!(tty("12 (a) S 1 1) S 1 12 12 34816 -1"), Some(34816));
    assert_eq!(tty("12 (sh) S 1 12 12 0 -1"), Some(0));
    assert_eq!(tty("12 (sh"), None);
    assert_eq!((inode("socket:[77]"), inode("pipe:[77]"), inode("socket:[x]")), (Some(77), None, None));
}

#[test]
fn the_holder_is_this_process() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let path = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
    let inode = inode(path.to_str().unwrap()).unwrap();
    let me = Pid::this();
    let found = find(&[me, Pid::from_raw(i32::MAX)], BTreeSet::from([inode, u32::MAX]), None);
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [inode]);
    let owner = found.get(&inode).unwrap();
    let session = nix::unistd::getsid(None).unwrap();
    assert_eq!(owner.pid, (me.as_raw(), Pid::parent().as_raw(), session.as_raw()));
    assert_eq!(owner.uid, (nix::unistd::getuid().as_raw(), nix::unistd::geteuid().as_raw()));
    assert_eq!(owner.gid, (nix::unistd::getgid().as_raw(), nix::unistd::getegid().as_raw()));
    let program = std::env::current_exe().unwrap();
    let program = program.to_str().unwrap();
    assert_eq!(owner.executable, program.get(..PATH).unwrap_or(program));
}

proptest! {
    #[test]
    fn any_text_is_taken(text in "(?s).{0,400}", lines in prop::collection::vec("(NSpid|NSsid|PPid|Uid|Gid):[\t 0-9x-]{0,12}", 0..9)) {
        let _ = (Status::parse(&text), tty(&text), inode(&text), Ids::parse(&text));
        let lines = lines.join("\n");
        if let Some(status) = Status::parse(&lines) {
            prop_assert!(status.pids.len() <= 33);
            let _ = status.numbers(Some(&status));
        }
    }

    #[test]
    fn ids_never_overflow(rows in prop::collection::vec(any::<(u32, u32, u32)>(), 0..5), id: u32) {
        let text: String = rows.iter().map(|(a, b, c)| format!("{a} {b} {c}\n")).collect();
        let _ = Ids::parse(&text).inside(id);
    }
}
