//! Groups of payloads against the kernel of this machine (root). Every test runs on the layout that the machine has and, where
//! it says so, on the v1 part of it alone. Machines with controllers on v2 are imitated in `src/cgroup/parent_tests.rs`.
//!
//! Groups are named after the test's process. What a killed run left is removed by the next one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use guest_agent::cgroup::{
    Absence, CgroupError, Cgroups, Group, Layout, Limits, Millicores, Part, join,
    layout::{Sources, Version},
};
use nix::unistd::Pid;

const NONE: Limits = Limits { memory: None, pids: None, cpu: None };

/// The machine's layout as if these mounts were not there.
fn layout_without(words: &[&str]) -> Layout {
    let read = |path: &str| fs::read_to_string(path).unwrap();
    let mountinfo: Vec<String> = read("/proc/self/mountinfo")
        .lines()
        .filter(|line| !words.iter().any(|w| line.contains(w)))
        .map(str::to_owned)
        .collect();
    let (own, cgroups) = (read("/proc/self/cgroup"), read("/proc/cgroups"));
    let sources = Sources { mountinfo: &mountinfo.join("\n"), own: &own, cgroups: &cgroups };
    Layout::parse(&sources, |group| fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default())
}

fn v1() -> Layout {
    layout_without(&[" cgroup2 "])
}

fn v1_without_freezer() -> Layout {
    layout_without(&[" cgroup2 ", "freezer"])
}

/// Parent groups of this test alone; removes those of tests that were killed.
fn groups(layout: &Layout, test: &str) -> Cgroups {
    for hierarchy in layout.hierarchies() {
        for entry in fs::read_dir(&hierarchy.own).unwrap().filter_map(Result::ok) {
            let name = entry.file_name().into_string().unwrap_or_default();
            let dead = |pid: &str| pid.parse::<u32>().is_ok() && !Path::new(&format!("/proc/{pid}")).exists();
            if name.starts_with("vtest-") && name.rsplit('-').next().is_some_and(dead) {
                let _ = Cgroups::start(layout, &name);
            }
        }
    }
    Cgroups::start(layout, &format!("vtest-{test}-{}", std::process::id())).unwrap()
}

/// A script that runs in the group from its first line on.
struct Payload(Child);

impl Payload {
    fn start(group: &Group, script: &str) -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "sh", "-c", &format!("read go\n{script}")]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        group.enter(Pid::from_raw(child.id().cast_signed()), false).unwrap();
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        Self(child)
    }

    fn wait(&mut self) {
        self.0.wait().unwrap();
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn count(group: &Group) -> usize {
    group.tree().processes().unwrap().len()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// All folders of a group, by their names.
fn folders(layout: &Layout, parent: &str) -> Vec<PathBuf> {
    layout.hierarchies().iter().map(|h| h.own.join(parent)).filter(|p| p.exists()).collect()
}

#[test]
fn this_machine_has_what_the_tests_need() {
    let layout = Layout::detect();
    for part in Part::ALL {
        assert!(layout.home(part).is_ok(), "{part}: {}", layout.home(part).unwrap_err());
    }
}

/// 2^9 processes if nothing stopped it.
const FORK_BOMB: &str = "b() { [ $1 -gt 8 ] || { b $(($1+1)) & b $(($1+1)) & }; sleep 1000; }; b 0";

#[test]
fn a_fork_bomb_stops_at_its_limit() {
    for (layout, name) in [(Layout::detect(), "bomb"), (v1(), "bomb1"), (v1_without_freezer(), "bomb2")] {
        let groups = groups(&layout, name);
        let group = groups.create("payload", &Limits { pids: Some(20), ..NONE }).unwrap();
        let mut payload = Payload::start(&group, FORK_BOMB);
        wait_for("the limit", || {
            // A shell that cannot fork gives up, so how few are left says nothing.
            assert!(count(&group) <= 20);
            group.events().pids_max_hits.unwrap() > 0
        });
        group.remove().unwrap();
        payload.wait();
    }
}

#[test]
fn a_memory_hog_is_killed_and_reported() {
    for (layout, name) in [(Layout::detect(), "hog"), (v1(), "hog1")] {
        let groups = groups(&layout, name);
        let group = groups.create("payload", &Limits { memory: Some(32 << 20), ..NONE }).unwrap();
        assert_eq!(group.events().oom_kills, Some(0));
        // It keeps the one endless line in memory.
        Payload::start(&group, "head -c 300000000 /dev/zero | tail -n 1").wait();
        let events = group.events();
        assert!(events.oom_kills.unwrap() > 0, "{events:?}");
        assert!((20 << 20..=32 << 20).contains(&events.memory_peak.unwrap()), "{events:?}");
    }
}

#[test]
fn processor_time_is_rationed_and_the_ration_can_be_lifted() {
    let groups = groups(&Layout::detect(), "cpu");
    let mut group = groups.create("payload", &Limits { cpu: Some(Millicores(200)), ..NONE }).unwrap();
    let _payload = Payload::start(&group, "while :; do :; done & while :; do :; done");
    let used = |group: &Group, time: Duration| {
        let (start, before) = (Instant::now(), group.events().cpu_usec.unwrap());
        std::thread::sleep(time);
        let micros = u128::from(group.events().cpu_usec.unwrap() - before);
        micros * 1000 / start.elapsed().as_micros()
    };
    // One period's worth may come at either end.
    let limited = used(&group, Duration::from_secs(2));
    assert!((20..=280).contains(&limited), "{limited} thousandths of a core");
    group.set(&NONE).unwrap();
    // Others use this machine too: some second it must get more than the ration.
    wait_for("more processor time", || used(&group, Duration::from_secs(1)) > 300);
}

#[test]
fn frozen_is_frozen() {
    for (layout, name) in [(Layout::detect(), "freeze"), (v1(), "freeze1")] {
        let groups = groups(&layout, name);
        let group = groups.create("payload", &NONE).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("count");
        let script = format!("while :; do i=$((i+1)); echo $i > {}.new; mv {0}.new {0}; done", file.display());
        let _payload = Payload::start(&group, &script);
        let read = || fs::read_to_string(&file).unwrap_or_default();
        wait_for("a count", || !read().is_empty());
        group.tree().freeze().unwrap();
        let stood = read();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(read(), stood, "{name}");
        group.tree().thaw().unwrap();
        wait_for("movement", || read() != stood);
        // What is frozen can be killed.
        group.tree().freeze().unwrap();
        group.tree().kill().unwrap();
        assert!(group.tree().wait_empty(soon()), "{name}");
    }
}

/// 200 that leave their session and their parent.
const DAEMONS: &str = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); (setsid sleep 1000 &); done; sleep 1000";

#[test]
fn daemons_die_too() {
    for (layout, name) in [(Layout::detect(), "kill"), (v1(), "kill1"), (v1_without_freezer(), "kill2")] {
        let groups = groups(&layout, name);
        let group = groups.create("payload", &NONE).unwrap();
        let payload = Payload::start(&group, DAEMONS);
        wait_for("200 daemons", || count(&group) >= 201);
        let start = Instant::now();
        group.tree().kill().unwrap();
        assert!(group.tree().wait_empty(soon()), "{name}");
        assert!(start.elapsed() < Duration::from_secs(2), "{name}: {:?}", start.elapsed());
        assert_eq!(count(&group), 0);
        drop(payload);
    }
}

#[test]
fn without_the_kernels_own_kill_a_forking_payload_dies_as_well() {
    let groups = groups(&Layout::detect(), "one");
    let group = groups.create("payload", &NONE).unwrap();
    let _payload = Payload::start(&group, "while :; do (sleep 0.05 &); done");
    wait_for("forks", || count(&group) > 5);
    group.tree().kill_one_by_one(soon()).unwrap();
    assert!(group.tree().wait_empty(Instant::now()) && count(&group) == 0);
}

#[test]
fn groups_in_a_group_belong_to_it() {
    for (layout, name) in [(Layout::detect(), "sub"), (v1(), "sub1")] {
        let groups = groups(&layout, name);
        let group = groups.create("payload", &NONE).unwrap();
        let top = group.tree().path().to_owned();
        let deep = top.join("a/b");
        fs::create_dir_all(&deep).unwrap();
        fs::create_dir(top.join("c")).unwrap();
        let mut payload = Payload::start(&group, &format!("echo 0 > {}/cgroup.procs; sleep 1000", deep.display()));
        wait_for("a move", || !fs::read_to_string(deep.join("cgroup.procs")).unwrap().is_empty());
        assert!(count(&group) >= 1);
        assert!(!group.tree().wait_empty(Instant::now() + Duration::from_millis(50)), "{name}");
        group.tree().freeze().unwrap();
        group.tree().thaw().unwrap();
        group.remove().unwrap();
        payload.wait();
        assert!(!top.exists(), "{name}");
    }
}

#[test]
fn what_an_earlier_agent_left_is_ended() {
    for (layout, test) in [(Layout::detect(), "left"), (v1(), "left1")] {
        let name = format!("vtest-{test}-{}", std::process::id());
        // As it lies there when an agent was killed: no lock, a payload in one group, an empty one, one in the other tree.
        let home = layout.home(Part::Tree).unwrap();
        let old = home.own.join(&name).join("old");
        fs::create_dir_all(old.join("sub")).unwrap();
        fs::create_dir(home.own.join(&name).join("empty")).unwrap();
        fs::create_dir_all(layout.home(Part::Pids).unwrap().own.join(&name).join("old")).unwrap();
        let mut payload = Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(old.join("sub/cgroup.procs"), payload.id().to_string()).unwrap();
        let groups = groups(&layout, test);
        assert!(!payload.wait().unwrap().success());
        assert!(folders(&layout, &format!("{name}/old")).is_empty() && !home.own.join(&name).join("empty").exists());
        assert_eq!(groups.stuck(), 0);
        drop(groups);
        assert!(folders(&layout, &name).is_empty(), "{:?}", folders(&layout, &name));
    }
}

/// A process that v1's freezer holds takes no signal, as one that waits for a dead disk.
#[test]
fn what_does_not_die_is_counted_and_nobody_waits_for_ever() {
    let layout = Layout::detect();
    // A group in a group: what the next run, on v1, takes for a left-over and ends.
    let holder = v1().home(Part::Freezer).unwrap().own.join(format!("vtest-held-{}", std::process::id()));
    let freezer = holder.join("payload");
    fs::create_dir_all(&freezer).unwrap();
    let groups = groups(&layout, "stuck");
    let group = groups.create("payload", &Limits { pids: Some(9), ..NONE }).unwrap();
    let mut payload = Payload::start(&group, "sleep 1000");
    fs::write(freezer.join("cgroup.procs"), payload.0.id().to_string()).unwrap();
    fs::write(freezer.join("freezer.state"), "FROZEN").unwrap();
    wait_for("frost", || fs::read_to_string(freezer.join("freezer.state")).unwrap().trim() == "FROZEN");

    let start = Instant::now();
    let said = group.remove().unwrap_err().to_string();
    assert!(said.contains("do not die"), "{said}");
    assert_eq!(groups.stuck(), 1);
    drop(groups);
    // The next agent cannot end it either, says so, and starts.
    let name = format!("vtest-stuck-{}", std::process::id());
    let groups = Cgroups::start(&layout, &name).unwrap();
    assert!(groups.stuck() > 0);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert!(groups.create("payload", &NONE).is_err());
    drop(groups);

    fs::write(freezer.join("freezer.state"), "THAWED").unwrap();
    payload.wait();
    let groups = Cgroups::start(&layout, &name).unwrap();
    assert_eq!(groups.stuck(), 0);
    wait_for("an empty freezer", || fs::remove_dir(&freezer).is_ok());
    fs::remove_dir(&holder).unwrap();
}

#[test]
fn a_second_agent_does_not_kill_the_payloads_of_the_first() {
    let layout = Layout::detect();
    let groups = groups(&layout, "two");
    let group = groups.create("payload", &NONE).unwrap();
    let mut payload = Payload::start(&group, "sleep 1000");
    let name = format!("vtest-two-{}", std::process::id());
    assert!(matches!(Cgroups::start(&layout, &name), Err(CgroupError::InUse(_))));
    // A payload outlives the value that made its group, and the lock with it.
    drop(groups);
    assert!(matches!(Cgroups::start(&layout, &name), Err(CgroupError::InUse(_))));
    assert!(payload.0.try_wait().unwrap().is_none());
    assert!(count(&group) > 0);
}

#[test]
fn dropping_leaves_nothing_and_a_name_in_use_is_left_alone() {
    let layout = Layout::detect();
    let groups = groups(&layout, "drop");
    let limits = Limits { memory: Some(64 << 20), pids: Some(10), cpu: Some(Millicores(500)) };
    let group = groups.create("payload", &limits).unwrap();
    let mut payload = Payload::start(&group, "sleep 1000");
    assert!(groups.create("payload", &limits).is_err());
    assert!(count(&group) > 0);
    let name = format!("vtest-drop-{}/payload", std::process::id());
    assert_eq!(folders(&layout, &name).len(), 4);
    let tree = group.tree().clone();
    drop(group);
    payload.wait();
    assert!(folders(&layout, &name).is_empty());
    // A handle that outlives the group does no harm.
    tree.kill().unwrap();
    assert!(tree.is_empty().unwrap() && tree.wait_empty(Instant::now()) && tree.processes().unwrap().is_empty());
}

#[test]
fn only_limited_trees_are_used_and_limits_can_come_later() {
    let layout = Layout::detect();
    let groups = groups(&layout, "later");
    let mut group = groups.create("payload", &NONE).unwrap();
    assert!(group.doors().is_empty(), "{:?}", group.doors());
    assert_eq!(group.events().pids_max_hits, None);
    let _payload = Payload::start(&group, "while :; do (sleep 0.2 &); sleep 0.01; done");
    wait_for("forks", || count(&group) > 5);
    group.set(&Limits { pids: Some(3), ..NONE }).unwrap();
    assert_eq!(group.doors().len(), 1);
    wait_for("the limit", || group.events().pids_max_hits.unwrap() > 0);
    wait_for("few", || count(&group) <= 3);
}

#[test]
fn memory_limits_go_up_and_down() {
    let groups = groups(&Layout::detect(), "memory");
    let memory = |mib: u64| Limits { memory: Some(mib << 20), ..NONE };
    let mut group = groups.create("payload", &memory(64)).unwrap();
    for limits in [memory(128), memory(32), NONE, memory(16)] {
        group.set(&limits).unwrap();
        assert_eq!(group.limits(), &limits);
    }
    let file = group.doors()[0].with_file_name("memory.limit_in_bytes");
    assert_eq!(fs::read_to_string(file).unwrap().trim(), (16 << 20).to_string());
}

#[test]
fn what_the_kernel_refuses_is_said_with_file_and_value() {
    let groups = groups(&Layout::detect(), "refuse");
    // More than the kernel can count (PID_MAX_LIMIT).
    let refused = groups.create("payload", &Limits { pids: Some(u32::MAX), ..NONE }).unwrap_err();
    assert!(matches!(&refused, CgroupError::Refused { value, .. } if value == "4294967295"), "{refused}");
    assert!(refused.to_string().contains("pids.max"), "{refused}");
    // Nothing is left in the way.
    groups.create("payload", &NONE).unwrap();
}

#[test]
fn a_missing_controller_is_named() {
    let groups = groups(&layout_without(&["/cgroup/pids"]), "missing");
    let limits = Limits { pids: Some(5), ..NONE };
    assert_eq!(groups.missing(&limits), [Part::Pids]);
    let refused = groups.create("payload", &limits).unwrap_err();
    let expected = matches!(refused, CgroupError::Missing { part: Part::Pids, why: Absence::NotMounted });
    assert!(expected, "{refused}");
    let mut group = groups.create("payload", &limits.without(Part::Pids)).unwrap();
    assert!(matches!(group.set(&limits), Err(CgroupError::Missing { part: Part::Pids, .. })));
    assert_eq!(groups.version(Part::Tree), Some(Version::Two));
}

#[test]
fn a_process_moves_itself_through_the_doors() {
    let groups = groups(&Layout::detect(), "doors");
    let limits = Limits { memory: Some(64 << 20), pids: Some(10), ..NONE };
    let group = groups.create("payload", &limits).unwrap();
    assert_eq!(group.doors().len(), 2);
    let doors = group.doors();
    // A thread of its own: only the thread that calls is moved.
    let inside = std::thread::spawn(move || {
        join(&doors).unwrap();
        fs::read_to_string("/proc/thread-self/cgroup").unwrap()
    });
    let inside = inside.join().unwrap();
    for controller in ["memory", "pids"] {
        let line = inside.lines().find(|l| l.contains(&format!(":{controller}:"))).unwrap();
        assert!(line.ends_with("/payload"), "{line}");
    }
}

mod figures {
    use super::*;

    const RUNS: usize = 500;

    #[derive(Default)]
    struct Times(Vec<Duration>);

    impl Times {
        fn add<T>(&mut self, work: impl FnOnce() -> T) -> T {
            let start = Instant::now();
            let result = work();
            self.0.push(start.elapsed());
            result
        }

        fn print(mut self, name: &str) {
            self.0.sort();
            let at = |percent: usize| self.0[(self.0.len() - 1) * percent / 100].as_micros();
            println!("{name}: median {} us, p95 {} us, max {} us", at(50), at(95), at(100));
        }
    }

    /// User and system time of this process in ms.
    fn processor() -> u64 {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10
    }

    const WAYS: [(&str, Limits); 4] = [
        ("no limits", NONE),
        ("pids", Limits { pids: Some(100), ..NONE }),
        ("memory and pids", Limits { memory: Some(256 << 20), pids: Some(100), cpu: None }),
        ("memory, pids, cpu", Limits { memory: Some(256 << 20), pids: Some(100), cpu: Some(Millicores(1000)) }),
    ];

    #[derive(Clone, Copy)]
    struct Run {
        limits: Limits,
        count: usize,
        from_outside: bool,
        pause: Duration,
    }

    fn one_by_one(groups: &Cgroups, worker: usize, how: Run) -> [Times; 3] {
        let [mut create, mut enter, mut remove] = [Times::default(), Times::default(), Times::default()];
        for run in 0..how.count {
            std::thread::sleep(how.pause);
            let group = create.add(|| groups.create(&format!("p{worker}-{run}"), &how.limits).unwrap());
            if how.from_outside {
                let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
                let pid = Pid::from_raw(child.id().cast_signed());
                enter.add(|| group.enter(pid, false).unwrap());
                child.kill().unwrap();
                child.wait().unwrap();
            } else {
                let doors = group.doors();
                let time = std::thread::spawn(move || {
                    let mut time = Times::default();
                    time.add(|| join(&doors).unwrap());
                    time.0[0]
                });
                enter.0.push(time.join().unwrap());
            }
            remove.add(|| group.remove().unwrap());
        }
        [create, enter, remove]
    }

    /// `cargo nextest run -p guest-agent -E 'test(figures)' --run-ignored only --no-capture`
    #[test]
    #[ignore = "prints figures, proves nothing"]
    fn what_a_group_costs() {
        let groups = groups(&Layout::detect(), "costs");
        for (name, limits) in WAYS {
            for (way, from_outside) in [("moves itself (v1 only)", false), ("moved from outside (v2 and v1)", true)] {
                // A pause is what a VM sees that starts a payload now and then.
                for (workers, runs, pause) in [(1, RUNS, 0), (4, RUNS, 0), (1, 100, 40)] {
                    let pause = Duration::from_millis(pause);
                    let how = Run { limits, count: runs / workers, from_outside, pause };
                    let before = processor();
                    let times: Vec<[Times; 3]> = std::thread::scope(|scope| {
                        let groups = &groups;
                        let all: Vec<_> =
                            (0..workers).map(|w| scope.spawn(move || one_by_one(groups, w, how))).collect();
                        all.into_iter().map(|t| t.join().unwrap()).collect()
                    });
                    let used = (processor() - before) * 1000 / runs as u64;
                    println!("-- {name}, {way}, {workers} at once, pause {pause:?}: {used} us of processor a run");
                    let mut all = [Times::default(), Times::default(), Times::default()];
                    for times in times {
                        all.iter_mut().zip(times).for_each(|(all, times)| all.0.extend(times.0));
                    }
                    for (times, step) in all.into_iter().zip(["create", "enter", "remove"]) {
                        times.print(step);
                    }
                }
            }
        }
    }

    #[test]
    #[ignore = "prints figures, proves nothing"]
    fn what_killing_a_thousand_takes() {
        for (layout, name) in [(Layout::detect(), "v2"), (v1(), "v1"), (v1_without_freezer(), "v1-no-freezer")] {
            let groups = groups(&layout, &format!("thousand-{name}"));
            let mut times = Times::default();
            for run in 0..5 {
                let group = groups.create(&format!("p{run}"), &NONE).unwrap();
                let payload = Payload::start(&group, &DAEMONS.replace("200", "1000"));
                wait_for("1000 daemons", || count(&group) >= 1001);
                times.add(|| {
                    group.tree().kill().unwrap();
                    assert!(group.tree().wait_empty(soon()));
                });
                drop(payload);
                group.remove().unwrap();
            }
            times.print(&format!("kill of 1000 confirmed, {name}"));
        }
    }
}
