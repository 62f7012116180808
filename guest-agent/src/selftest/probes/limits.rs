//! Taking everything. Each stops by itself soon after the limit, whether it is in force or not.

use std::time::{Duration, Instant};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};

use super::{Probe, Stage, Verdict};
use crate::{
    selftest::{Orders, broken, held, not_tested},
    sys,
};

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "fork-bomb",
        rules: &["R-ISO-34"],
        what: "more processes can be made than the limit allows",
        stage: Stage::Limited,
        run: fork_bomb,
    },
    Probe {
        name: "memory-bomb",
        rules: &["R-ISO-34"],
        what: "more memory can be used than the limit allows",
        stage: Stage::Limited,
        run: memory_bomb,
    },
    Probe {
        name: "agent-answers",
        rules: &["R-ISO-29", "R-ISO-34"],
        what: "the agent does not answer while payloads take all they can get",
        stage: Stage::Client,
        run: |_| not_tested("the client asks"),
    },
];

/// How long the bomb presses against the limit.
const PRESSURE: Duration = Duration::from_secs(1);
const MIB: usize = 1 << 20;
/// So far past the limit it goes.
const BEYOND: u32 = 64;

fn fork_bomb(orders: &Orders) -> Verdict {
    if orders.pids_limit == 0 {
        return not_tested("no limit was asked for");
    }
    let until = Instant::now() + PRESSURE;
    let mut children: Vec<Pid> = Vec::new();
    let mut refused = 0_u64;
    while Instant::now() < until && children.len() < usize::try_from(orders.pids_limit + BEYOND).unwrap_or(0) {
        match sys::fork_single_threaded() {
            Ok(Some(child)) => children.push(child),
            Ok(None) => {
                std::thread::sleep(PRESSURE * 4);
                sys::exit_now(0);
            }
            Err(Errno::EAGAIN) => refused += 1,
            Err(error) => return broken(format!("fork answers {error}")),
        }
    }
    for child in &children {
        let _ = kill(*child, Signal::SIGKILL);
        let _ = waitpid(*child, None);
    }
    let (made, limit) = (children.len(), orders.pids_limit);
    if refused > 0 && made <= usize::try_from(limit).unwrap_or(0) {
        held(format!("{made} processes with a limit of {limit}; {refused} more were refused"))
    } else {
        broken(format!("{made} processes with a limit of {limit}"))
    }
}

fn memory_bomb(orders: &Orders) -> Verdict {
    let limit = usize::try_from(orders.memory_limit).unwrap_or(usize::MAX);
    if limit == 0 {
        return not_tested("no limit was asked for");
    }
    let mut held_blocks: Vec<Vec<u8>> = Vec::new();
    let past = limit / MIB + usize::try_from(BEYOND).unwrap_or(0);
    for number in 0..past {
        let mut block: Vec<u8> = Vec::new();
        if block.try_reserve_exact(MIB).is_err() {
            return held(format!("{number} MiB with a limit of {} MiB", limit / MIB));
        }
        // Written, with something that is not zero: a page that nobody wrote to is no memory yet.
        block.resize(MIB, u8::try_from(number % 255).unwrap_or(0) + 1);
        held_blocks.push(block);
    }
    let sum: u64 = held_blocks.iter().filter_map(|block| block.last()).map(|byte| u64::from(*byte)).sum();
    broken(format!("{past} MiB could be used with a limit of {} MiB (check {sum})", limit / MIB))
}
