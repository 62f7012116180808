//! How the story is told: chapters with times, what was typed, what came back, and whether it is true.

use std::{fmt::Debug, time::Instant};

use anyhow::{Result, ensure};

/// The teller.
pub(super) struct Story {
    begun: Instant,
}

impl Story {
    pub(super) fn new() -> Self {
        println!("VESTIGO: the story of an incident. (Times are seconds since the start.)");
        Self { begun: Instant::now() }
    }

    fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// A new part begins.
    pub(super) fn chapter(&self, title: &str) {
        println!("\n[{:6.1}] {title}", self.now());
    }

    /// Something happened.
    pub(super) fn tell(&self, what: &str) {
        println!("[{:6.1}]   {what}", self.now());
    }

    /// Somebody typed this.
    pub(super) fn typed(&self, program: &str, arguments: &[&str]) {
        println!("[{:6.1}]   $ {program} {}", self.now(), arguments.join(" "));
    }

    /// This came back.
    pub(super) fn shown(&self, text: &str) {
        for line in text.trim_end().lines() {
            println!("           │ {line}");
        }
    }

    /// Compares an answer with the truth.
    pub(super) fn check<T: PartialEq + Debug>(&self, what: &str, got: &T, truth: &T) -> Result<()> {
        ensure!(got == truth, "{what}: the answer is {got:?}, the truth is {truth:?}");
        println!("[{:6.1}]   ✓ {what}", self.now());
        Ok(())
    }

    pub(super) fn end(&self) {
        println!("\n[{:6.1}] The end. Every answer was compared with the truth, and is true.", self.now());
    }
}
