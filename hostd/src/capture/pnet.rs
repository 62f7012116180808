use std::{
    io,
    os::fd::{AsFd as _, IntoRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};
use pnet::datalink::{self, Channel, ChannelType, Config, DataLinkReceiver};
use vestigo_model::{Clock, SystemClock, TapName};

use super::{CaptureError, FrameSource, socket};
use crate::meter::Frame;

/// A guest hands over frames of up to 64 KiB and a header; a smaller buffer would cut them without notice.
const READ_BUFFER: usize = 65_600;
/// Kernel-side queue. At 1 Gbit/s of full frames this is a quarter of a second.
const RECEIVE_BUFFER: usize = 32 << 20;
/// How long one wait for a frame lasts: the pace of expiry and of stopping.
const WAIT: u16 = 100; // milliseconds

/// Frames through `pnet_datalink`.
pub struct PnetSource {
    receiver: Box<dyn DataLinkReceiver>,
    /// The same socket as pnet's, to ask the kernel what pnet does not.
    socket: OwnedFd,
}

impl PnetSource {
    /// Opens the interface.
    ///
    /// # Errors
    /// [`CaptureError`]: it does not exist, or the socket cannot be had.
    pub fn open(tap: &TapName) -> Result<Self, CaptureError> {
        let interface = datalink::interfaces()
            .into_iter()
            .find(|interface| interface.name == tap.as_str())
            .ok_or_else(|| CaptureError::NoInterface(tap.clone()))?;
        let failed = |source| CaptureError::Open { tap: tap.clone(), source };
        let fd = socket::open(RECEIVE_BUFFER).map_err(failed)?;
        let socket = fd.try_clone().map_err(failed)?;
        let config = Config {
            read_buffer_size: READ_BUFFER,
            read_timeout: Some(Duration::from_millis(WAIT.into())),
            channel_type: ChannelType::Layer2,
            promiscuous: true,
            // pnet closes it, also when it fails.
            socket_fd: Some(fd.into_raw_fd()),
            ..Config::default()
        };
        match datalink::channel(&interface, config).map_err(failed)? {
            Channel::Ethernet(_, receiver) => Ok(Self { receiver, socket }),
            _ => Err(failed(io::Error::other("pnet gave no Ethernet channel"))),
        }
    }
}

impl FrameSource for PnetSource {
    fn next(&mut self) -> io::Result<Option<Frame<'_>>> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, WAIT) {
            Ok(0) | Err(Errno::EINTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let Some((heading, stamp)) = socket::peek(&self.socket)? else { return Ok(None) };
        match self.receiver.next() {
            Ok(bytes) => Ok(Some(Frame {
                bytes,
                wire_len: bytes.len(),
                vlan: None,
                time: stamp.unwrap_or_else(|| SystemClock.now()),
                heading,
            })),
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn take_dropped(&mut self) -> u64 {
        socket::take_dropped(&self.socket).unwrap_or(0)
    }
}
