use std::fs;

use proptest::prelude::*;

use super::*;

/// A folder with these empty files, which is all that the file-writing part sees of the kernel.
fn imitation(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        fs::write(folder.path().join(file), "").unwrap();
    }
    folder
}

fn content(folder: &tempfile::TempDir, file: &str) -> String {
    fs::read_to_string(folder.path().join(file)).unwrap()
}

const ALL: Limits = Limits { memory: Some(64 << 20), pids: Some(7), cpu: Some(Millicores(1500)) };

#[test]
fn v2_files_say_what_was_asked() {
    let group = imitation(&["memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max"]);
    for part in Part::LIMITS {
        ALL.apply(part, Version::Two, group.path(), true).unwrap();
    }
    assert_eq!(content(&group, "memory.max"), "67108864");
    assert_eq!(content(&group, "memory.swap.max"), "0");
    assert_eq!(content(&group, "memory.oom.group"), "1");
    assert_eq!(content(&group, "pids.max"), "7");
    assert_eq!(content(&group, "cpu.max"), "150000 100000");
}

#[test]
fn v1_files_say_what_was_asked() {
    let group = imitation(&[
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "pids.max",
        "cpu.cfs_quota_us",
        "cpu.cfs_period_us",
    ]);
    for part in Part::LIMITS {
        ALL.apply(part, Version::One, group.path(), true).unwrap();
    }
    assert_eq!(content(&group, "memory.limit_in_bytes"), "67108864");
    assert_eq!(content(&group, "memory.memsw.limit_in_bytes"), "67108864");
    assert_eq!(content(&group, "cpu.cfs_quota_us"), "150000");
    assert_eq!(content(&group, "cpu.cfs_period_us"), "100000");
}

#[test]
fn a_limit_can_be_taken_away_and_a_fresh_group_is_not_written_to() {
    let none = Limits::default();
    for (version, file, unlimited) in
        [(Version::Two, "memory.max", "max"), (Version::One, "memory.limit_in_bytes", "-1")]
    {
        let group = imitation(&[file]);
        none.apply(Part::Memory, version, group.path(), true).unwrap();
        assert_eq!(content(&group, file), "");
        none.apply(Part::Memory, version, group.path(), false).unwrap();
        assert_eq!(content(&group, file), unlimited);
    }
}

#[test]
fn without_a_count_of_swap_there_is_no_will_to_swap() {
    let group = imitation(&["memory.limit_in_bytes", "memory.swappiness"]);
    ALL.apply(Part::Memory, Version::One, group.path(), true).unwrap();
    assert_eq!(content(&group, "memory.swappiness"), "0");
}

#[test]
fn a_refusal_names_file_and_value() {
    let group = imitation(&[]);
    let error = ALL.apply(Part::Pids, Version::Two, group.path(), true).unwrap_err().to_string();
    assert!(error.contains("pids.max") && error.contains("\"7\""), "{error}");
}

#[test]
fn senseless_limits_are_refused() {
    let none = Limits::default();
    for (limits, word) in [
        (Limits { memory: Some(0), ..none }, "at least 1048576"),
        (Limits { memory: Some(u64::MAX), ..none }, "leave it out"),
        (Limits { pids: Some(0), ..none }, "at least 1"),
        (Limits { cpu: Some(Millicores(9)), ..none }, "0.009"),
        (Limits { cpu: Some(Millicores(u32::MAX)), ..none }, "0.01"),
    ] {
        let error = limits.check().unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    ALL.check().unwrap();
    none.check().unwrap();
}

#[test]
fn numbers_of_cores() {
    assert_eq!("1.5".parse::<Millicores>().unwrap(), Millicores(1500));
    assert_eq!("0.25".parse::<Millicores>().unwrap(), Millicores(250));
    for wrong in ["", ".", "1.", ".5", "-1", "1e3", "0.0001", "99999999999", "4294968", "1,5"] {
        assert!(wrong.parse::<Millicores>().is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn cores_round_trip(cpu in any::<u32>()) {
        prop_assert_eq!(Millicores(cpu).to_string().parse::<Millicores>().unwrap(), Millicores(cpu));
    }

    #[test]
    fn no_text_of_cores_panics(text in "\\PC{0,12}") {
        let _ = text.parse::<Millicores>();
    }
}
