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
}

/// Names a step for its error.
pub(super) fn step<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> StepError {
    move |error| StepError { step: step.into(), source: error.into() }
}
