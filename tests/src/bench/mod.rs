//! The benches: what Vestigo costs, beside its peers, in one run on one machine.
//!
//! Every figure is one line `name: value` on standard output; what goes on meanwhile is told on standard error. They are
//! programs of their own (`make bench-…`): no test ever depends on how long something took.

pub mod agent;
pub mod capture;
mod generator;
mod host;
mod live;
mod load;
mod offline;
mod starts;
mod vm;

use std::{os::unix::process::CommandExt as _, process::Command, time::Duration};

use anyhow::{Context as _, Result};

/// Prints a figure.
pub(crate) fn figure(name: &str, value: impl std::fmt::Display) {
    println!("{name}: {value}");
}

/// Executes this program again as the first process of namespaces of its own: whatever it starts ends with it. There
/// it finds the variable `inside`.
pub(crate) fn enclose(inside: &str) -> Result<()> {
    let mut again = Command::new("unshare");
    again.args([
        "--net",
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--kill-child=KILL",
        "--mount-proc",
    ]);
    again.arg("--").arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(inside, "1");
    Err(again.exec()).context("cannot run unshare")
}

/// Tells what goes on.
pub(crate) fn progress(what: &str) {
    eprintln!("bench: {what}");
}

/// Measured times of one thing.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<f64>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }

    /// Milliseconds below which this share of the runs was; the smallest for 0, the median for 0.5.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        quantile(&self.0, share)
    }

    /// Median, 95th percentile and minimum, as `name_ms`, `name_p95_ms`, `name_min_ms`.
    pub(crate) fn print(&self, name: &str) {
        for (suffix, share) in [("", 0.5), ("_p95", 0.95), ("_min", 0.0)] {
            figure(&format!("{name}{suffix}_ms"), format_args!("{:.3}", self.quantile(share)));
        }
    }
}

/// Of no values: not a number, which no reader takes for a figure.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    // Counts of runs and shares between 0 and 1: both small and positive.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
