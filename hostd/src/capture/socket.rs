//! Packet sockets (packet(7)) and the ring that the kernel shares with us. The one place of `unsafe` in capture: what comes
//! out of the ring is given out as plain bytes, and judged elsewhere.
#![allow(unsafe_code)]

use std::{
    io::{self, IoSliceMut},
    mem::{MaybeUninit, offset_of},
    num::NonZeroUsize,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        mman::{MapFlags, ProtFlags, mmap, munmap},
        socket::{
            AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockType, recvmsg, setsockopt, socket,
            sockopt,
        },
        time::TimeSpec,
    },
};
use vestigo_model::Timestamp;

use super::budget::RingShape;
use crate::decode::Heading;

/// What has become of the interface that a socket is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Nothing.
    There,
    /// It was shut down. The kernel goes on delivering when it is up again.
    Down,
    /// It exists no more, and whatever gets its name is another one.
    Gone,
}

/// What the kernel counted since it was last asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames that passed the interface, those dropped among them.
    pub offered: u64,
    /// Frames that found no room.
    pub dropped: u64,
    /// How often the ring was full.
    pub freezes: u64,
}

/// A packet socket.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens one that receives nothing yet: protocol 0, so that no frame of another interface can slip in before it is
    /// bound.
    ///
    /// # Errors
    /// The kernel's: no `CAP_NET_RAW`, no memory.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self(socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?))
    }

    /// A second handle to the same socket, for who wants to own it.
    pub(super) fn handle(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// From now on every frame of the interface is received, in both directions.
    ///
    /// # Errors
    /// The kernel's: there is no such interface (any more).
    pub(super) fn bind(&self, index: u32) -> io::Result<()> {
        // SAFETY: all zeroes is a valid value of the struct.
        let mut address = unsafe { MaybeUninit::<libc::sockaddr_ll>::zeroed().assume_init() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
        address.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be();
        address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
        // SAFETY: the address is a whole `sockaddr_ll` and its size is said; the descriptor is open.
        let result = unsafe { libc::bind(self.0.as_raw_fd(), (&raw const address).cast(), size_of_val_as(&address)) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Has the kernel run the program on every frame; what it returns is how many bytes are kept, 0 that the frame is none
    /// of ours.
    ///
    /// # Errors
    /// The kernel's: it does not like the program.
    pub(super) fn filter(&self, program: &[libc::sock_filter]) -> io::Result<()> {
        let len = u16::try_from(program.len()).map_err(io::Error::other)?;
        // The kernel copies the program and writes nothing back.
        let described = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
        set_option(&self.0, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &described)
    }

    /// A receive queue of that many bytes, for a socket without a ring.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn queue(&self, bytes: usize) -> io::Result<()> {
        // Beyond net.core.rmem_max only with CAP_NET_ADMIN; a smaller one still works and its losses are counted.
        if setsockopt(&self.0, sockopt::RcvBufForce, &bytes).is_err() {
            setsockopt(&self.0, sockopt::RcvBuf, &bytes)?;
        }
        Ok(setsockopt(&self.0, sockopt::ReceiveTimestampns, &true)?)
    }

    /// Takes what the kernel has counted.
    ///
    /// # Errors
    /// The kernel's.
    pub fn statistics(&self) -> io::Result<Statistics> {
        // A socket without a ring knows two of the three; the third stays 0.
        let counted: libc::tpacket_stats_v3 = get_option(&self.0, libc::SOL_PACKET, libc::PACKET_STATISTICS)?;
        Ok(Statistics {
            offered: counted.tp_packets.into(),
            dropped: counted.tp_drops.into(),
            freezes: counted.tp_freeze_q_cnt.into(),
        })
    }

    /// What has become of the interface, after the socket has reported an error or while it is down.
    ///
    /// # Errors
    /// The kernel's.
    pub fn link(&self) -> io::Result<Link> {
        let error: libc::c_int = get_option(&self.0, libc::SOL_SOCKET, libc::SO_ERROR)?;
        // The kernel sets the index to -1 when the interface is unregistered (net/packet/af_packet.c, packet_notifier).
        if self.bound()? < 0 {
            return Ok(Link::Gone);
        }
        match Errno::from_raw(error) {
            Errno::UnknownErrno => Ok(Link::There),
            Errno::ENETDOWN => Ok(Link::Down),
            Errno::ENXIO | Errno::ENODEV => Ok(Link::Gone),
            other => Err(other.into()),
        }
    }

    /// The index that the kernel has for it now. Not with nix: without an interface the address comes without its last bytes,
    /// which nix takes for none.
    fn bound(&self) -> io::Result<i32> {
        // SAFETY: all zeroes is a valid value of the struct.
        let mut address = unsafe { MaybeUninit::<libc::sockaddr_ll>::zeroed().assume_init() };
        let mut length = size_of_val_as(&address);
        // SAFETY: the address is writable for `length` bytes, the kernel writes at most that many, and the descriptor is open.
        let result = unsafe { libc::getsockname(self.0.as_raw_fd(), (&raw mut address).cast(), &raw mut length) };
        if result == 0 { Ok(address.sll_ifindex) } else { Err(io::Error::last_os_error()) }
    }

    /// What the kernel says of the frame that waits in the queue: which way it goes, when it came (`None` if it has no
    /// stamp). The frame stays where it is. `None` when none waits.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn peek(&self) -> io::Result<Option<(Heading, Option<Timestamp>)>> {
        let mut byte = [0; 1];
        let mut iov = [IoSliceMut::new(&mut byte)];
        let mut control = nix::cmsg_space!(TimeSpec);
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let message = match recvmsg::<LinkAddr>(self.0.as_raw_fd(), &mut iov, Some(&mut control), flags) {
            Ok(message) => message,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let heading = heading(message.address.map_or(libc::PACKET_HOST, |address| address.pkttype()));
        let stamp = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
            _ => None,
        });
        Ok(Some((heading, stamp.map(|since| Timestamp::from_nanos(0) + since))))
    }

    /// Gives the socket a ring (TPACKET_V3) in place of its queue, before it is bound.
    ///
    /// # Errors
    /// The kernel's: no memory for it.
    pub(super) fn ring(&self, shape: RingShape) -> io::Result<Ring> {
        let version = libc::c_int::try_from(libc::tpacket_versions::TPACKET_V3 as u32).map_err(io::Error::other)?;
        set_option(&self.0, libc::SOL_PACKET, libc::PACKET_VERSION, &version)?;
        // 0 is the default; said, because frames to the VM are "outgoing" on its tap.
        set_option(&self.0, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &(0 as libc::c_int))?;
        let blocks = u32::try_from(shape.blocks).map_err(io::Error::other)?;
        let request = libc::tpacket_req3 {
            tp_block_size: RingShape::BLOCK,
            tp_block_nr: blocks,
            // With V3 frames lie one behind the other, as long as each is; the kernel only wants the sums to be right.
            tp_frame_size: FRAME,
            tp_frame_nr: (RingShape::BLOCK / FRAME).saturating_mul(blocks),
            tp_retire_blk_tov: u32::try_from(shape.retire.as_millis()).map_err(io::Error::other)?,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set_option(&self.0, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        Ring::map(&self.0, shape)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Any multiple of `TPACKET_ALIGNMENT` that divides a block.
const FRAME: u32 = 2048;

/// Which way a frame goes: on a tap "outgoing" is what the host sends out through it, that is to the VM.
pub(super) const fn heading(packet_type: u8) -> Heading {
    if packet_type == libc::PACKET_OUTGOING { Heading::ToVm } else { Heading::FromVm }
}

/// The memory that the kernel lays frames in, block by block, in turn. Unmapped when dropped.
#[derive(Debug)]
pub(super) struct Ring {
    base: NonNull<libc::c_void>,
    blocks: usize,
}

// SAFETY: the mapping belongs to this value alone and to no thread; the kernel's side is synchronised through the status
// word of each block.
unsafe impl Send for Ring {}

impl Ring {
    const BLOCK: usize = RingShape::BLOCK as usize;

    fn map(fd: &OwnedFd, shape: RingShape) -> io::Result<Self> {
        let length = NonZeroUsize::new(shape.blocks * Self::BLOCK).ok_or(Errno::EINVAL)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours. It is of the size of the ring
        // that was just set, so no part of it lies beyond the kernel's pages (no SIGBUS), also after the interface is gone
        // or the descriptor is closed: the mapping holds the pages.
        let base =
            unsafe { mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self { base, blocks: shape.blocks })
    }

    fn block(&self, number: usize) -> NonNull<u8> {
        let offset = (number % self.blocks) * Self::BLOCK;
        // SAFETY: the offset is below `blocks * BLOCK`, the length of the mapping.
        unsafe { self.base.cast::<u8>().add(offset) }
    }

    fn status(&self, number: usize) -> &AtomicU32 {
        const STATUS: usize =
            offset_of!(libc::tpacket_block_desc, hdr) + offset_of!(libc::tpacket_hdr_v1, block_status);
        // SAFETY: the word lies inside the block's first bytes, which are page-aligned, so it is aligned; it lives as long as
        // the mapping, which `self` borrows; only atomic operations touch it while the kernel may.
        unsafe { self.block(number).add(STATUS).cast::<AtomicU32>().as_ref() }
    }

    /// The bytes of the block with that number, once the kernel has handed it over.
    pub(super) fn ready(&mut self, number: usize) -> Option<&[u8]> {
        // Pairs with the kernel's barrier before it sets the word: what it wrote into the block is seen after this.
        let ours = self.status(number).load(Ordering::Acquire) & libc::TP_STATUS_USER != 0;
        // SAFETY: the block lies whole inside the mapping. The kernel does not write to a block that it has handed over until
        // `release`, which needs `&mut self` and so cannot be called while the slice lives.
        ours.then(|| unsafe { std::slice::from_raw_parts(self.block(number).as_ptr(), Self::BLOCK) })
    }

    /// Gives a block back to the kernel.
    pub(super) fn release(&mut self, number: usize) {
        // Whatever was read of the block was read before this.
        self.status(number).store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, of that length, and no slice of it outlives the value. An error would mean
        // that it is not mapped.
        let _ = unsafe { munmap(self.base, self.blocks * Self::BLOCK) };
    }
}

/// Plain C structures that the kernel reads and writes as socket options: any bytes are a valid value.
trait Plain: Copy {}
impl Plain for libc::c_int {}
impl Plain for libc::tpacket_req3 {}
impl Plain for libc::tpacket_stats_v3 {}
impl Plain for libc::sock_fprog {}

fn size_of_val_as<T>(value: &T) -> libc::socklen_t {
    // Structures of a few bytes.
    libc::socklen_t::try_from(size_of_val(value)).unwrap_or(0)
}

fn set_option<T: Plain>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` is readable for the length that is said, and the descriptor is open. A pointer inside of it (of a filter)
    // points to a slice that outlives the call.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const *value).cast(), size_of_val_as(value)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn get_option<T: Plain>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    // SAFETY: all zeroes is a valid value of a `Plain`.
    let mut value = unsafe { MaybeUninit::<T>::zeroed().assume_init() };
    let mut length = size_of_val_as(&value);
    // SAFETY: `value` is writable for `length` bytes, the kernel writes at most that many, and the descriptor is open.
    let result = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
