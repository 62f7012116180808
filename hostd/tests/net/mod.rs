//! Interfaces for tests: in a namespace of their own, without a way out.

use std::{
    fs::{self, File},
    io::Write as _,
    process::Command,
    sync::mpsc,
    thread,
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{geteuid, gettid},
};
use pnet::datalink::{self, Channel, Config, DataLinkSender};

/// Puts this thread, and those that it starts, into a network namespace of its own. False, with the reason on standard error, where
/// that is not possible; a failure in CI.
pub fn isolated() -> bool {
    let why = if geteuid().is_root() {
        unshare(CloneFlags::CLONE_NEWNET).err().map(|e| e.to_string())
    } else {
        Some("no root".into())
    };
    if let Some(why) = why {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "this test needs a network namespace: {why}");
        eprintln!("SKIPPED: this test needs a network namespace: {why}");
        return false;
    }
    // No router solicitations and the like: every frame is the test's.
    for which in ["all", "default"] {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
    }
    true
}

/// Runs ip(8) and gives what it says.
pub fn ip(arguments: &[&str]) -> String {
    let done = Command::new("ip").args(arguments).output().unwrap();
    assert!(done.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

pub fn up(interfaces: &[&str]) {
    for interface in interfaces {
        ip(&["link", "set", interface, "up"]);
    }
}

/// A host at the other end of a veth pair, in a namespace of its own, where its interface is called `peer`.
pub struct Neighbour {
    work: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    interface: String,
}

impl Neighbour {
    pub fn start(interface: &str, own: &str, its: &str) -> Self {
        let (work, jobs) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (there, ready) = mpsc::channel();
        thread::spawn(move || {
            assert!(isolated());
            there.send(gettid()).unwrap();
            jobs.iter().for_each(|job| job());
        });
        let namespace = format!("/proc/{}/task/{}/ns/net", std::process::id(), ready.recv().unwrap());
        ip(&["link", "add", interface, "type", "veth", "peer", "name", "peer", "netns", &namespace]);
        ip(&["addr", "add", own, "dev", interface]);
        ip(&["link", "set", interface, "up"]);
        let neighbour = Self { work, interface: interface.to_owned() };
        let its = its.to_owned();
        neighbour.run(move || {
            ip(&["addr", "add", &its, "dev", "peer"]);
            ip(&["link", "set", "peer", "up"]);
        });
        neighbour
    }

    /// Runs something there.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.work.send(Box::new(move || done.send(job()).unwrap())).unwrap();
        result.recv().unwrap()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        ip(&["link", "del", &self.interface]);
    }
}

/// Sends frames out through an interface.
pub struct Sender(Box<dyn DataLinkSender>);

impl Sender {
    pub fn new(interface: &str) -> Self {
        let found = datalink::interfaces().into_iter().find(|one| one.name == interface).unwrap();
        let config = Config { promiscuous: false, ..Config::default() };
        match datalink::channel(&found, config).unwrap() {
            Channel::Ethernet(sender, _) => Self(sender),
            _ => unreachable!("pnet gave no Ethernet channel"),
        }
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.0.send_to(frame, None).unwrap().unwrap();
    }
}

/// An IPv4 datagram from 10.9.0.1 to 10.9.0.2, in Ethernet.
pub fn udp(ports: (u16, u16), payload: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame.extend_from_slice(&u16::try_from(28 + payload).unwrap().to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    frame.extend_from_slice(&ports.0.to_be_bytes());
    frame.extend_from_slice(&ports.1.to_be_bytes());
    frame.extend_from_slice(&u16::try_from(8 + payload).unwrap().to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.resize(frame.len() + payload, 0);
    frame
}

/// The guest's side of a tap: what QEMU holds. The tap goes with it.
pub struct Guest(File);

impl Guest {
    pub fn boot(tap: &str) -> Self {
        let guest = Self(tun::open(tap));
        up(&[tap]);
        guest
    }

    /// A TCP segment as a guest with offload hands it over, of that many payload bytes.
    pub fn segmented(&self, payload: usize) -> Vec<u8> {
        let mut frame = udp((4000, 443), 0);
        frame[23] = 6;
        frame[16..18].copy_from_slice(&u16::try_from(40 + payload).unwrap().to_be_bytes());
        frame.truncate(38);
        frame.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 255, 255, 0, 0, 0, 0]);
        frame.resize(frame.len() + payload, 7);
        frame
    }

    /// Sends a frame; if it is segmented, says so in the virtio header, with the checksum left to others.
    pub fn send(&mut self, frame: &[u8], segmented: bool) {
        let mut message = vec![0; 10];
        if segmented {
            // VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, header 54, segments of 1448, checksum at 34 + 16.
            message[..2].copy_from_slice(&[1, 1]);
            for (at, value) in [(2, 54_u16), (4, 1448), (6, 34), (8, 16)] {
                message[at..at + 2].copy_from_slice(&value.to_ne_bytes());
            }
        }
        message.extend_from_slice(frame);
        assert_eq!(self.0.write(&message).unwrap(), message.len());
    }
}

mod tun {
    #![allow(unsafe_code)]
    use std::{fs::File, mem::MaybeUninit, os::fd::AsRawFd as _};

    pub fn open(name: &str) -> File {
        let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        // SAFETY: all zeroes is a valid value of the struct.
        let mut request = unsafe { MaybeUninit::<libc::ifreq>::zeroed().assume_init() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags =
            libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap();
        // SAFETY: the request is a whole `ifreq`, which is what TUNSETIFF takes, and the descriptor is open.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        file
    }
}
