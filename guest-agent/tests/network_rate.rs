//! How many payload networks a second can be made and taken away, by several threads at once, as a pool of prepared sandboxes does.
//! Prints the figures; the bounds are far above them, for busy machines.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::{
    collections::VecDeque,
    fs,
    time::{Duration, Instant},
};

use common::wait_for;
use guest_agent::{
    config::Config,
    lease::Slot,
    network::{Networks, Plan, uplink},
};

const ROUNDS: u16 = 100;
const THREADS: u16 = 3;
/// Networks that each thread keeps at a time.
const KEPT: usize = 8;

/// Seconds that the machine's processors have worked, kernel threads included.
fn worked() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let fields: Vec<f64> =
        stat.lines().next().unwrap().split_whitespace().skip(1).map(|f| f.parse().unwrap()).collect();
    (fields.iter().sum::<f64>() - fields[3] - fields[4]) / 100.0
}

#[test]
fn many_networks_a_second() {
    let _peer = common::network();
    let folder = tempfile::tempdir().unwrap();
    let config = Config { state_dir: folder.path().into(), ..Config::default() };
    let networks = Networks::start(&config).unwrap();
    let (start, before) = (Instant::now(), worked());
    let sum = |times: Vec<(Duration, Duration)>| {
        times.into_iter().fold((0.0, 0.0), |sum, one| (sum.0 + one.0.as_secs_f64(), sum.1 + one.1.as_secs_f64()))
    };
    let (add, remove) = std::thread::scope(|scope| {
        let worker = |thread: u16| {
            let (networks, config) = (&networks, &config);
            move || {
                let (mut add, mut remove) = (Duration::ZERO, Duration::ZERO);
                let mut kept = VecDeque::new();
                for round in 0..ROUNDS {
                    if kept.len() == KEPT {
                        let (plan, namespace) = kept.pop_front().unwrap();
                        let start = Instant::now();
                        assert!(!networks.remove(&plan), "nothing was sent");
                        drop::<guest_agent::network::Namespace>(namespace);
                        remove += start.elapsed();
                    }
                    let slot = Slot(thread * 18 + round % 18);
                    let plan = Plan::new(config.inner_network.base, slot, config.blocks().unwrap().ports(slot));
                    let start = Instant::now();
                    let namespace = networks.add(&plan).unwrap();
                    add += start.elapsed();
                    kept.push_back((plan, namespace));
                }
                kept.iter().for_each(|(plan, _)| assert!(!networks.remove(plan)));
                (add, remove)
            }
        };
        let workers: Vec<_> = (0..THREADS).map(|thread| scope.spawn(worker(thread))).collect();
        sum(workers.into_iter().map(|worker| worker.join().unwrap()).collect())
    });
    let (took, cost) = (start.elapsed().as_secs_f64(), worked() - before);
    // The same again, as far as the payloads had no use for it.
    let plan = Plan::new(config.inner_network.base, Slot(0), config.blocks().unwrap().ports(Slot(0)));
    let mut namespace = networks.add(&plan).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let renewing = Instant::now();
    for _ in 0..ROUNDS {
        namespace = networks.renew(&plan, namespace).unwrap();
    }
    println!("network_renew_ms: {:.3}", renewing.elapsed().as_secs_f64() * 1000.0 / f64::from(ROUNDS));
    networks.remove(&plan);
    drop(namespace);
    let all = f64::from(ROUNDS * THREADS);
    println!("network_add_ms: {:.2}", add * 1000.0 / all);
    println!("network_remove_ms: {:.2}", remove * 1000.0 / all);
    println!("networks_per_second: {:.0}", all / took);
    println!("network_cpu_ms: {:.2}", cost * 1000.0 / all);
    assert!(all / took > 20.0, "{took} s");
    wait_for("the kernel to clear up", || !uplink::interfaces().unwrap().iter().any(|name| name.starts_with("vgp")));
}
