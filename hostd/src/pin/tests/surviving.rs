//! Crashes of hostd between any two steps, and what lies in the folders afterwards.

use std::fs;

use vestigo_model::{InstanceEnd, StopReason};

use super::{
    super::Outcome,
    world::{World, vm},
};

#[test]
fn a_disk_deleted_while_hostd_is_down() {
    let mut w = World::new();
    let disk = w.disk("disk");
    w.start(1, &[("vda", &[&disk])]);
    fs::remove_file(&disk).unwrap();
    assert!(w.restart().is_empty());
    assert!(w.pass(10).is_empty(), "not before it is known what runs");
    w.keeper.resync(&[], w.now);
    assert!(matches!(w.pass(3)[..], [Outcome::HandedOver { .. }]));
    let handover = &w.handovers()[0];
    assert_eq!(handover.instance.end.map(|e| e.why), Some(StopReason::Unobserved));
    assert_eq!(w.quarantine(), ["marker of disk"]);
}

#[test]
fn a_running_vm_keeps_its_interval_and_its_unlinked_disk_over_a_restart() {
    let mut w = World::new();
    let disk = w.disk("disk");
    w.start(1, &[("vda", &[&disk])]);
    let start = w.now;
    fs::remove_file(&disk).unwrap();
    w.pass(5);
    w.restart();
    assert!(w.start(1, &[("vda", &[&disk])]).is_empty());
    w.keeper.resync(&[vm(1)], w.now);
    assert!(w.pass(40).is_empty());
    w.stop(1);
    assert_eq!(w.pass(3).len(), 1);
    let instance = &w.handovers()[0].instance;
    assert_eq!(instance.start, start);
    assert!(matches!(instance.end, Some(InstanceEnd { why: StopReason::Destroyed, .. })));
}

#[test]
fn the_decision_was_noted_but_not_written() {
    let mut w = World::new();
    let disk = w.disk("disk");
    w.start(1, &[("vda", &[&disk])]);
    w.stop(1);
    fs::remove_file(&disk).unwrap();
    // The spool cannot be written: a folder is in the way of the temporary name's folder.
    fs::rename(w.path("spool"), w.path("away")).unwrap();
    assert!(w.pass(5).is_empty());
    let note = fs::read_to_string(w.path(&format!("pins/{}/pin.json", vm(1)))).unwrap();
    assert!(note.contains("\"pending\""), "{note}");
    fs::rename(w.path("away"), w.path("spool")).unwrap();
    let outcomes = w.restart();
    assert!(matches!(outcomes[..], [Outcome::HandedOver { .. }]), "{outcomes:?}");
    assert_eq!(w.handovers().len(), 1);
    w.keeper.resync(&[], w.now);
    assert!(w.pass(40).is_empty());
    assert_eq!(w.quarantine(), ["marker of disk"]);
}

#[test]
fn written_but_still_noted_whether_quarantine_is_done_or_not() {
    for done in [false, true] {
        let mut w = World::new();
        let disk = w.disk("disk");
        w.start(1, &[("vda", &[&disk])]);
        w.stop(1);
        fs::remove_file(&disk).unwrap();
        fs::rename(w.path("spool"), w.path("away")).unwrap();
        w.pass(5);
        let note = w.path(&format!("pins/{}/pin.json", vm(1)));
        let kept = fs::read(&note).unwrap();
        fs::rename(w.path("away"), w.path("spool")).unwrap();
        assert_eq!(w.pass(1).len(), 1);
        if done {
            w.quarantine();
        }
        fs::create_dir_all(note.parent().unwrap()).unwrap();
        fs::write(&note, kept).unwrap();
        let outcomes = w.restart();
        assert!(matches!(outcomes[..], [Outcome::HandedOver { .. }]), "{outcomes:?}");
        assert_eq!(w.handovers().len(), usize::from(!done), "never a second item");
        w.keeper.resync(&[], w.now);
        if !done {
            w.quarantine();
        }
        let outcomes = w.pass(1);
        assert!(matches!(outcomes[..], [Outcome::Captured { .. }]), "{outcomes:?}");
        assert_eq!(w.keeper.held(), 0);
    }
}

#[test]
fn an_answer_is_told_again_until_it_is_acknowledged() {
    let mut w = World::new();
    let disk = w.disk("disk");
    w.start(1, &[("vda", &[&disk])]);
    w.stop(1);
    fs::remove_file(&disk).unwrap();
    w.pass(3);
    w.quarantine();
    assert_eq!(w.pass(1).len(), 1);
    w.restart();
    let outcomes = w.pass(1);
    assert_eq!(outcomes.len(), 1);
    w.keeper.acknowledge(outcomes[0].item_answered().unwrap());
    w.restart();
    assert!(w.pass(1).is_empty());
}

#[test]
fn killed_between_note_and_link() {
    let mut w = World::new();
    let (a, b) = (w.disk("a"), w.disk("b"));
    w.start(1, &[("vda", &[&a]), ("vdb", &[&b])]);
    for pin in w.pinned() {
        fs::remove_file(pin).unwrap();
    }
    fs::remove_file(&b).unwrap();
    let outcomes = w.restart();
    assert!(matches!(&outcomes[..], [Outcome::Missed { target: Some(t), .. }] if t == "vdb"), "{outcomes:?}");
    assert_eq!(w.pinned().len(), 1, "the one that still has its name is linked again");
}

#[test]
fn a_pin_that_someone_removed_is_made_again_or_missed() {
    let mut w = World::new();
    let (a, b) = (w.disk("a"), w.disk("b"));
    w.start(1, &[("vda", &[&a]), ("vdb", &[&b])]);
    fs::remove_file(&b).unwrap();
    w.pass(1);
    for pin in w.pinned() {
        fs::remove_file(pin).unwrap();
    }
    let outcomes = w.pass(1);
    assert!(matches!(&outcomes[..], [Outcome::Missed { target: Some(t), .. }] if t == "vdb"), "{outcomes:?}");
    assert_eq!((w.pinned().len(), w.keeper.held()), (1, 1));
}

#[test]
fn strays_go_when_others_name_them_and_stay_when_not() {
    let mut w = World::new();
    let disk = w.disk("disk");
    w.start(1, &[("vda", &[&disk])]);
    let folder = w.path(&format!("pins/{}", vm(1)));
    fs::hard_link(&disk, folder.join("vdx.0-1")).unwrap();
    fs::write(folder.join("vdy.0-2"), "nobody's").unwrap();
    let outcomes = w.restart();
    assert!(matches!(&outcomes[..], [Outcome::Missed { reason, .. }] if reason.contains("vdy")), "{outcomes:?}");
    assert!(!folder.join("vdx.0-1").exists() && folder.join("vdy.0-2").exists());
}

#[test]
fn a_damaged_note_is_reported_and_nothing_is_removed() {
    let mut w = World::new();
    let disk = w.disk("disk");
    w.start(1, &[("vda", &[&disk])]);
    fs::write(w.path(&format!("pins/{}/pin.json", vm(1))), "{").unwrap();
    assert_eq!(w.restart().len(), 2);
    assert_eq!(w.pinned().len(), 1);
    assert!(w.start(1, &[("vda", &[&disk])]).is_empty(), "a running VM takes its pin up again");
    w.keeper.resync(&[], w.now);
    fs::remove_file(&disk).unwrap();
    assert_eq!(w.pass(3).len(), 1);
}

#[test]
fn garbage_in_the_spool_harms_nothing() {
    let mut w = World::new();
    fs::write(w.path("spool/done/0193a1b2-0000-7000-8000-000000000000.json"), "{").unwrap();
    fs::write(w.path("spool/done/readme.json"), "{}").unwrap();
    fs::write(w.path("spool/x.json"), "{}").unwrap();
    assert!(w.pass(2).is_empty());
    assert!(w.restart().is_empty());
}
