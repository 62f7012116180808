//! The system call filter of a payload: what is refused is listed with its reason in [`policy`]; the rest is allowed.
//!
//! It is compiled once, before the fork, and applied in the payload's process between fork and exec with two system calls
//! and no allocation. `seccompiler` loads it but does not compile it: its filters know one answer (we need several), kill on
//! a foreign architecture only, and compare call numbers one after the other. Loading runs the program once for every call
//! number of the kernel, so here it is a search tree over the numbers.

pub mod policy;

use std::collections::BTreeMap;

use nix::errno::Errno;
use seccompiler::{BpfProgram, sock_filter};

pub use policy::{Group, groups};
use policy::{Call, Check, LAST_KNOWN};

/// What the payload may do with namespaces of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: no new namespaces, no mounts.
    Strict,
    /// User namespaces and mounts in them (a payload that runs `apptainer`), but no network namespaces.
    Nested,
}

/// The filter was not applied.
#[derive(Debug, thiserror::Error)]
#[error("the system call filter could not be applied: {0} (the kernel needs CONFIG_SECCOMP_FILTER)")]
pub struct SeccompError(#[from] seccompiler::Error);

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

// linux/seccomp.h: actions, and places in struct seccomp_data.
const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;
// linux/bpf_common.h: load a word, and with a constant, jumps, return.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_NOT_LESS: u16 = 0x35;
const RETURN: u16 = 0x06;

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(BpfProgram);

impl Filter {
    /// Compiles the policy for a mode.
    #[must_use]
    pub fn compile(mode: Mode) -> Self {
        let mut program = vec![
            statement(LOAD, ARCHITECTURE_AT),
            jump(IF_EQUAL, ARCHITECTURE, 1, 0),
            // No program of ours makes such a call by accident, and a 32-bit program whose every call is refused cannot even
            // exit: "Bad system call" says more than the crash that would follow.
            statement(RETURN, KILL_PROCESS),
            statement(LOAD, NUMBER_AT),
        ];
        program.extend(tree(&segments(mode)));
        Self(program)
    }

    /// Filters the calling thread and all that it starts, for ever. Also sets no_new_privs.
    ///
    /// # Errors
    /// The kernel has no seccomp filters.
    pub fn apply(&self) -> Result<(), SeccompError> {
        Ok(seccompiler::apply_filter(&self.0)?)
    }
}

/// What becomes of one or more neighbouring call numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Refuse(Errno),
    Check(&'static [Check]),
}

/// First number of each segment and its verdict, in order, from 0.
fn segments(mode: Mode) -> Vec<(u32, Verdict)> {
    let mut verdicts = BTreeMap::from([(0, Verdict::Allow)]);
    let calls: BTreeMap<u32, &Call> = policy::calls(mode).map(|call| (call.number(), call)).collect();
    for (number, call) in calls {
        let verdict = if call.checks.is_empty() { Verdict::Refuse(call.errno) } else { Verdict::Check(call.checks) };
        verdicts.insert(number, verdict);
        verdicts.insert(number + 1, Verdict::Allow);
    }
    // What is newer than this list does not exist, as on an older kernel: nobody has judged it. The same answer for the
    // x32 calls (bit 30), which have our architecture's name but other numbers.
    verdicts.insert(LAST_KNOWN + 1, Verdict::Refuse(Errno::ENOSYS));
    // A debugger's way to skip a call; it is none.
    verdicts.insert(u32::MAX, Verdict::Allow);
    let mut segments: Vec<_> = verdicts.into_iter().collect();
    segments.dedup_by_key(|(_, verdict)| *verdict);
    segments
}

/// A binary search for the segment of the number that is loaded; every path ends in a return.
fn tree(segments: &[(u32, Verdict)]) -> Vec<sock_filter> {
    let (low, high) = segments.split_at(segments.len() / 2);
    let Some((first, verdict)) = high.first() else { return Vec::new() };
    if low.is_empty() {
        return leaf(*verdict);
    }
    let (low, high) = (tree(low), tree(high));
    // A conditional jump goes 255 instructions far at most.
    let mut program = match u8::try_from(low.len()) {
        Ok(near) => vec![jump(IF_NOT_LESS, *first, near, 0)],
        Err(_) => vec![jump(IF_NOT_LESS, *first, 0, 1), statement(JUMP, length(low.len()))],
    };
    program.extend(low);
    program.extend(high);
    program
}

fn leaf(verdict: Verdict) -> Vec<sock_filter> {
    match verdict {
        Verdict::Allow => vec![statement(RETURN, ALLOW)],
        Verdict::Refuse(errno) => vec![refusal(errno)],
        Verdict::Check(checks) => {
            let mut program: Vec<_> = checks.iter().flat_map(check).collect();
            program.push(statement(RETURN, ALLOW));
            program
        }
    }
}

/// Returns if the argument is refused, else falls through.
fn check(check: &Check) -> Vec<sock_filter> {
    let mut body = vec![statement(LOAD, argument(check.argument))];
    if check.mask != u32::MAX {
        body.push(statement(AND, check.mask));
    }
    // A listed value jumps over the one instruction behind the list: over the refusal, or over the jump around it.
    let values = check.values.iter().zip((1..=check.values.len()).rev());
    body.extend(values.map(|(value, left)| jump(IF_EQUAL, *value, u8::try_from(left).unwrap_or(u8::MAX), 0)));
    if check.refuse_listed {
        body.push(statement(JUMP, 1));
    }
    body.push(refusal(check.errno));
    let Some((argument_of, value)) = check.when else { return body };
    let mut program = vec![
        statement(LOAD, argument(argument_of)),
        jump(IF_EQUAL, value, 1, 0),
        statement(JUMP, length(body.len())),
    ];
    program.extend(body);
    program
}

/// Where the low half of an argument lies. The kernel reads only that half of the arguments we check (`int`), so the upper
/// one must not decide: CVE-2019-10063. Both architectures are little-endian.
fn argument(number: u8) -> u32 {
    ARGUMENTS_AT + 8 * u32::from(number)
}

fn refusal(errno: Errno) -> sock_filter {
    statement(RETURN, ERRNO | (errno as i32).cast_unsigned())
}

fn length(instructions: usize) -> u32 {
    u32::try_from(instructions).unwrap_or(u32::MAX)
}

const fn statement(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
