//! Ways to talk to others on the same machine.

use std::os::{
    linux::net::SocketAddrExt,
    unix::net::{SocketAddr, UnixStream},
};

use nix::{
    errno::Errno,
    mqueue::{MQ_OFlag, mq_open},
    sys::stat::Mode,
};

use super::{Probe, Stage, Verdict};
use crate::{
    selftest::{Orders, broken, held, not_tested},
    sys::probe::{self, Segment},
};

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "shared-memory",
        rules: &["R-ISO-10", "R-ISO-26"],
        what: "a System V segment of the pilot or of another payload is found",
        stage: Stage::Attack,
        run: shared_memory,
    },
    Probe {
        name: "message-queues",
        rules: &["R-ISO-10", "R-ISO-26"],
        what: "a POSIX queue of the pilot or of another payload is found",
        stage: Stage::Attack,
        run: message_queues,
    },
    Probe {
        name: "abstract-sockets",
        rules: &["R-ISO-10", "R-ISO-29"],
        what: "an abstract socket of the pilot or of another payload answers",
        stage: Stage::Attack,
        run: abstract_sockets,
    },
    Probe {
        name: "keyring",
        rules: &["R-ISO-26", "R-ISO-33"],
        what: "key rings answer, where keys outlive payloads",
        stage: Stage::Attack,
        run: keyring,
    },
    Probe {
        name: "residue-ipc",
        rules: &["R-ISO-10", "R-ISO-33"],
        what: "shared memory, a queue or a socket of an earlier payload is there",
        stage: Stage::After,
        run: residue,
    },
];

fn find_segment(keys: &[i32]) -> Option<String> {
    let found = keys.iter().find(|key| !matches!(Segment::find(**key), Err(Errno::ENOENT | Errno::ENOSYS)));
    found.map(|key| format!("the segment {key:#x} is there"))
}

fn find_queue(names: &[String]) -> Option<String> {
    let there = |name: &&String| {
        let answer = mq_open(name.as_str(), MQ_OFlag::O_RDONLY, Mode::empty(), None);
        !matches!(answer, Err(Errno::ENOENT | Errno::ENOSYS))
    };
    names.iter().find(there).map(|name| format!("the queue {name} is there"))
}

fn find_socket(names: &[String]) -> Option<String> {
    let answers = |name: &&String| {
        let address = SocketAddr::from_abstract_name(name.as_bytes());
        address.is_ok_and(|address| UnixStream::connect_addr(&address).is_ok())
    };
    names.iter().find(answers).map(|name| format!("the socket @{name} answers"))
}

fn verdict(baits: usize, found: Option<String>) -> Verdict {
    match found {
        Some(found) => broken(found),
        None if baits == 0 => not_tested("no bait could be laid"),
        None => held(format!("none of {baits} is there")),
    }
}

fn shared_memory(orders: &Orders) -> Verdict {
    verdict(orders.keys.len(), find_segment(&orders.keys))
}

fn message_queues(orders: &Orders) -> Verdict {
    verdict(orders.queues.len(), find_queue(&orders.queues))
}

fn abstract_sockets(orders: &Orders) -> Verdict {
    verdict(orders.names.len(), find_socket(&orders.names))
}

fn keyring(_: &Orders) -> Verdict {
    match probe::session_keyring() {
        Err(error @ (Errno::ENOSYS | Errno::EPERM)) => held(format!("keyctl: {error}")),
        Err(error) => broken(format!("keyctl answers {error}")),
        Ok(number) => broken(format!("the session keyring has the number {number}")),
    }
}

fn residue(orders: &Orders) -> Verdict {
    let baits = orders.keys.len() + orders.queues.len() + orders.names.len();
    let found =
        find_segment(&orders.keys).or_else(|| find_queue(&orders.queues)).or_else(|| find_socket(&orders.names));
    verdict(baits, found)
}
