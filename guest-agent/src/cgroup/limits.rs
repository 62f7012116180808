//! What a payload may use, and the files that say so to the kernel.

use std::{fmt, io, path::Path, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    CgroupError,
    layout::{Part, Version},
    put,
};

/// Least memory that makes sense: below, not even a shell starts, and the kernel kills instead of refusing.
const LEAST_MEMORY: u64 = 1 << 20;
/// Period in which processor time is counted out, µs: the kernel's default.
const PERIOD: u32 = 100_000;
/// Least and most processor time: the kernel wants 1 ms of a period.
const MILLICORES: std::ops::RangeInclusive<u32> = 10..=10_000_000;

/// Processor time, in thousandths of one core. Reads and writes `1.5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millicores(pub u32);

impl FromStr for Millicores {
    type Err = CgroupError;

    fn from_str(text: &str) -> Result<Self, CgroupError> {
        let wrong = || CgroupError::Invalid(format!("{text:?} is no number of cores; write for example 2 or 0.5"));
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > 3 {
            return Err(wrong());
        }
        let whole: u32 = whole.parse().map_err(|_| wrong())?;
        let part: u32 = format!("{part:0<3}").parse().map_err(|_| wrong())?;
        whole.checked_mul(1000).and_then(|w| w.checked_add(part)).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Millicores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 1000, self.0 % 1000) {
            (whole, 0) => write!(f, "{whole}"),
            (whole, part) => f.write_str(format!("{whole}.{part:03}").trim_end_matches('0')),
        }
    }
}

/// What a payload may use; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Memory in bytes, at least 1 MiB. Swap is off with it. When it is not enough the kernel kills: on v2 all of the
    /// payload, on v1 its largest process.
    pub memory: Option<u64>,
    /// Processes and threads, at least 1.
    pub pids: Option<u32>,
    /// Processor time, at least a hundredth of a core.
    pub cpu: Option<Millicores>,
}

impl Limits {
    /// Whether this part is limited.
    #[must_use]
    pub const fn has(&self, part: Part) -> bool {
        match part {
            Part::Memory => self.memory.is_some(),
            Part::Pids => self.pids.is_some(),
            Part::Cpu => self.cpu.is_some(),
            Part::Tree | Part::Freezer => false,
        }
    }

    /// These, and where they say nothing, `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { memory: self.memory.or(other.memory), pids: self.pids.or(other.pids), cpu: self.cpu.or(other.cpu) }
    }

    /// The same without one: for a caller that does without what the machine does not have.
    #[must_use]
    pub const fn without(mut self, part: Part) -> Self {
        match part {
            Part::Memory => self.memory = None,
            Part::Pids => self.pids = None,
            Part::Cpu => self.cpu = None,
            Part::Tree | Part::Freezer => {}
        }
        self
    }

    /// Refuses numbers that would only look like a limit, or kill at once.
    ///
    /// # Errors
    /// A sentence that says what to write instead.
    pub fn check(&self) -> Result<(), CgroupError> {
        let wrong = |text: String| Err(CgroupError::Invalid(text));
        match *self {
            Self { memory: Some(bytes), .. } if bytes < LEAST_MEMORY => {
                wrong(format!("a memory limit of {bytes} bytes is too small; give at least {LEAST_MEMORY}"))
            }
            Self { memory: Some(bytes), .. } if i64::try_from(bytes).is_err() => {
                wrong(format!("a memory limit of {bytes} bytes is none; leave it out"))
            }
            Self { pids: Some(0), .. } => wrong("a limit of 0 processes starts nothing; give at least 1".to_owned()),
            Self { cpu: Some(cpu), .. } if !MILLICORES.contains(&cpu.0) => {
                wrong(format!("a limit of {cpu} cores is not possible; give 0.01 to 10000"))
            }
            _ => Ok(()),
        }
    }

    /// Tells the kernel about one part. `fresh`: the group was just made, so what is not limited needs no writing.
    ///
    /// # Errors
    /// [`CgroupError::Refused`] with the kernel's answer.
    pub(super) fn apply(&self, part: Part, version: Version, group: &Path, fresh: bool) -> Result<(), CgroupError> {
        if fresh && !self.has(part) {
            return Ok(());
        }
        match (part, version) {
            (Part::Memory, Version::Two) => {
                let (swap, whole) = if self.memory.is_some() { ("0", "1") } else { ("max", "0") };
                // Both first: no page may leave for swap, no process may be killed alone, from the limit on.
                write_if_there(group, "memory.swap.max", swap)?;
                write_if_there(group, "memory.oom.group", whole)?;
                write(group, "memory.max", &number(self.memory, "max"))
            }
            (Part::Memory, Version::One) => memory_v1(group, &number(self.memory, "-1"), self.memory.is_some()),
            (Part::Pids, _) => write(group, "pids.max", &number(self.pids, "max")),
            (Part::Cpu, Version::Two) => {
                let quota = number(self.cpu.map(quota), "max");
                write(group, "cpu.max", &format!("{quota} {PERIOD}"))
            }
            (Part::Cpu, Version::One) => {
                write(group, "cpu.cfs_period_us", &PERIOD.to_string())?;
                write(group, "cpu.cfs_quota_us", &number(self.cpu.map(quota), "-1"))
            }
            (Part::Tree | Part::Freezer, _) => Ok(()),
        }
    }
}

/// µs of processor time in a period.
fn quota(cpu: Millicores) -> u64 {
    u64::from(cpu.0) * u64::from(PERIOD / 1000)
}

fn number<T: ToString>(limit: Option<T>, none: &str) -> String {
    limit.map_or_else(|| none.to_owned(), |n| n.to_string())
}

/// v1 counts memory, and memory with swap; the second may never be below the first, whichever way both are going.
fn memory_v1(group: &Path, value: &str, limited: bool) -> Result<(), CgroupError> {
    const MEMORY: &str = "memory.limit_in_bytes";
    const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";
    if !group.join(WITH_SWAP).exists() {
        // Swap is not counted on this kernel: the next best is to be unwilling to use it.
        if limited {
            write_if_there(group, "memory.swappiness", "0")?;
        }
        return write(group, MEMORY, value);
    }
    // Lowering succeeds in this order, raising in the other.
    if write(group, MEMORY, value).is_ok() {
        return write(group, WITH_SWAP, value);
    }
    write(group, WITH_SWAP, value)?;
    write(group, MEMORY, value)
}

fn write(group: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let file = group.join(file);
    put(&file, value).map_err(|source| CgroupError::Refused { file, value: value.to_owned(), source })
}

/// For files that depend on how the kernel was built.
fn write_if_there(group: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    match write(group, file, value) {
        Err(CgroupError::Refused { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
