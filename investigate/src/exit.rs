//! Exit codes: stable, documented in `--help`.

use std::process::ExitCode;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// There is an answer.
    Found = 0,
    /// The question could not be answered.
    Failure = 1,
    /// The question makes no sense.
    Usage = 2,
    /// The ledger was read and holds nothing that answers the question.
    Nothing = 3,
    /// `--require-coverage`: whatever the answer, part of the window was not seen.
    Incomplete = 4,
    /// A chain, digest or signature does not hold.
    Broken = 5,
}

/// A question that makes no sense, in one sentence that says what to write instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

impl Exit {
    /// The code for an error.
    pub fn of(error: &anyhow::Error) -> Self {
        if error.is::<Usage>() { Self::Usage } else { Self::Failure }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
