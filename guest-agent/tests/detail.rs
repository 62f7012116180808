//! Connections of payloads as the kernel shows them, with real sockets in real namespaces.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::{
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use common::{PEER, Peer, VM, network, wait_for};
use guest_agent::{
    detail::{Budget, Detail, Payload, Seen, Watch, owner::UNKNOWN},
    network::netlink::{Change, Netlink},
};
use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair},
        time::TimeValLike,
    },
    time::{ClockId, clock_gettime},
    unistd::{Pid, getpid},
};
use vestigo_model::{Connection, PayloadUid};

const VM6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
const PEER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 2);

/// The test's thread is the payload; its connections go to the peer.
struct Bed {
    peer: Peer,
    watch: Watch,
    uid: PayloadUid,
    vm: Budget,
}

impl Bed {
    fn new() -> Self {
        let peer = network();
        give6(VM6);
        peer.inside(|| give6(PEER6));
        let watch = Watch::new(here().as_fd()).unwrap();
        assert!(watch.hears_of_short_ones());
        Self { peer, watch, uid: payload(1), vm: Budget::new(1_000_000, 1_000_000) }
    }

    fn look(&mut self) -> Vec<Connection> {
        self.look_at(&[getpid()])
    }

    fn look_at(&mut self, pids: &[Pid]) -> Vec<Connection> {
        self.watch.look(self.uid, || pids.to_vec(), &mut self.vm)
    }

    fn listen(&self, address: IpAddr) -> TcpListener {
        self.peer.inside(move || TcpListener::bind((address, 9000)).unwrap())
    }
}

fn payload(number: u128) -> PayloadUid {
    serde_json::from_value(uuid::Uuid::from_u128(number).to_string().into()).unwrap()
}

fn here() -> OwnedFd {
    std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
}

fn give6(address: Ipv6Addr) {
    let mut netlink = Netlink::open().unwrap();
    let index = netlink.link("eth0").unwrap().index;
    let local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa, address.segments()[7]);
    netlink.apply([address, local].map(|address| Change::address(index, address.into(), 64)).into()).unwrap();
    let text = || std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
    wait_for("the address", || guest_agent::network::ipv6::on_interface(&text(), "eth0").contains(&address));
}

/// Proto and ends; that this process is named is checked on the way.
fn ends(seen: &[Connection]) -> Vec<(u8, SocketAddr, SocketAddr)> {
    let session = nix::unistd::getsid(None).unwrap().as_raw();
    for one in seen {
        assert_eq!(one.pid, (getpid().as_raw(), nix::unistd::getppid().as_raw(), session), "{one:?}");
        assert_eq!((one.uid, one.gid), ((0, 0), (0, 0)), "{one:?}");
        let program = std::env::current_exe().unwrap();
        assert!(program.to_str().unwrap().starts_with(&one.executable) && !one.executable.is_empty(), "{one:?}");
    }
    let mut all: Vec<_> = seen.iter().map(|one| (one.proto, one.local, one.peer)).collect();
    all.sort();
    all
}

#[test]
fn clients_servers_and_connected_datagrams_are_told_once() {
    let mut bed = Bed::new();
    for (own, other) in [(IpAddr::V4(VM), IpAddr::V4(PEER)), (VM6.into(), PEER6.into())] {
        let listener = bed.listen(other);
        let client = TcpStream::connect((other, 9000)).unwrap();
        let server = TcpListener::bind((own, 8000)).unwrap();
        let caller = bed.peer.inside(move || TcpStream::connect((own, 8000)).unwrap());
        assert_eq!(ends(&bed.look()), [(6, client.local_addr().unwrap(), (other, 9000).into())], "not accepted yet");
        let (accepted, _) = server.accept().unwrap();
        let udp = UdpSocket::bind((own, 0)).unwrap();
        udp.connect((other, 5353)).unwrap();
        let expected = [
            (6, (own, 8000).into(), caller.local_addr().unwrap()),
            (17, udp.local_addr().unwrap(), (other, 5353).into()),
        ];
        assert_eq!(ends(&bed.look()), expected);
        assert_eq!(bed.look(), [], "once");
        udp.connect((other, 5354)).unwrap();
        assert_eq!(ends(&bed.look()), [(17, udp.local_addr().unwrap(), (other, 5354).into())]);
        drop((client, accepted, caller, listener, server, udp));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(bed.look(), [], "what was told is not told at its end");
    }
    let counters = bed.watch.counters();
    assert_eq!((counters.told, counters.nameless, counters.missed()), (8, 0, false));
}

#[test]
fn a_call_over_ipv4_to_a_server_of_both_families_is_named_as_on_the_wire() {
    let mut bed = Bed::new();
    let server = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8000)).unwrap();
    let caller = bed.peer.inside(|| TcpStream::connect((VM, 8000)).unwrap());
    let _accepted = server.accept().unwrap();
    assert_eq!(ends(&bed.look()), [(6, (VM, 8000).into(), caller.local_addr().unwrap())]);
}

#[test]
fn an_attempt_that_nobody_answers_is_a_connection_and_what_stays_inside_is_none() {
    let mut bed = Bed::new();
    let inner = TcpListener::bind((VM, 7000)).unwrap();
    let _inside = TcpStream::connect((VM, 7000)).unwrap();
    let _accepted = inner.accept().unwrap();
    let nobody: SocketAddr = (Ipv4Addr::new(10, 9, 0, 77), 80).into();
    let attempt = std::thread::spawn(move || TcpStream::connect_timeout(&nobody, Duration::from_millis(1500)).is_err());
    let mut seen = Vec::new();
    wait_for("the attempt", || {
        seen.extend(bed.look());
        !seen.is_empty()
    });
    assert_eq!((seen.len(), seen[0].peer, seen[0].pid.0), (1, nobody, getpid().as_raw()));
    assert!(attempt.join().unwrap());
}

#[test]
fn a_short_one_between_two_looks_is_told_without_a_process() {
    let mut bed = Bed::new();
    let listener = bed.listen(PEER.into());
    let mut expected = Vec::new();
    for _ in 0..20 {
        let client = TcpStream::connect((PEER, 9000)).unwrap();
        expected.push((6, client.local_addr().unwrap(), SocketAddr::from((PEER, 9000))));
        drop((client, listener.accept().unwrap()));
        let udp = UdpSocket::bind((VM6, 0)).unwrap();
        udp.connect((PEER6, 53)).unwrap();
        expected.push((17, udp.local_addr().unwrap(), (PEER6, 53).into()));
    }
    let mut seen = Vec::new();
    wait_for("the news", || {
        seen.extend(bed.look());
        seen.len() >= expected.len()
    });
    for one in &seen {
        assert_eq!((one.pid, one.uid, one.gid, one.tty), ((0, 0, 0), (UNKNOWN, UNKNOWN), (UNKNOWN, UNKNOWN), 0));
        assert_eq!(one.executable, "");
    }
    let mut told: Vec<_> = seen.iter().map(|one| (one.proto, one.local, one.peer)).collect();
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(bed.look(), []);
    assert_eq!(bed.watch.counters().nameless, 40);
}

/// A process that does nothing until it is killed.
struct Sleeper(Child);

impl Sleeper {
    fn new(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().try_into().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_process_named_is_one_that_holds_the_socket() {
    let mut bed = Bed::new();
    let listener = bed.listen(PEER.into());
    let connect = || (TcpStream::connect((PEER, 9000)).unwrap(), listener.accept().unwrap());

    // A fork: the child got it as its standard error, the parent has closed it.
    let (given, _other) = connect();
    let child = Sleeper::new(Command::new("cat").stderr(OwnedFd::from(given)));
    let idle = Sleeper::new(&mut Command::new("cat"));
    let seen = bed.look_at(&[getpid(), child.pid(), idle.pid()]);
    assert_eq!((seen.len(), seen[0].pid.0, seen[0].pid.1), (1, child.pid().as_raw(), getpid().as_raw()));
    assert!(seen[0].executable.contains("cat") || seen[0].executable.contains("coreutils"), "{}", seen[0].executable);

    // A descriptor on its way through a socket is nobody's, and its maker's number is all there is.
    let (sent, _other) = connect();
    let (left, right) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let fds = [sent.as_raw_fd()];
    let body = [io::IoSlice::new(b"x")];
    sendmsg::<()>(left.as_raw_fd(), &body, &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None).unwrap();
    drop(sent);
    let seen = bed.look_at(&[getpid(), child.pid(), idle.pid()]);
    assert_eq!((seen.len(), seen[0].pid, seen[0].executable.as_str()), (1, (0, 0, 0), ""));
    drop((UnixStream::from(left), UnixStream::from(right)));

    // A process outside of the payload is not named, even if it holds it.
    let (_mine, _other) = connect();
    assert_eq!(bed.look_at(&[idle.pid()])[0].pid, (0, 0, 0));
}

#[test]
fn numbers_are_those_of_the_payload_s_namespaces() {
    let mut bed = Bed::new();
    let listener = bed.listen(PEER.into());
    // PID 1 of the payload, which is uid 0 inside, and a child of it that has the connection.
    let script = format!("exec 2>/dev/null; bash -c 'exec 3<>/dev/tcp/{PEER}/9000; echo $$; exec sleep 60' & wait");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child", "bash", "-c", &script]);
    let mut outer = Sleeper::new(&mut command);
    let mut line = String::new();
    BufReader::new(outer.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let _held = listener.accept().unwrap();
    let children = |pid: Pid| -> Vec<Pid> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        text.split_whitespace().map(|word| Pid::from_raw(word.parse().unwrap())).collect()
    };
    let init = children(outer.pid())[0];
    let child = children(init)[0];
    let seen = bed.look_at(&[init, child]);
    assert_eq!((seen.len(), seen[0].pid.0.to_string()), (1, line.trim().to_owned()));
    assert_eq!((seen[0].pid.1, seen[0].pid.2), (1, 0), "the session began outside");
    assert_eq!((seen[0].uid, seen[0].gid), ((0, 0), (0, 0)));
}

#[test]
fn two_thousand_sockets_stay_bounded_and_are_told_with_time() {
    let mut bed = Bed::new();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(16_384), most).unwrap();
    let sockets: Vec<UdpSocket> = (0..2000)
        .map(|_| {
            let socket = UdpSocket::bind((VM, 0)).unwrap();
            socket.connect((PEER, 9)).unwrap();
            socket
        })
        .collect();
    let begin = Instant::now();
    let first = bed.look();
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert_eq!((first.len(), bed.watch.counters().waiting), (100, 1900));
    ends(&first);
    std::thread::sleep(Duration::from_millis(1100));
    let second = bed.look().len();
    assert!((5..=20).contains(&second), "{second}");
    drop(sockets);
    // What could not be told is counted, or the kernel's own buffer was too small and that is. News come a few at a time.
    wait_for("an account of all", || {
        bed.look();
        let counters = bed.watch.counters();
        counters.untold + counters.told == 2000 || counters.overflows > 0
    });
    let counters = bed.watch.counters();
    assert_eq!(counters.waiting, 0);
    assert!(counters.missed());
}

/// A payload for the loop: a namespace, and this process as its only one.
struct Fake {
    uid: PayloadUid,
    namespace: OwnedFd,
}

impl Payload for &Fake {
    fn uid(&self) -> PayloadUid {
        self.uid
    }
    fn namespace(&self) -> io::Result<OwnedFd> {
        self.namespace.try_clone()
    }
    fn processes(&self) -> Vec<Pid> {
        vec![getpid()]
    }
}

#[test]
fn the_loop_tells_what_is_new_and_what_a_payload_closed_as_it_ended() {
    let bed = Bed::new();
    let listener = bed.listen(PEER.into());
    let fake = Fake { uid: bed.uid, namespace: here() };
    let client = std::cell::RefCell::new(None);
    let (detail, rounds) = (Detail::default(), AtomicUsize::new(0));
    let mut seen = Vec::new();
    detail.run(
        Duration::from_millis(50),
        || match rounds.fetch_add(1, Ordering::Relaxed) {
            0 => Some(vec![&fake]),
            1 => {
                *client.borrow_mut() = Some(TcpStream::connect((PEER, 9000)).unwrap());
                Some(vec![&fake])
            }
            2 => {
                let short = TcpStream::connect((PEER, 9000)).unwrap();
                let _ = (listener.accept().unwrap(), listener.accept().unwrap());
                drop(short);
                std::thread::sleep(Duration::from_millis(100));
                Some(Vec::new())
            }
            _ => None,
        },
        |one| seen.push(one),
    );
    let pids: Vec<i32> = seen
        .iter()
        .map(|one| match one {
            Seen::Connection(one) => one.pid.0,
            Seen::Missed(..) => panic!("{one:?}"),
        })
        .collect();
    assert_eq!(pids, [getpid().as_raw(), 0]);
    assert!(client.borrow().is_some());
}

#[test]
fn a_payload_that_ends_before_the_first_look_is_told_all_the_same() {
    let bed = Bed::new();
    let listener = bed.listen(PEER.into());
    let fake = Fake { uid: bed.uid, namespace: here() };
    let detail = Detail::default();
    detail.begin(&&fake).unwrap();
    // One that is over, one that the peer keeps open, and one that nobody answers any more: the kernel still takes leave of it.
    let all = [0; 3].map(|_| (TcpStream::connect((PEER, 9000)).unwrap(), listener.accept().unwrap()));
    let mut expected = all.each_ref().map(|(client, _)| client.local_addr().unwrap());
    expected.sort();
    let [(over, its_end), (half, _open), (leaving, _deaf)] = all;
    drop((over, its_end, half));
    std::thread::sleep(Duration::from_millis(100));
    bed.peer.inside(|| Netlink::open().unwrap().delete("eth0").unwrap());
    drop(leaving);
    std::thread::sleep(Duration::from_millis(100));
    let mut seen = Vec::new();
    detail.end(fake.uid, &mut |one| match one {
        Seen::Connection(one) => seen.push(one.local),
        Seen::Missed(..) => panic!("{one:?}"),
    });
    seen.sort();
    assert_eq!(seen, expected);
    detail.end(fake.uid, &mut |one| panic!("{one:?}"));
}

#[test]
fn what_is_missed_is_said_at_the_end() {
    let bed = Bed::new();
    let fake = Fake { uid: bed.uid, namespace: here() };
    let detail = Detail::default();
    let mut seen = Vec::new();
    let mut record = |one| seen.push(one);
    let sockets: Vec<UdpSocket> = (0..150).map(|_| UdpSocket::bind((VM, 0)).unwrap()).collect();
    sockets.iter().for_each(|socket| socket.connect((PEER, 9)).unwrap());
    detail.round(&[&fake], &mut record).unwrap();
    drop(sockets);
    std::thread::sleep(Duration::from_secs(1));
    detail.end(fake.uid, &mut record);
    let Some(Seen::Missed(uid, counters)) = seen.pop() else { panic!("nothing missed") };
    assert_eq!(uid, fake.uid);
    // A hundred at once, and one or a few more by the time that went by.
    assert!(
        (100..=120).contains(&counters.told) && seen.len() == usize::try_from(counters.told).unwrap(),
        "{counters}"
    );
    assert_eq!(counters.untold + counters.told, 150, "{counters}");
}

/// And prints what a round costs: 50 payloads of 20 sockets each.
#[test]
fn fifty_payloads_are_told_once_however_often_it_looks() {
    network();
    let mut all = Vec::new();
    for number in 0..50 {
        let made = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let mut netlink = Netlink::open().unwrap();
            let address = IpAddr::from([10, 8, 0, 1]);
            // All of a network on the loopback interface is here.
            netlink.apply(vec![Change::up(1), Change::address(1, address, 24)]).unwrap();
            let other = IpAddr::from([10, 8, 0, 2]);
            let listener = TcpListener::bind((other, 80)).unwrap();
            let sockets: Vec<_> = (0..10)
                .map(|number| {
                    let udp = UdpSocket::bind((address, 0)).unwrap();
                    udp.connect((other, 9)).unwrap();
                    // Each counts twice: as the one that calls and as the one that is called.
                    let tcp = (number % 2 == 0)
                        .then(|| (TcpStream::connect((other, 80)).unwrap(), listener.accept().unwrap()));
                    (udp, tcp)
                })
                .collect();
            (Fake { uid: payload(number), namespace: here() }, sockets, listener)
        });
        all.push(made.join().unwrap());
    }
    let payloads: Vec<&Fake> = all.iter().map(|(fake, ..)| fake).collect();
    let detail = Detail::default();
    let mut count = 0;
    let cpu = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().num_microseconds();
    let begin = cpu();
    detail.round(&payloads, &mut |_| count += 1).unwrap();
    let first = cpu() - begin;
    assert_eq!(count, 1000);
    let begin = cpu();
    for _ in 0..20 {
        detail.round(&payloads, &mut |_| count += 1).unwrap();
    }
    let later = (cpu() - begin) / 20;
    assert_eq!(count, 1000);
    println!("detail_first_round_us: {first}\ndetail_round_us: {later}");
}

/// A namespace without sockets is given to the next payload as it is; the watch must not keep that from happening for long.
#[test]
fn a_watch_that_is_over_leaves_no_socket_behind() {
    network();
    let (namespace, counts) = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        (here(), std::fs::File::open("/proc/thread-self/net/sockstat").unwrap())
    })
    .join()
    .unwrap();
    let used = || {
        let mut buffer = [0; 256];
        let count = std::os::unix::fs::FileExt::read_at(&counts, &mut buffer, 0).unwrap();
        let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
        text.lines().next().unwrap().to_owned()
    };
    assert_eq!(used(), "sockets: used 0");
    let detail = Detail::default();
    let fake = Fake { uid: payload(1), namespace };
    detail.round(&[&fake], &mut |_| {}).unwrap();
    assert_ne!(used(), "sockets: used 0");
    let begin = Instant::now();
    detail.end(fake.uid, &mut |_| {});
    let ended = begin.elapsed();
    wait_for("the end of the sockets", || used() == "sockets: used 0");
    println!("detail_end_us: {}\ndetail_let_go_us: {}", ended.as_micros(), begin.elapsed().as_micros());
    assert!(begin.elapsed() < Duration::from_secs(2));
}
