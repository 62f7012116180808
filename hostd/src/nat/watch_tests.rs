#![allow(clippy::unwrap_used)]
use super::*;

#[test]
fn what_is_followed_no_more_is_not_said_to_be() {
    let (nat, thread) = Nat::start(HostId::new("hv1").unwrap(), WatchOptions::default()).unwrap();
    nat.stop();
    thread.join().unwrap();
    let states: Vec<_> = nat.coverage(SystemClock.now()).into_iter().map(|coverage| coverage.state).collect();
    let why = "host: the thread that follows it has ended".to_owned();
    assert!(states.contains(&CoverageState::NatUnseen { why }), "{states:?}");
}
