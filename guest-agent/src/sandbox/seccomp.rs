//! The system call filter of a payload: what is refused is listed with its reason in [`policy`]; the rest is allowed.
//!
//! It is compiled once, before the fork, and applied in the payload's process between fork and exec with two system calls
//! and no allocation. `seccompiler` loads it but does not compile it: its filters know one answer (we need several), kill on
//! a foreign architecture only, and compare call numbers one after the other. The kernel translates the program at every load
//! and runs it once for every call number it has, so here it is short, and a search tree.

pub mod policy;

use std::{collections::BTreeMap, ops::Range};

use nix::errno::Errno;
use seccompiler::{BpfProgram, sock_filter};

use policy::{Call, Check, LAST_KNOWN, When};
pub use policy::{Group, groups};

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
        let mut code = Code::new();
        let ranges: Vec<_> = ranges(mode).map(|(numbers, verdict)| (numbers, code.verdict(verdict))).collect();
        let search = code.search(&ranges);
        let ours = code.then(LOAD, NUMBER_AT, search);
        // No program of ours makes such a call by accident, and a 32-bit program whose every call is refused cannot even
        // exit: "Bad system call" says more than the crash that would follow.
        let foreign = code.answer(KILL_PROCESS);
        let architecture = code.branch(IF_EQUAL, ARCHITECTURE, ours, foreign);
        code.then(LOAD, ARCHITECTURE_AT, architecture);
        Self(code.finish())
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

/// The call numbers that are not simply allowed, in order; neighbours with the same verdict together.
fn ranges(mode: Mode) -> impl Iterator<Item = (Range<u32>, Verdict)> {
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
    let mut starts: Vec<_> = verdicts.into_iter().collect();
    starts.dedup_by_key(|(_, verdict)| *verdict);
    let ends: Vec<u32> = starts.iter().skip(1).map(|(start, _)| *start).collect();
    let ranges = starts.into_iter().zip(ends).map(|((start, verdict), end)| (start..end, verdict));
    ranges.filter(|(_, verdict)| *verdict != Verdict::Allow)
}

/// A program, written from its end to its start: jumps go forward only, so their targets are there when they are written.
struct Code {
    reversed: BpfProgram,
    answers: BTreeMap<u32, Label>,
    allow: Label,
}

/// An instruction, by how many there are from it to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Label(usize);

impl Code {
    fn new() -> Self {
        let mut code = Self { reversed: Vec::new(), answers: BTreeMap::new(), allow: Label(0) };
        code.allow = code.answer(ALLOW);
        code
    }

    fn finish(mut self) -> BpfProgram {
        self.reversed.reverse();
        self.reversed
    }

    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> Label {
        self.reversed.push(sock_filter { code, jt, jf, k });
        Label(self.reversed.len())
    }

    /// How many instructions the next one has to jump over.
    fn distance(&self, to: Label) -> usize {
        self.reversed.len().saturating_sub(to.0)
    }

    fn go(&mut self, to: Label) -> Label {
        let far = u32::try_from(self.distance(to)).unwrap_or(u32::MAX);
        self.push(JUMP, far, 0, 0)
    }

    /// One return for each answer: loading a filter takes the kernel a fifth of a microsecond for each instruction.
    fn answer(&mut self, action: u32) -> Label {
        if let Some(label) = self.answers.get(&action) {
            return *label;
        }
        let label = self.push(RETURN, action, 0, 0);
        self.answers.insert(action, label);
        label
    }

    /// An instruction and what follows it.
    fn then(&mut self, code: u16, k: u32, next: Label) -> Label {
        if self.distance(next) > 0 {
            self.go(next);
        }
        self.push(code, k, 0, 0)
    }

    fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        let (yes, no) = (self.within_reach(yes), self.within_reach(no));
        let near = |distance| u8::try_from(distance).unwrap_or(u8::MAX);
        let (yes, no) = (near(self.distance(yes)), near(self.distance(no)));
        self.push(code, k, yes, no)
    }

    /// A conditional jump goes 255 instructions far at most.
    fn within_reach(&mut self, label: Label) -> Label {
        if self.distance(label) > 250 { self.go(label) } else { label }
    }

    fn refuse(&mut self, errno: Errno) -> Label {
        self.answer(ERRNO | (errno as i32).cast_unsigned())
    }

    fn verdict(&mut self, verdict: Verdict) -> Label {
        match verdict {
            Verdict::Allow => self.allow,
            Verdict::Refuse(errno) => self.refuse(errno),
            Verdict::Check(checks) => checks.iter().rev().fold(self.allow, |next, check| self.check(check, next)),
        }
    }

    /// Goes to `next` unless the argument is refused.
    fn check(&mut self, check: &Check, next: Label) -> Label {
        let refuse = self.refuse(check.errno);
        let (listed, other) = if check.refuse_listed { (refuse, next) } else { (next, refuse) };
        let values = check.values.iter().rev();
        let mut entry = values.fold(other, |entry, value| self.branch(IF_EQUAL, *value, listed, entry));
        if check.mask != u32::MAX {
            entry = self.then(AND, check.mask, entry);
        }
        entry = self.then(LOAD, low_half(check.argument), entry);
        match check.when {
            None => entry,
            Some(When::Is(argument, value)) => {
                let entry = self.branch(IF_EQUAL, value, entry, next);
                self.then(LOAD, low_half(argument), entry)
            }
            Some(When::Has(argument, bits)) => {
                let entry = self.branch(IF_EQUAL, 0, next, entry);
                let entry = self.then(AND, bits, entry);
                self.then(LOAD, low_half(argument), entry)
            }
        }
    }

    /// Finds the number that is loaded: halves the list, and goes through what is short.
    fn search(&mut self, ranges: &[(Range<u32>, Label)]) -> Label {
        let (low, high) = ranges.split_at(ranges.len() / 2);
        if let (true, Some((numbers, _))) = (ranges.len() > 4, high.first()) {
            let (above, below) = (self.search(high), self.search(low));
            return self.branch(IF_NOT_LESS, numbers.start, above, below);
        }
        ranges.iter().rev().fold(self.allow, |next, (numbers, verdict)| {
            if numbers.len() == 1 {
                return self.branch(IF_EQUAL, numbers.start, *verdict, next);
            }
            let inside = self.branch(IF_NOT_LESS, numbers.end, next, *verdict);
            self.branch(IF_NOT_LESS, numbers.start, inside, next)
        })
    }
}

/// Where the low half of an argument lies. The kernel reads only that half of the arguments we check (`int`), so the upper
/// one must not decide: CVE-2019-10063. Both architectures are little-endian.
fn low_half(argument: u8) -> u32 {
    ARGUMENTS_AT + 8 * u32::from(argument)
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
