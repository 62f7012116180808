//! The kernel's packet filter, for what changes with every payload: batches of [`elements`] through a socket of their own.

use std::{io, os::fd::AsRawFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{MsgFlags, recv};

use super::elements::{self, Answer, Element};

/// Largest answer to one message: an echo or an error, each with a copy of what was sent.
const DATAGRAM: usize = 8192;

/// Lets a payload out: all elements or none.
///
/// # Errors
/// As the kernel says.
pub fn add(interface: &str, elements: &[Element]) -> io::Result<()> {
    send(&elements::add(interface, elements))?.verdict(elements.len())
}

/// Lets it out no more. Gives the number of connections that had left.
///
/// # Errors
/// As the kernel says.
pub fn remove(interface: &str, elements: &[Element]) -> io::Result<u64> {
    let answer = send(&elements::remove(interface, elements))?;
    answer.verdict(elements.len()).map(|()| answer.packets)
}

/// A socket for each batch: opening one costs a few microseconds, and no thread waits for another.
fn send(batch: &[u8]) -> io::Result<Answer> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(batch, 0)?;
    // The kernel has answered before it returns from the call.
    let (mut answer, mut buffer) = (Answer::default(), [0; DATAGRAM]);
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) | Err(nix::errno::Errno::EAGAIN) => return Ok(answer),
            Ok(count) => answer.take(buffer.get(..count).unwrap_or_default()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
