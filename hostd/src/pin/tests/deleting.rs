//! How cloud managers delete, on a real file system.

use std::{
    fs,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
    time::Instant,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vestigo_model::StopReason;

use super::{
    super::Outcome,
    world::{World, vm},
};

fn handed(outcomes: &[Outcome]) -> Vec<(Vec<String>, String)> {
    let of = |o: &Outcome| match o {
        Outcome::HandedOver { disks, reason, .. } => Some((disks.clone(), reason.clone())),
        _ => None,
    };
    outcomes.iter().filter_map(of).collect()
}

fn missed(outcomes: &[Outcome]) -> Vec<String> {
    let of = |o: &Outcome| match o {
        Outcome::Missed { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    outcomes.iter().filter_map(of).collect()
}

#[test]
fn like_nova_rename_then_remove() {
    let mut w = World::new();
    let base = w.disk("_base/ab12");
    let disk = w.disk("instances/u/disk");
    assert!(w.start(1, &[("vda", &[&disk, &base])]).is_empty());
    assert_eq!(fs::metadata(&disk).unwrap().nlink(), 2);
    w.stop(1);
    fs::rename(w.path("instances/u"), w.path("instances/u_del")).unwrap();
    assert!(w.pass(10).is_empty(), "a rename is no deletion");
    fs::remove_dir_all(w.path("instances/u_del")).unwrap();
    let outcomes = w.pass(3);
    assert_eq!(handed(&outcomes), [(vec!["vda".to_owned()], "terminated".to_owned())]);
    let handover = &w.handovers()[0];
    assert_eq!(handover.instance.end.unwrap().why, StopReason::Destroyed);
    let shared: Vec<bool> = handover.disks[0].layers.iter().map(|l| l.shared).collect();
    assert_eq!(shared, [false, true]);
    assert_eq!(w.quarantine(), ["marker of instances/u/disk"]);
    let Outcome::Captured { item, domain, .. } = &w.pass(1)[0] else { panic!() };
    assert_eq!(*domain, Some(vm(1)));
    assert!(w.pass(5).is_empty(), "an answer is told once");
    w.keeper.acknowledge(*item);
    assert_eq!(fs::read_dir(w.path("spool/done")).unwrap().count(), 0);
    w.pass(40);
    assert_eq!(fs::metadata(&base).unwrap().nlink(), 1, "the backing file is released");
    assert_eq!(fs::read_dir(w.path("pins")).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn like_opennebula_a_symlinked_disk() {
    let mut w = World::new();
    let real = w.disk("datastores/0/42/disk.0.real");
    let link = w.path("datastores/0/42/disk.0");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    assert!(w.start(1, &[("vda", &[&link])]).is_empty());
    w.stop(1);
    fs::remove_dir_all(w.path("datastores/0/42")).unwrap();
    assert_eq!(handed(&w.pass(3)).len(), 1);
    assert_eq!(w.quarantine(), ["marker of datastores/0/42/disk.0.real"]);
}

#[test]
fn like_vac_unlinked_while_it_runs() {
    let mut w = World::new();
    let disk = w.disk("vac/root.disk");
    w.start(1, &[("vda", &[&disk])]);
    fs::remove_file(&disk).unwrap();
    assert!(w.pass(60).is_empty(), "it runs on it");
    assert!(w.start(1, &[("vda", &[&disk])]).is_empty(), "a later look finds no file and is not surprised");
    w.stop(1);
    assert_eq!(handed(&w.pass(3)).len(), 1);
    assert_eq!(w.quarantine(), ["marker of vac/root.disk"]);
}

#[test]
fn unlinked_before_anyone_looked() {
    let mut w = World::new();
    let disk = w.path("never");
    let outcomes = w.start(1, &[("vda", &[&disk])]);
    assert!(missed(&outcomes)[0].contains("already deleted"), "{outcomes:?}");
    assert!(w.start(1, &[("vda", &[&disk])]).is_empty(), "said once");
    w.stop(1);
    assert_eq!(missed(&w.start(1, &[("vda", &[&disk])])).len(), 1, "and again for the next run");
}

#[test]
fn two_disks_are_one_item() {
    let mut w = World::new();
    let (a, b) = (w.disk("a"), w.disk("b"));
    w.start(1, &[("vda", &[&a]), ("vdb", &[&b])]);
    w.stop(1);
    fs::remove_file(&a).unwrap();
    assert!(w.pass(1).is_empty());
    fs::remove_file(&b).unwrap();
    assert_eq!(handed(&w.pass(4)), [(vec!["vda".to_owned(), "vdb".to_owned()], "terminated".to_owned())]);
    assert_eq!(w.quarantine(), ["marker of a", "marker of b"]);
}

#[test]
fn a_rebuild_hands_over_the_replaced_disk() {
    let mut w = World::new();
    let disk = w.disk("i/disk");
    w.start(1, &[("vda", &[&disk])]);
    w.stop(1);
    fs::remove_file(&disk).unwrap();
    fs::write(&disk, "rebuilt").unwrap();
    w.start(1, &[("vda", &[&disk])]);
    assert_eq!(handed(&w.pass(3)), [(vec!["vda".to_owned()], "replaced".to_owned())]);
    assert_eq!(w.quarantine(), ["marker of i/disk"]);
    assert_eq!(w.pinned().len(), 1, "the new one is held");
    w.stop(1);
    fs::remove_file(&disk).unwrap();
    assert_eq!(handed(&w.pass(3))[0].1, "terminated");
    assert_eq!(w.quarantine(), ["rebuilt"]);
}

#[test]
fn reboot_stop_start_take_nothing() {
    let mut w = World::new();
    let (disk, base) = (w.disk("disk"), w.disk("base"));
    for _ in 0..5 {
        assert!(w.start(1, &[("vda", &[&disk, &base])]).is_empty());
        assert!(w.pass(40).is_empty());
        assert_eq!(w.pinned().len(), 2, "the same inode is the same pin");
        assert!(w.stop(1).is_empty());
        assert!(w.pass(40).is_empty());
    }
    assert!(w.handovers().is_empty());
}

#[test]
fn a_migrated_vms_source_disk_is_let_go() {
    let mut w = World::new();
    let disk = w.disk("disk");
    w.start(1, &[("vda", &[&disk])]);
    w.keeper.stopped(vm(1), w.now, StopReason::Migrated);
    w.restart();
    w.keeper.resync(&[], w.now);
    fs::remove_file(&disk).unwrap();
    let outcomes = w.pass(3);
    assert!(matches!(outcomes[..], [Outcome::Released { .. }]), "{outcomes:?}");
    assert!(w.pinned().is_empty() && w.handovers().is_empty());
}

#[test]
fn a_snapshot_keeps_one_hold_on_every_file() {
    let mut w = World::new();
    let (disk, overlay) = (w.disk("disk"), w.disk("overlay"));
    w.start(1, &[("vda", &[&disk])]);
    w.start(1, &[("vda", &[&overlay, &disk])]);
    assert_eq!(w.pinned().len(), 2);
    w.stop(1);
    fs::remove_file(&disk).unwrap();
    fs::remove_file(&overlay).unwrap();
    assert_eq!(handed(&w.pass(4)).len(), 1);
    assert_eq!(w.quarantine(), ["marker of overlay"]);
}

#[test]
fn a_shared_base_outlives_its_purge_and_one_of_its_vms() {
    let mut w = World::new();
    let (a, b, base) = (w.disk("a"), w.disk("b"), w.disk("base"));
    w.start(1, &[("vda", &[&a, &base])]);
    w.start(2, &[("vda", &[&b, &base])]);
    fs::remove_file(&base).unwrap();
    assert!(w.pass(40).is_empty(), "a base is never handed over on its own");
    assert!(w.start(1, &[("vda", &[&a, &base])]).is_empty(), "and its absence is not a fault: it is held");
    w.stop(1);
    fs::remove_file(&a).unwrap();
    assert_eq!(handed(&w.pass(3)).len(), 1);
    w.quarantine();
    w.stop(2);
    fs::remove_file(&b).unwrap();
    assert_eq!(handed(&w.pass(3)).len(), 1);
    assert_eq!(w.handovers()[0].disks[0].layers.len(), 2, "the purged base travels with the second one too");
}

#[test]
fn another_file_system_is_named() {
    let shm = Path::new("/dev/shm");
    let mut w = World::new();
    if fs::metadata(shm).map(|m| m.dev()).ok() == fs::metadata(w.path("pins")).map(|m| m.dev()).ok() {
        eprintln!("skipped: /dev/shm is not another file system than the temporary folder");
        return;
    }
    let other = tempfile::tempdir_in(shm).unwrap();
    let disk = other.path().join("disk");
    fs::write(&disk, "far").unwrap();
    let near = w.disk("near");
    let outcomes = w.start(1, &[("vda", &[&disk]), ("vdb", &[&near, &disk])]);
    let why = missed(&outcomes);
    assert!(why[0].contains("no pin folder is on the file system of"), "{why:?}");
    assert!(why[1].starts_with("a backing file of it is not kept"), "{why:?}");
    w.folders.push(other.path().join("pins"));
    w.restart();
    assert!(missed(&w.start(1, &[("vda", &[&disk]), ("vdb", &[&near, &disk])])).is_empty());
    w.keeper.resync(&[vm(1)], w.now);
    w.stop(1);
    fs::remove_file(&disk).unwrap();
    fs::remove_file(&near).unwrap();
    assert_eq!(handed(&w.pass(3)).len(), 1, "both in one item, from two pin folders");
    assert_eq!(w.quarantine(), ["far", "marker of near"]);
}

#[test]
fn refuses_what_is_no_file() {
    let mut w = World::new();
    let folder = w.path("folder");
    fs::create_dir(&folder).unwrap();
    let dangling = w.path("dangling");
    std::os::unix::fs::symlink("/nonexistent", &dangling).unwrap();
    let why = missed(&w.start(1, &[("vda", &[&folder]), ("vdb", &[&dangling]), ("vdc", &[Path::new("/dev/null")])]));
    assert!(why[0].contains("not a regular file") && why[1].contains("already deleted") && why[2].contains("regular"));
}

#[test]
fn how_fast() {
    let mut w = World::new();
    let (mut pins, mut notices) = (Vec::new(), Vec::new());
    for n in 0..50 {
        let disk = w.disk(&format!("disk{n}"));
        let began = Instant::now();
        w.start(n, &[("vda", &[&disk])]);
        pins.push(began.elapsed());
        w.stop(n);
        w.keeper.readable(w.now);
        fs::remove_file(&disk).unwrap();
        let began = Instant::now();
        let mut fds = [PollFd::new(w.keeper.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(1000_u16)), Ok(1));
        w.keeper.readable(w.now);
        notices.push(began.elapsed());
    }
    pins.sort();
    notices.sort();
    println!("pin_us: {} (p98 {})", pins[25].as_micros(), pins[48].as_micros());
    println!("deletion_noticed_us: {} (p98 {})", notices[25].as_micros(), notices[48].as_micros());
    assert_eq!(handed(&w.pass(3)).len(), 50);
}
