//! The packet socket: what `pnet` neither sets nor reads. The one place of `unsafe` in capture.
#![allow(unsafe_code)]

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockType, recvmsg, setsockopt, socket,
            sockopt,
        },
        time::TimeSpec,
    },
};
use vestigo_model::Timestamp;

use crate::decode::Heading;

/// Opens a packet socket that receives nothing yet: protocol 0, so that no frame of another interface can slip in before
/// it is bound (packet(7)).
///
/// # Errors
/// The kernel's: no `CAP_NET_RAW`, no memory.
pub(super) fn open(receive_buffer: usize) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    // Beyond net.core.rmem_max only with CAP_NET_ADMIN; a smaller buffer still works and its losses are counted.
    if setsockopt(&fd, sockopt::RcvBufForce, &receive_buffer).is_err() {
        setsockopt(&fd, sockopt::RcvBuf, &receive_buffer)?;
    }
    setsockopt(&fd, sockopt::ReceiveTimestampns, &true)?;
    Ok(fd)
}

/// What the kernel says of the frame that waits: which way it goes, and when it came (`None` if it has no stamp). The frame
/// stays where it is. `None` when none waits.
///
/// # Errors
/// The kernel's: the interface is gone or down.
pub(super) fn peek(fd: &OwnedFd) -> io::Result<Option<(Heading, Option<Timestamp>)>> {
    let mut byte = [0; 1];
    let mut iov = [IoSliceMut::new(&mut byte)];
    let mut control = nix::cmsg_space!(TimeSpec);
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<LinkAddr>(fd.as_raw_fd(), &mut iov, Some(&mut control), flags) {
        Ok(message) => message,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // On a tap "outgoing" is what the host sends out through it: to the VM (packet(7)).
    let outgoing = message.address.is_some_and(|address| address.pkttype() == libc::PACKET_OUTGOING);
    let heading = if outgoing { Heading::ToVm } else { Heading::FromVm };
    let stamp = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
        _ => None,
    });
    Ok(Some((heading, stamp.map(|since| Timestamp::from_nanos(0) + since))))
}

/// Frames dropped for want of room since the last call (`PACKET_STATISTICS` resets when read).
///
/// # Errors
/// The kernel's.
pub(super) fn take_dropped(fd: &OwnedFd) -> io::Result<u64> {
    let mut stats = MaybeUninit::<libc::tpacket_stats>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tpacket_stats>()).unwrap_or(0);
    // SAFETY: `stats` is writable for `length` bytes and `fd` is open for the whole call; the kernel writes at most
    // `length` bytes (two 32-bit counters).
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            stats.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeroes is a valid value of the struct, and the kernel wrote plain integers over it.
    let stats = unsafe { stats.assume_init() };
    Ok(u64::from(stats.tp_drops))
}
