#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use std::fs;

use vestigo_model::{
    BootId, Exit, Label, PayloadUid, Timestamp,
    link::{HostFrame, encode},
};

use super::{super::session::Session, *};

fn boot() -> BootId {
    BootId(uuid::Uuid::from_u128(1))
}

fn session(saved: Option<Saved>) -> Session {
    Session::new(boot(), Label::new("test").unwrap(), 1 << 20, saved)
}

fn append(session: &mut Session, spool: &mut Spool, n: u128) {
    let claim = Claim::PayloadEnd { uid: PayloadUid(uuid::Uuid::from_u128(n)), exit: Exit::Lost, silent: false };
    let (_, line) = session.append(claim, Timestamp::from_nanos(1)).unwrap();
    spool.record(&line).unwrap();
}

#[test]
fn comes_back_as_it_was_with_or_without_a_torn_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    assert!(Spool::load(&path).unwrap().is_none());
    let mut session = session(None);
    let mut spool = Spool::create(&path, &session.saved()).unwrap();
    for n in 0..5 {
        append(&mut session, &mut spool, n);
    }
    session.opened(Timestamp::from_nanos(0));
    let time = Timestamp::from_nanos(0);
    let welcome = HostFrame::Welcome { protocol: 1, acked: 2, head: Digest::of(&session.saved().pending[1].0), time };
    session.received(&encode(&welcome).unwrap(), time);
    assert_eq!(session.header().acked, 2);
    spool.acknowledged(|| session.saved(), session.header().acked, 0).unwrap();
    spool.debt(4).unwrap();
    let mut expected = session.saved();
    expected.pending[1].1 = true;
    assert_eq!(Spool::load(&path).unwrap().unwrap(), expected);
    // Rewritten, the same; torn, the same.
    spool.rewrite(&expected).unwrap();
    assert_eq!(Spool::load(&path).unwrap().unwrap(), expected);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(b"R {\"half");
    fs::write(&path, bytes).unwrap();
    assert_eq!(Spool::load(&path).unwrap().unwrap(), expected);
}
