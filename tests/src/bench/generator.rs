//! Sends Ethernet frames of many flows out through an interface, as fast as the kernel takes them or at a pace.
//!
//! `sendmmsg` on a packet socket, past the queueing discipline: what can be had without hardware. Only ever used on an interface of
//! a namespace that the bench has made.
#![allow(unsafe_code)]

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd},
    ptr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// Frames handed to the kernel at once.
const BATCH: usize = 64;
/// Bytes of a frame: the smallest that Ethernet has.
const FRAME: usize = 60;

/// A socket bound to the interface, which receives nothing.
pub(super) struct Generator {
    socket: OwnedFd,
    frames: Vec<[u8; FRAME]>,
}

/// What a run came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) packets: u64,
    pub(super) took: Duration,
}

impl Sent {
    /// Packets a second.
    pub(super) fn rate(&self) -> f64 {
        // A few millions.
        #[allow(clippy::cast_precision_loss)]
        let packets = self.packets as f64;
        packets / self.took.as_secs_f64()
    }
}

impl Generator {
    /// Opens the interface of the namespace that this thread is in.
    pub(super) fn open(interface: &str) -> Result<Self> {
        let index = if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        // SAFETY: all zeroes is a valid value of the struct.
        let mut address = unsafe { MaybeUninit::<libc::sockaddr_ll>::zeroed().assume_init() };
        address.sll_family = u16::try_from(libc::AF_PACKET)?;
        // Protocol 0: nothing is received.
        address.sll_ifindex = i32::try_from(index)?;
        let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
        // SAFETY: the address is a whole `sockaddr_ll` and its size is said; the descriptor is open.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        if bound != 0 {
            return Err(io::Error::last_os_error()).context("cannot bind the generator");
        }
        let on: libc::c_int = 1;
        let length = libc::socklen_t::try_from(size_of::<libc::c_int>())?;
        // SAFETY: the value is readable for the length that is said; the descriptor is open.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const on).cast(),
                length,
            )
        };
        Ok(Self { socket, frames: vec![datagram(); BATCH] })
    }

    /// Sends that many frames; number `n` belongs to flow `first + n % flows`. `rate` a second, or as fast as it goes.
    pub(super) fn send(&mut self, packets: u64, first: u32, flows: u32, rate: Option<u32>) -> Result<Sent> {
        let began = Instant::now();
        let mut sent = 0_u64;
        while sent < packets {
            let batch = usize::try_from(packets - sent)?.min(BATCH);
            for (frame, n) in self.frames.iter_mut().take(batch).zip(sent..) {
                set_flow(frame, first.wrapping_add(u32::try_from(n % u64::from(flows.max(1)))?));
            }
            if let Some(rate) = rate {
                let due = Duration::from_nanos(sent * 1_000_000_000 / u64::from(rate.max(1)));
                // On its way to the next batch it has less to do than the scheduler's clock could tell.
                while began.elapsed() < due {
                    std::hint::spin_loop();
                }
            }
            self.batch(batch)?;
            sent += u64::try_from(batch)?;
        }
        Ok(Sent { packets: sent, took: began.elapsed() })
    }

    /// Sends the first frames, all of them.
    fn batch(&mut self, count: usize) -> Result<()> {
        let mut parts: Vec<libc::iovec> = self
            .frames
            .iter_mut()
            .take(count)
            .map(|frame| libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: FRAME })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts.iter_mut().map(message).collect();
        let mut rest = messages.as_mut_slice();
        while !rest.is_empty() {
            let length = libc::c_uint::try_from(rest.len())?;
            // SAFETY: `rest` has `length` messages; each points to one part of `parts`, and that to a frame of `self`, all of which
            // outlive the call; the kernel writes only the messages' lengths.
            let done = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), rest.as_mut_ptr(), length, 0) };
            match usize::try_from(done) {
                Ok(done) => rest = rest.split_at_mut(done).1,
                Err(_) => match io::Error::last_os_error() {
                    error if error.raw_os_error() == Some(libc::ENOBUFS) => std::thread::yield_now(),
                    error => return Err(error).context("cannot send"),
                },
            }
        }
        Ok(())
    }
}

fn message(part: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: all zeroes is a valid value of the struct: no name, no control data.
    let mut message = unsafe { MaybeUninit::<libc::mmsghdr>::zeroed().assume_init() };
    message.msg_hdr.msg_iov = ptr::from_mut(part);
    message.msg_hdr.msg_iovlen = 1;
    message
}

/// A UDP datagram of 18 bytes from 10.128.0.0/9 to 10.9.0.2, in Ethernet.
fn datagram() -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    let header = [
        2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 128, 0, 0, 10, 9, 0, 2,
        0, 0, 0, 53, 0, 26, 0, 0,
    ];
    for (to, from) in frame.iter_mut().zip(header) {
        *to = from;
    }
    frame
}

/// 65 536 source ports and as many addresses as are needed.
fn set_flow(frame: &mut [u8; FRAME], flow: u32) {
    let [high, middle, port_high, port_low] = flow.to_be_bytes();
    for (at, byte) in [(28, high), (29, middle), (34, port_high), (35, port_low)] {
        if let Some(to) = frame.get_mut(at) {
            *to = byte;
        }
    }
}
