//! What lies in a block of the ring (`struct tpacket_block_desc`, Documentation/networking/packet_mmap.rst). Pure: bytes in,
//! frames out. The kernel writes them; every offset and length is checked all the same.

use std::mem::offset_of;

use vestigo_model::Timestamp;

use super::socket::heading;
use crate::meter::Frame;

/// What a block held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Batch {
    /// Frames given out.
    pub frames: u64,
    /// Frames that the kernel says are there and that could not be found.
    pub unreadable: u64,
}

/// Where the block's header says how many frames there are, and where the first one lies.
const COUNT: usize = offset_of!(libc::tpacket_block_desc, hdr) + offset_of!(libc::tpacket_hdr_v1, num_pkts);
const FIRST: usize = offset_of!(libc::tpacket_block_desc, hdr) + offset_of!(libc::tpacket_hdr_v1, offset_to_first_pkt);
/// Where the frame's address lies: behind its header (`TPACKET_ALIGN`).
const ADDRESS: usize = size_of::<libc::tpacket3_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT);
/// The VLAN id in a tag's 16 bits.
const VLAN_ID: u32 = 0x0fff;

/// Gives out the frames of a block, in the order in which they came.
pub fn frames(block: &[u8], visit: &mut dyn FnMut(&Frame<'_>)) -> Batch {
    let mut batch = Batch::default();
    let (Some(count), Some(first)) = (word(block, COUNT), word(block, FIRST)) else { return batch };
    let mut at = first;
    for left in (1..=u64::from(count)).rev() {
        let Some(bytes) = usize::try_from(at).ok().and_then(|at| block.get(at..)) else {
            return Batch { unreadable: left, ..batch };
        };
        match frame(bytes) {
            Some(frame) => {
                visit(&frame);
                batch.frames += 1;
            }
            None => batch.unreadable += 1,
        }
        let next = word(bytes, offset_of!(libc::tpacket3_hdr, tp_next_offset)).unwrap_or(0);
        match at.checked_add(next) {
            Some(following) if next > 0 => at = following,
            _ => return Batch { unreadable: batch.unreadable + left - 1, ..batch },
        }
    }
    batch
}

/// The frame at the start of the bytes.
fn frame(bytes: &[u8]) -> Option<Frame<'_>> {
    let header = |offset| word(bytes, offset);
    let start = usize::from(half(bytes, offset_of!(libc::tpacket3_hdr, tp_mac))?);
    let kept = usize::try_from(header(offset_of!(libc::tpacket3_hdr, tp_snaplen))?).ok()?;
    let wire_len = usize::try_from(header(offset_of!(libc::tpacket3_hdr, tp_len))?).ok()?;
    let status = header(offset_of!(libc::tpacket3_hdr, tp_status))?;
    let tag = offset_of!(libc::tpacket3_hdr, hv1) + offset_of!(libc::tpacket_hdr_variant1, tp_vlan_tci);
    let tag = header(tag)? & VLAN_ID;
    let (seconds, nanos) =
        (header(offset_of!(libc::tpacket3_hdr, tp_sec))?, header(offset_of!(libc::tpacket3_hdr, tp_nsec))?);
    let packet_type = *bytes.get(ADDRESS + offset_of!(libc::sockaddr_ll, sll_pkttype))?;
    Some(Frame {
        bytes: bytes.get(start..start.checked_add(kept)?)?,
        wire_len,
        // A priority without a VLAN (id 0) is no VLAN.
        vlan: (status & libc::TP_STATUS_VLAN_VALID != 0 && tag != 0).then(|| u16::try_from(tag).ok()).flatten(),
        time: Timestamp::from_nanos(i64::from(seconds) * 1_000_000_000 + i64::from(nanos)),
        heading: heading(packet_type),
    })
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]
    use proptest::prelude::*;

    use super::*;
    use crate::decode::Heading;

    /// A block as the kernel would lay it out.
    fn block(frames: &[(&[u8], u32, u32, u8)]) -> Vec<u8> {
        let mut block = vec![0; 48];
        block[COUNT..COUNT + 4].copy_from_slice(&(frames.len() as u32).to_ne_bytes());
        block[FIRST..FIRST + 4].copy_from_slice(&48_u32.to_ne_bytes());
        for (number, (bytes, wire_len, tag, packet_type)) in frames.iter().enumerate() {
            let start = block.len();
            block.resize(start + 96, 0);
            block.extend_from_slice(bytes);
            block.resize(block.len().next_multiple_of(8), 0);
            let next = if number + 1 == frames.len() { 0 } else { block.len() - start };
            let mut put = |offset: usize, bytes: &[u8]| {
                block[start + offset..start + offset + bytes.len()].copy_from_slice(bytes);
            };
            put(0, &(next as u32).to_ne_bytes());
            put(4, &7_u32.to_ne_bytes());
            put(8, &9_u32.to_ne_bytes());
            put(12, &(bytes.len() as u32).to_ne_bytes());
            put(16, &wire_len.to_ne_bytes());
            put(20, &(if *tag == 0 { 0 } else { libc::TP_STATUS_VLAN_VALID }).to_ne_bytes());
            put(24, &96_u16.to_ne_bytes());
            put(32, &tag.to_ne_bytes());
            put(48 + 10, &[*packet_type]);
        }
        block
    }

    type Seen = (Vec<u8>, usize, Option<u16>, Heading);

    fn read(block: &[u8]) -> (Batch, Vec<Seen>) {
        let mut seen = Vec::new();
        let batch = frames(block, &mut |f| {
            assert_eq!(f.time.as_nanos(), 7_000_000_009);
            seen.push((f.bytes.to_vec(), f.wire_len, f.vlan, f.heading));
        });
        (batch, seen)
    }

    #[test]
    fn frames_come_with_what_the_kernel_knows_of_them() {
        let block = block(&[(b"one", 65_226, 0, libc::PACKET_HOST), (b"second", 6, 0x6007, libc::PACKET_OUTGOING)]);
        let (batch, seen) = read(&block);
        assert_eq!(batch, Batch { frames: 2, unreadable: 0 });
        assert_eq!(seen[0], (b"one".to_vec(), 65_226, None, Heading::FromVm));
        assert_eq!(seen[1], (b"second".to_vec(), 6, Some(7), Heading::ToVm));
    }

    #[test]
    fn what_is_said_and_not_there_is_counted() {
        let whole = block(&[(b"one", 3, 0, 0), (b"two", 3, 0, 0), (b"six", 3, 0, 0)]);
        let changed = |offset: usize, value: u32| {
            let mut block = whole.clone();
            block[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
            read(&block).0
        };
        assert_eq!(changed(FIRST, u32::MAX), Batch { frames: 0, unreadable: 3 });
        assert_eq!(changed(48, 1 << 20), Batch { frames: 1, unreadable: 2 });
        assert_eq!(changed(48, 0), Batch { frames: 1, unreadable: 2 });
        assert_eq!(changed(48 + 12, 1 << 20), Batch { frames: 2, unreadable: 1 });
        assert_eq!(changed(COUNT, 5), Batch { frames: 3, unreadable: 2 });
        assert_eq!(read(&whole[..10]).0, Batch::default());
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_every_promise_is_accounted_for(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..600),
            count in 0_u32..40,
        ) {
            if let Some(said) = bytes.get_mut(COUNT..COUNT + 4) {
                said.copy_from_slice(&count.to_ne_bytes());
            }
            let batch = frames(&bytes, &mut |_| {});
            let expected = if bytes.len() < FIRST + 4 { 0 } else { u64::from(count) };
            prop_assert_eq!(batch.frames + batch.unreadable, expected);
        }
    }
}
