//! Netlink sockets to the kernel's connection tracking. A socket acts in the namespace it was opened in, whichever thread uses it.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvmsg, sendto, setsockopt,
        socket, sockopt,
    },
};

use super::message::dump_request;

/// Of the groups (linux/netfilter/nfnetlink_compat.h) NEW and DESTROY. Not UPDATE: a translation is fixed before the connection is told
/// of, and updates, several for each TCP connection, would only fill the buffer.
const NEW_AND_DESTROY: u32 = 0b101;

/// What became of a read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// A datagram of so many bytes.
    Datagram(usize),
    /// Nothing waits.
    Empty,
    /// The kernel dropped events since the last read: the buffer was full.
    Overrun,
}

/// The two sockets of a namespace. A dump has its own, so that neither disturbs the other.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) events: OwnedFd,
    dump: OwnedFd,
}

impl Sockets {
    /// Opens them in the calling thread's network namespace and follows events from here on.
    ///
    /// # Errors
    /// The kernel's: `EPERM` without `CAP_NET_ADMIN`, `EPROTONOSUPPORT` without netfilter.
    pub(super) fn open(receive_buffer: usize) -> io::Result<Self> {
        let events = netlink()?;
        // Beyond net.core.rmem_max only with CAP_NET_ADMIN, which the groups need anyway.
        if setsockopt(&events, sockopt::RcvBufForce, &receive_buffer).is_err() {
            setsockopt(&events, sockopt::RcvBuf, &receive_buffer)?;
        }
        bind(events.as_raw_fd(), &NetlinkAddr::new(0, NEW_AND_DESTROY))?;
        Ok(Self { events, dump: netlink()? })
    }

    /// Opens them in the namespace that the file stands for. A thread of its own enters it and ends.
    ///
    /// # Errors
    /// The kernel's: `EPERM` without `CAP_SYS_ADMIN`.
    pub(super) fn open_in(namespace: &Path, receive_buffer: usize) -> io::Result<Self> {
        let file = File::open(namespace)?;
        let enter = move || {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            Self::open(receive_buffer)
        };
        let thread = thread::Builder::new().name("nat-enter".into()).spawn(enter)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that enters a namespace panicked")))
    }

    /// Asks for all connections; the answer is read with [`Sockets::read_dump`].
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn ask(&self, sequence: u32) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.dump.as_raw_fd(), &dump_request(sequence), &kernel, MsgFlags::empty())?;
        Ok(())
    }

    /// Takes a datagram of events, without waiting.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn read_events(&self, buffer: &mut [u8]) -> io::Result<Read> {
        read(&self.events, buffer)
    }

    /// Takes a datagram of the dump, without waiting: the kernel has it ready.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn read_dump(&self, buffer: &mut [u8]) -> io::Result<Read> {
        read(&self.dump, buffer)
    }
}

fn netlink() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?)
}

fn read(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<Read> {
    let room = buffer.len();
    loop {
        let mut iov = [IoSliceMut::new(buffer)];
        match recvmsg::<NetlinkAddr>(fd.as_raw_fd(), &mut iov, None, MsgFlags::MSG_DONTWAIT) {
            // Whatever other programs may send is not the kernel's word.
            Ok(message) if message.address.is_some_and(|from| from.pid() != 0) => {}
            Ok(message) if message.flags.contains(MsgFlags::MSG_TRUNC) => {
                return Err(io::Error::other(format!("a netlink datagram is longer than {room} bytes")));
            }
            Ok(message) => return Ok(Read::Datagram(message.bytes)),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(Read::Empty),
            Err(Errno::ENOBUFS) => return Ok(Read::Overrun),
            Err(error) => return Err(error.into()),
        }
    }
}
