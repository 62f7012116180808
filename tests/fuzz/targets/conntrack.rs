//! A datagram from the kernel's connection tracking. The decoder is pure and comes as its file, without the rest of hostd.
#![no_main]

#[path = "../../../hostd/src/nat/message.rs"]
#[allow(dead_code, reason = "the rest of hostd uses more of it")]
mod message;

use message::Message;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut count = 0;
    for (_, one) in message::messages(data) {
        count += 1;
        let Ok(Message::New(entry) | Message::Destroyed(entry)) = one else { continue };
        let ends = [entry.original.0, entry.original.1, entry.reply.0, entry.reply.1];
        let family = entry.original.0.0.is_ipv4();
        assert!(ends.iter().all(|(ip, _)| ip.is_ipv4() == family), "one family");
        if (entry.reply.1, entry.reply.0) == entry.original {
            assert!(!entry.is_translated());
        }
    }
    assert!(count <= data.len() / 16 + 1, "a message has a header");
});
