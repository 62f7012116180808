//! Parts of the kernel that no payload needs.

use std::{env, fs, path::Path};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    libc,
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::setsid,
};

use super::{Probe, Stage, Verdict};
use crate::{
    selftest::{Orders, broken, held, not_tested},
    sys::probe,
};

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "vsock",
        rules: &["R-ISO-29", "R-ISO-37"],
        what: "a socket to the hypervisor can be made",
        stage: Stage::Attack,
        run: vsock,
    },
    Probe {
        name: "packet-sockets",
        rules: &["R-ISO-37"],
        what: "raw or packet sockets can be made",
        stage: Stage::Attack,
        run: packet_sockets,
    },
    Probe {
        name: "rare-families",
        rules: &["R-ISO-23"],
        what: "sockets of rare families can be made",
        stage: Stage::Attack,
        run: rare_families,
    },
    Probe {
        name: "io-uring",
        rules: &["R-ISO-29", "R-ISO-37"],
        what: "io_uring answers, whose operations no filter sees",
        stage: Stage::Attack,
        run: io_uring,
    },
    Probe {
        name: "terminal-input",
        rules: &["R-ISO-29"],
        what: "input can be pushed into a terminal",
        stage: Stage::Attack,
        run: terminal_input,
    },
    Probe {
        name: "device-files",
        rules: &["R-ISO-8", "R-ISO-23"],
        what: "a device file can be made",
        stage: Stage::Attack,
        run: device_files,
    },
    Probe {
        name: "user-namespace",
        rules: &["R-ISO-23"],
        what: "a user namespace can be made, and with it rights",
        stage: Stage::Attack,
        run: user_namespace,
    },
    Probe {
        name: "net-namespace",
        rules: &["R-ISO-37"],
        what: "a network namespace can be made",
        stage: Stage::Attack,
        run: net_namespace,
    },
];

/// The first that opens.
fn opens(sockets: &[(&'static str, i32, i32, i32)]) -> Option<&'static str> {
    let open = |(_, family, kind, protocol): &&(&str, i32, i32, i32)| probe::socket(*family, *kind, *protocol).is_ok();
    sockets.iter().find(open).map(|(name, ..)| *name)
}

fn none_of(sockets: &[(&'static str, i32, i32, i32)]) -> Verdict {
    match opens(sockets) {
        None => held(format!("none of {} can be made", sockets.len())),
        Some(name) => broken(format!("{name} can be made")),
    }
}

fn vsock(_: &Orders) -> Verdict {
    none_of(&[("a stream", libc::AF_VSOCK, libc::SOCK_STREAM, 0), ("a datagram", libc::AF_VSOCK, libc::SOCK_DGRAM, 0)])
}

fn packet_sockets(_: &Orders) -> Verdict {
    none_of(&[
        ("raw ICMP", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        ("raw IPv4", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW),
        ("raw ICMPv6", libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
        ("packet", libc::AF_PACKET, libc::SOCK_RAW, 0),
        ("packet without headers", libc::AF_PACKET, libc::SOCK_DGRAM, 0),
    ])
}

fn rare_families(_: &Orders) -> Verdict {
    none_of(&[
        ("alg", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
        ("xdp", libc::AF_XDP, libc::SOCK_RAW, 0),
        ("tipc", libc::AF_TIPC, libc::SOCK_SEQPACKET, 0),
        ("can", libc::AF_CAN, libc::SOCK_RAW, 1),
        ("key", libc::AF_KEY, libc::SOCK_RAW, 2),
        ("bluetooth", libc::AF_BLUETOOTH, libc::SOCK_STREAM, 3),
        ("rds", libc::AF_RDS, libc::SOCK_SEQPACKET, 0),
        ("netfilter", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
        ("audit", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT),
    ])
}

fn io_uring(_: &Orders) -> Verdict {
    match probe::io_uring() {
        Err(error @ (Errno::ENOSYS | Errno::EPERM)) => held(format!("io_uring_setup: {error}")),
        Err(error) => broken(format!("io_uring_setup answers {error}")),
        Ok(()) => broken("a ring can be made"),
    }
}

fn terminal_input(_: &Orders) -> Verdict {
    // A terminal of this process's own, so that no shell is at its other end.
    let terminal = || -> Result<fs::File, Errno> {
        let main = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
        grantpt(&main)?;
        unlockpt(&main)?;
        let name = ptsname_r(&main)?;
        let _ = setsid();
        // Becomes the terminal of the new session, into which everybody in it may push.
        let side = fs::OpenOptions::new().read(true).write(true).open(name).map_err(|_| Errno::EIO)?;
        std::mem::forget(main);
        Ok(side)
    };
    match terminal() {
        Err(error) => not_tested(format!("no terminal could be made: {error}")),
        Ok(terminal) => match probe::push_input(&terminal, b'x') {
            Ok(()) => broken("TIOCSTI works"),
            Err(error) => held(format!("TIOCSTI: {error}")),
        },
    }
}

fn device_files(_: &Orders) -> Verdict {
    let home = env::var("HOME").unwrap_or_else(|_| "/work".to_owned());
    let mut tried = 0;
    for folder in [home.as_str(), "/tmp", "/var/tmp", "/dev/shm"] {
        for (kind, device) in [(SFlag::S_IFCHR, makedev(1, 3)), (SFlag::S_IFBLK, makedev(7, 0))] {
            let path = Path::new(folder).join(format!("selftest-device-{}", std::process::id()));
            let made = mknod(&path, kind, Mode::S_IRUSR, device);
            let _ = fs::remove_file(&path);
            if made.is_ok() {
                return broken(format!("one can be made in {folder}"));
            }
            tried += 1;
        }
    }
    held(format!("none of {tried} can be made"))
}

fn user_namespace(_: &Orders) -> Verdict {
    match unshare(CloneFlags::CLONE_NEWUSER) {
        Ok(()) => broken("unshare makes one"),
        Err(error) => held(format!("unshare: {error}")),
    }
}

fn net_namespace(_: &Orders) -> Verdict {
    let ways = [CloneFlags::CLONE_NEWNET, CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUSER];
    match ways.into_iter().find_map(|flags| unshare(flags).ok()) {
        Some(()) => broken("unshare makes one"),
        None => held("neither alone nor with a user namespace"),
    }
}
