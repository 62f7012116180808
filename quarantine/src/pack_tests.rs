#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]
use super::*;
use proptest::prelude::*;

fn build(chunks: &[Vec<u8>]) -> Finished {
    let mut builder = Builder::new(Domain::site());
    for chunk in chunks {
        let (method, payload) = encode_chunk(1, chunk).unwrap();
        builder.push(ChunkId::of(chunk), method, as_u32(chunk.len()), &payload);
    }
    builder.finish()
}

fn read(bytes: &[u8]) -> Result<Vec<Entry>, PackError> {
    let at = bytes.len().checked_sub(FOOTER).ok_or(Short)?;
    let footer = Footer::decode(&bytes[at..], as_u64(bytes.len()))?;
    footer.entries(&bytes[as_usize(footer.entries_offset)..at])
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..2000), 0..12)) {
        let pack = build(&chunks);
        let entries = read(&pack.bytes).unwrap();
        prop_assert_eq!(&entries, &pack.entries);
        prop_assert_eq!(Header::decode(&pack.bytes).unwrap(), Header { id: pack.id, domain: Domain::site() });
        for (entry, chunk) in entries.iter().zip(&chunks) {
            let at = entry.offset as usize;
            prop_assert_eq!(decode_record(&pack.bytes[at..], entry.offset).unwrap(), *entry);
            let payload = &pack.bytes[at + RECORD..as_usize(entry.end())];
            prop_assert_eq!(&decode_chunk(entry.method, payload, entry.raw_len).unwrap(), chunk);
        }
    }

    #[test]
    fn a_cut_pack_is_never_taken_for_a_whole_one(cut in 1usize..3000) {
        let pack = build(&[vec![7; 1000], (0..255).collect()]);
        let keep = pack.bytes.len().saturating_sub(cut);
        prop_assert!(read(&pack.bytes[..keep]).is_err());
    }

    #[test]
    fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&bytes);
        let _ = Header::decode(&bytes);
        let _ = decode_record(&bytes, 0);
        let _ = decode_chunk(Method::Zstd, &bytes, 4096);
    }
}

#[test]
fn a_bomb_makes_no_more_than_it_declared() {
    let bomb = zstd::bulk::compress(&vec![0; 8 << 20], 1).unwrap();
    assert!(decode_chunk(Method::Zstd, &bomb, 1000).is_err());
    assert!(decode_chunk(Method::Zstd, &bomb, u32::MAX).is_err());
}

#[test]
fn text_is_compressed_and_noise_is_not() {
    assert_eq!(encode_chunk(1, &[b'a'; 5000]).unwrap().0, Method::Zstd);
    let mut noise = vec![0; 5000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    assert_eq!(encode_chunk(1, &noise).unwrap().0, Method::Raw);
}
