//! The kernel's packet filter, for what changes with every payload: batches of [`elements`] through a socket of their own.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::AsRawFd,
    sync::{Mutex, PoisonError},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{MsgFlags, recv};

use super::{
    conntrack,
    elements::{self, Answer, Element},
};

/// Largest answer to one message: an echo or an error, each with a copy of what was sent.
const DATAGRAM: usize = 8192;

/// Sockets that nobody uses at the moment. They stay open: closing one waits until the kernel has freed what was removed, and that
/// is 10 ms.
#[derive(Default)]
pub struct Filter(Mutex<Vec<Socket>>);

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Filter")
    }
}

impl Filter {
    /// Lets a payload out: all elements or none.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn add(&self, interface: &str, elements: &[Element]) -> io::Result<()> {
        self.send(&elements::add(interface, elements))?.verdict(elements.len())
    }

    /// Lets it out no more. Gives the number of packets that it had sent.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn remove(&self, interface: &str, elements: &[Element]) -> io::Result<u64> {
        let answer = self.send(&elements::remove(interface, elements))?;
        answer.verdict(elements.len()).map(|()| answer.packets)
    }

    /// Makes the kernel forget the connections of payloads of this inner network. It looks at all that it knows.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn forget(&self, base: Ipv4Addr, prefix: u8) -> io::Result<()> {
        self.send(&conntrack::forget(base, prefix))?.verdict(1)
    }

    fn send(&self, batch: &[u8]) -> io::Result<Answer> {
        let idle = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = idle().pop();
        let socket = spare.map_or_else(open, Ok)?;
        let answer = converse(&socket, batch)?;
        // One that failed may have an answer on the way, and is not used again.
        idle().push(socket);
        Ok(answer)
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// The kernel has answered before it returns from the first call.
fn converse(socket: &Socket, batch: &[u8]) -> io::Result<Answer> {
    socket.send(batch, 0)?;
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
