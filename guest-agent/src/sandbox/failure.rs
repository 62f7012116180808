//! How building a sandbox fails: the step and the kernel's answer.

use std::io;

/// A step of building a sandbox failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct StepError {
    /// What was tried.
    pub step: String,
    /// Why not.
    pub source: io::Error,
    /// What the caller asked for cannot be; nothing is broken.
    pub callers: bool,
}

/// Names a step for its error.
pub(super) fn step<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> StepError {
    move |error| StepError { step: step.into(), source: error.into(), callers: false }
}

/// What the caller asked for cannot be: the thing, and why with the remedy.
pub(super) fn mistake(thing: impl Into<String>, why: impl Into<String>) -> StepError {
    StepError { step: thing.into(), source: io::Error::other(why.into()), callers: true }
}
