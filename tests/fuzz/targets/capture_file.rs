//! A capture file that somebody hands over: read to its end or to where it breaks, in pieces of any size, always the same.
#![no_main]

#[path = "../../../hostd/src/offline/capture_file.rs"]
#[allow(dead_code, reason = "the rest of hostd uses more of it")]
mod capture_file;
#[path = "../../../hostd/src/decode/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the rest of hostd uses more of it")]
mod decode;

use std::io::{self, Read};

use capture_file::CaptureFile;

/// Gives so many bytes at a time.
struct Drip<'a>(&'a [u8], usize);

impl Read for Drip<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let got = room.len().min(self.1).min(self.0.len());
        room[..got].copy_from_slice(&self.0[..got]);
        self.0 = &self.0[got..];
        Ok(got)
    }
}

/// Packets, their bytes, and how it ended.
fn read(data: &[u8], piece: usize) -> (usize, usize, String) {
    let mut file = match CaptureFile::open(Drip(data, piece)) {
        Ok(file) => file,
        Err(error) => return (0, 0, error.to_string()),
    };
    let (mut packets, mut bytes) = (0, 0);
    loop {
        match file.next() {
            Ok(Some(captured)) => {
                (packets, bytes) = (packets + 1, bytes + captured.bytes.len());
                assert!(captured.bytes.len() <= data.len());
                let _ = captured.decode();
            }
            Ok(None) => return (packets, bytes, String::new()),
            Err(error) => return (packets, bytes, error.to_string()),
        }
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let whole = read(data, usize::MAX);
    let piece = data.last().map_or(1, |byte| usize::from(*byte) + 1);
    assert_eq!(read(data, piece), whole);
});
