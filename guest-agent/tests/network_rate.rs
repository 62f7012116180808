//! How many payload networks a second can be made and taken away.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
mod common;
use guest_agent::{
    config::Config,
    lease::Slot,
    network::{Networks, Plan},
};
use std::time::Instant;

#[test]
fn rate() {
    let _peer = common::network();
    let folder = tempfile::tempdir().unwrap();
    let config = Config { state_dir: folder.path().into(), ..Config::default() };
    let networks = Networks::start(&config).unwrap();
    let n: u16 = std::env::var("N").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let (mut add, mut rem) = (0.0, 0.0);
    for i in 0..n {
        let slot = Slot(i % 44);
        let plan = Plan::new(config.inner_network.base, slot, config.blocks().unwrap().ports(slot));
        let t = Instant::now();
        let ns = networks.add(&plan).unwrap();
        add += t.elapsed().as_secs_f64();
        let t = Instant::now();
        networks.remove(&plan);
        drop(ns);
        rem += t.elapsed().as_secs_f64();
    }
    let ms = |x: f64| x * 1000.0 / f64::from(n);
    println!("add {:.2} ms, remove {:.2} ms", ms(add), ms(rem));
}
