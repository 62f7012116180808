//! What a host writes on the channel, read as the agent does, with records of the agent's own in between. The first byte says after
//! how many lines each record is made.
#![no_main]

use guest_agent::link::session::Session;
use vestigo_model::{
    Exit, Label, PayloadUid, Timestamp,
    link::{Claim, GuestFrame, LineReader, decode},
};

const LIMIT: usize = 4096;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    let now = Timestamp::from_nanos(1_790_000_000_000_000_000);
    let boot = "0193a1b2-0000-7000-8000-000000000000".parse().expect("a UUID");
    let mut session = Session::new(boot, Label::new("fuzz").expect("a label"), LIMIT, None);
    let uid: PayloadUid = "0193a1b2-0000-4000-8000-000000000001".parse().expect("a UUID");
    session.opened(now);
    let mut answered = Vec::new();
    for (number, line) in LineReader::new().push(data).into_iter().enumerate() {
        if number % (usize::from(*first % 8) + 1) == 0 {
            let _ = session.append(Claim::PayloadEnd { uid, exit: Exit::Code(0), silent: false }, now);
        }
        let Ok(line) = line else { continue };
        for (ticket, _) in session.received(&line, now).0 {
            assert!(!answered.contains(&ticket), "a record is decided once");
            answered.push(ticket);
        }
        while let Some(line) = session.next_line() {
            let line = line.strip_suffix(b"\n").expect("one line");
            assert!(matches!(decode(line), Ok(GuestFrame::Record(_))), "what is sent is a record");
        }
        let header = session.header();
        assert!(header.acked <= header.last, "nothing is acknowledged that was not made");
        // What is kept can be taken up again.
        let saved = session.saved();
        let again = Session::new(boot, Label::new("fuzz").expect("a label"), LIMIT, Some(saved.clone()));
        assert_eq!(again.saved(), saved);
    }
});
