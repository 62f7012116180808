//! One JSON object per line over a Unix stream socket, with descriptors riding along. Used between `exec` and the daemon
//! and between the daemon and a sandbox; each side may be hostile to the other, so everything is bounded.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::sys;

/// Longest line. Arguments and environment of a payload have to fit.
pub const MAX_LINE: usize = 256 * 1024;
/// Most descriptors that the kernel lets one message carry (SCM_MAX_FD). Room for fewer would lose some: the kernel has made
/// them ours by then, and nobody would know their numbers.
const MAX_SENT: usize = 253;
/// Most descriptors that one side keeps for the other.
const MAX_FDS: usize = 32;

/// What went wrong between two of the agent's processes.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side is gone.
    #[error("the other side closed the connection")]
    Closed,
    /// It sends more than it may.
    #[error("a message is longer than {MAX_LINE} bytes")]
    TooLong,
    /// It is too slow.
    #[error("no whole message came in time")]
    TimedOut,
    /// It speaks another language.
    #[error("a message is not understood: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A connected socket with what has been read from it ahead of time.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    buffer: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Channel {
    /// Takes a connected socket.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: Vec::new(), fds: VecDeque::new() }
    }

    /// Two ends.
    ///
    /// # Errors
    /// As socketpair(2).
    pub fn pair() -> io::Result<(Self, UnixStream)> {
        let (here, there) = UnixStream::pair()?;
        Ok((Self::new(here), there))
    }

    /// The socket itself.
    #[must_use]
    pub const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether a whole message waits in the buffer, where poll(2) cannot see it.
    #[must_use]
    pub fn has_message(&self) -> bool {
        self.buffer.contains(&b'\n')
    }

    /// Sends one message; the descriptors go with its first byte.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn send<T: Serialize>(&mut self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        if line.len() > MAX_LINE {
            return Err(WireError::TooLong);
        }
        let sent = if fds.is_empty() { 0 } else { self.send_with(&line, fds)? };
        self.stream.write_all(line.get(sent..).unwrap_or_default())?;
        Ok(())
    }

    fn send_with(&self, line: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, WireError> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        Ok(sendmsg::<()>(self.stream.as_raw_fd(), &[IoSlice::new(line)], &control, flags, None)
            .map_err(io::Error::from)?)
    }

    /// Waits for one message.
    ///
    /// # Errors
    /// [`WireError`]; after an error the channel is of no more use.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T, WireError> {
        self.receive_until(None)
    }

    /// Waits for one message, but not longer than `patience` in all: a peer that dribbles bytes gains nothing.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn receive_within<T: DeserializeOwned>(&mut self, patience: Duration) -> Result<T, WireError> {
        let result = self.receive_until(Some(Instant::now() + patience));
        self.stream.set_read_timeout(None)?;
        result
    }

    fn receive_until<T: DeserializeOwned>(&mut self, deadline: Option<Instant>) -> Result<T, WireError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                return Ok(serde_json::from_slice(&line)?);
            }
            if self.buffer.len() >= MAX_LINE {
                return Err(WireError::TooLong);
            }
            if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(WireError::TimedOut);
                }
                self.stream.set_read_timeout(Some(left))?;
            }
            self.fill(MsgFlags::empty())?;
        }
    }

    /// Waits until the other side has hung up, but not longer than `patience`.
    pub fn hung_up_within(&self, patience: Duration) {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::empty())];
        let _ = poll(&mut fds, PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX));
    }

    /// Takes a message if a whole one is there; never waits for the rest of one.
    ///
    /// # Errors
    /// [`WireError`]; after an error the channel is of no more use.
    pub fn receive_if_there<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        if !self.has_message() {
            match self.fill(MsgFlags::MSG_DONTWAIT) {
                Ok(()) | Err(WireError::TimedOut) => {}
                Err(error) => return Err(error),
            }
        }
        if self.buffer.len() >= MAX_LINE && !self.has_message() {
            return Err(WireError::TooLong);
        }
        if self.has_message() { self.receive().map(Some) } else { Ok(None) }
    }

    /// Reads what is there, waiting for at least one byte (unless told otherwise).
    fn fill(&mut self, more: MsgFlags) -> Result<(), WireError> {
        let mut bytes = vec![0; 16 * 1024];
        let mut control = nix::cmsg_space!([RawFd; MAX_SENT]);
        let (count, fds) = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC | more;
            match recvmsg::<()>(self.stream.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Ok(message) => break (message.bytes, rights(&message)?),
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => return Err(WireError::TimedOut),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        };
        self.fds.extend(fds);
        self.fds.truncate(MAX_FDS);
        if count == 0 {
            return Err(WireError::Closed);
        }
        self.buffer.extend_from_slice(bytes.get(..count).unwrap_or_default());
        Ok(())
    }

    /// Lets go of the socket in a forked process: the other side sees the end of the one that it talks to, not of its children.
    pub fn close(&mut self) {
        if let Ok((other, _)) = UnixStream::pair() {
            *self = Self::new(other);
        }
    }

    /// The next descriptor that came along.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop_front()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn rights(message: &nix::sys::socket::RecvMsg<'_, '_, ()>) -> Result<Vec<OwnedFd>, WireError> {
    let mut fds = Vec::new();
    for control in message.cmsgs().map_err(io::Error::from)? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            fds.extend(raw.into_iter().map(sys::adopt));
        }
    }
    Ok(fds)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn descriptors_ride_along_and_messages_keep_their_borders() {
        let (mut here, there) = Channel::pair().unwrap();
        let mut there = Channel::new(there);
        here.send(&"one", &[here.as_fd().try_clone_to_owned().unwrap().as_fd()]).unwrap();
        here.send(&"two", &[]).unwrap();
        assert_eq!(there.receive::<String>().unwrap(), "one");
        assert!(there.take_fd().is_some() && there.take_fd().is_none());
        assert_eq!(there.receive::<String>().unwrap(), "two");
        drop(here);
        assert!(matches!(there.receive::<String>(), Err(WireError::Closed)));
    }

    #[test]
    fn a_flood_of_descriptors_leaves_none_behind() {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let (here, there) = Channel::pair().unwrap();
        let mut there = Channel::new(there);
        let one = here.as_fd().try_clone_to_owned().unwrap();
        let before = open();
        for _ in 0..20 {
            here.send_with(b"\"x\"\n", &vec![one.as_fd(); 253]).unwrap();
            assert_eq!(there.receive::<String>().unwrap(), "x");
        }
        assert!(open() <= before + MAX_FDS, "{} were open, {} are", before, open());
    }

    #[test]
    fn half_a_message_keeps_nobody_waiting() {
        let (here, there) = Channel::pair().unwrap();
        let mut there = Channel::new(there);
        here.stream().write_all(b"\"ha").unwrap();
        assert!(there.receive_if_there::<String>().unwrap().is_none());
        here.stream().write_all(b"lf\"\n").unwrap();
        assert_eq!(there.receive_if_there::<String>().unwrap().as_deref(), Some("half"));
        drop(here);
        assert!(matches!(there.receive_if_there::<String>(), Err(WireError::Closed)));
    }

    #[test]
    fn an_endless_or_slow_line_is_given_up() {
        let (here, there) = Channel::pair().unwrap();
        let mut there = Channel::new(there);
        let writer = std::thread::spawn(move || {
            let mut stream = here.stream();
            let _ = stream.write_all(&vec![b'x'; MAX_LINE + 1]);
        });
        assert!(matches!(there.receive::<String>(), Err(WireError::TooLong)));
        drop(there);
        writer.join().unwrap();
        let (_here, there) = Channel::pair().unwrap();
        let slow = Channel::new(there).receive_within::<String>(Duration::from_millis(20));
        assert!(matches!(slow, Err(WireError::TimedOut)));
    }
}
