//! Frames off a tap, behind one trait, and the thread that meters them.
//!
//! The `pnet` backend is the portable one, frame by frame. Direction and time come from the kernel, asked for each frame before
//! pnet takes it; the VLAN tag that the kernel has stripped is not seen (docs/decisions/0003).

mod pnet;
mod socket;
mod tap;

use std::io;

use vestigo_model::TapName;

use crate::meter::Frame;

pub use self::{
    pnet::PnetSource,
    tap::{Observed, Report, TapCapture, Tapped},
};

/// Where frames come from.
pub trait FrameSource: Send {
    /// Waits a moment for a frame. `None` when there is none yet.
    ///
    /// # Errors
    /// The interface is gone or down.
    fn next(&mut self) -> io::Result<Option<Frame<'_>>>;

    /// Frames that the kernel had no room for since the last call.
    fn take_dropped(&mut self) -> u64;
}

/// Why a tap is not captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// No such interface in this network namespace.
    #[error("interface {0} does not exist (any more)")]
    NoInterface(TapName),
    /// The socket could not be opened or bound.
    #[error("cannot capture on {tap}; hostd needs CAP_NET_RAW and CAP_NET_ADMIN")]
    Open {
        /// Which.
        tap: TapName,
        /// Why.
        source: io::Error,
    },
    /// No thread for it.
    #[error("cannot start the capture thread of {tap}")]
    Thread {
        /// Which.
        tap: TapName,
        /// Why.
        source: io::Error,
    },
}
