use std::{
    io,
    sync::{Arc, Mutex},
};

use nix::{errno::Errno, net::if_::if_nametoindex};
use serde::Deserialize;
use vestigo_model::TapName;

use super::{
    CaptureError, FrameSource, PnetSource, RingSource,
    budget::{RingBudget, RingOptions},
};

/// How frames are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// A ring that the kernel fills.
    #[default]
    Ring,
    /// Frame by frame through `pnet`.
    Pnet,
}

/// Opens interfaces. Its clones share the memory for rings.
#[derive(Debug, Clone)]
pub struct Capture {
    backend: Backend,
    budget: Arc<Mutex<RingBudget>>,
}

impl Capture {
    /// With no ring yet.
    #[must_use]
    pub fn new(backend: Backend, options: RingOptions) -> Self {
        Self { backend, budget: Arc::new(Mutex::new(RingBudget::new(options))) }
    }

    /// The index of the interface that has this name now.
    #[must_use]
    pub fn index(tap: &TapName) -> Option<u32> {
        if_nametoindex(tap.as_str()).ok()
    }

    /// Opens the interface that has this name now; gives its index too, which no other will ever have.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub fn open(&self, tap: &TapName) -> Result<(Box<dyn FrameSource>, u32), CaptureError> {
        let index = Self::index(tap).ok_or_else(|| CaptureError::NoInterface(tap.clone()))?;
        let source: io::Result<Box<dyn FrameSource>> = match self.backend {
            Backend::Ring => RingSource::open(index, &self.budget).map(|source| Box::new(source) as _),
            Backend::Pnet => PnetSource::open(tap.as_str(), index).map(|source| Box::new(source) as _),
        };
        match source {
            Ok(source) => Ok((source, index)),
            // It went, or another took its name, between the two calls.
            Err(error) if matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENODEV | Errno::ENXIO)) => {
                Err(CaptureError::NoInterface(tap.clone()))
            }
            Err(source) => Err(CaptureError::Open { tap: tap.clone(), source }),
        }
    }
}
