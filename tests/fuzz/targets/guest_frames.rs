//! What a guest writes on its channel, read as hostd does: cut into lines, decoded, taken by a session. The session
//! is pure and comes as its file, without the rest of hostd.
#![no_main]

#[path = "../../../hostd/src/guestlink/session.rs"]
mod session;

use session::{Session, Step};
use vestigo_model::{
    Timestamp,
    link::{LineReader, MAX_FRAME, encode},
};

/// The first byte says how the bytes are cut into reads.
fn reads(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (size, rest) = data.split_first().map_or((1, data), |(first, rest)| (usize::from(*first) + 1, rest));
    rest.chunks(size * 16)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let domain = "6a3cd2bb-9fd1-4f29-8c5b-2f9a7c1b0001".parse().expect("a UUID");
    let now = Timestamp::from_nanos(1_790_000_000_000_000_000);
    let mut session = Session::new(domain, []);
    let mut reader = LineReader::new();
    let mut last = None;
    for read in reads(data) {
        for line in reader.push(read) {
            assert!(
                line.as_ref().map_or(true, |line| !line.is_empty() && line.len() < MAX_FRAME && !line.contains(&b'\n'))
            );
            for step in session.line(&line, now) {
                match step {
                    // A chain has no holes, whatever the guest says; another boot begins another chain.
                    Step::Commit { position, .. } => {
                        if let Some((boot, seq)) = last.replace((position.boot, position.seq)) {
                            assert!(boot != position.boot || position.seq == seq + 1);
                        }
                        assert_eq!(position.domain, domain);
                    }
                    Step::Send(frame) => assert!(encode(&frame).is_some(), "the host's own frames fit"),
                    Step::Met(_) | Step::Heard(_) | Step::Fault(_) => {}
                }
            }
        }
    }
});
