//! v2 with controllers, against folders with the names of the kernel's files: what is written and where. The kernel's own
//! behaviour on v1 and hybrid machines is tested in `tests/cgroup.rs`.

use super::{super::layout::Hierarchy, *};

/// The agent's own group on a v2 machine, with everything that a start writes to.
fn imitation(root: bool) -> (tempfile::TempDir, Layout) {
    let own = tempfile::tempdir().unwrap();
    for folder in ["", "agent", "vestigo"] {
        fs::create_dir_all(own.path().join(folder)).unwrap();
        for file in ["cgroup.procs", "cgroup.subtree_control"] {
            fs::write(own.path().join(folder).join(file), "").unwrap();
        }
    }
    if !root {
        fs::write(own.path().join("cgroup.type"), "domain\n").unwrap();
    }
    let parts = vec![Part::Freezer, Part::Memory];
    let hierarchy = Hierarchy { version: Version::Two, own: own.path().to_owned(), parts };
    let absent = BTreeMap::from([(Part::Pids, Absence::NotDelegated), (Part::Cpu, Absence::SwitchedOff)]);
    (own, Layout::of(vec![hierarchy], absent))
}

fn content(own: &tempfile::TempDir, file: &str) -> String {
    fs::read_to_string(own.path().join(file)).unwrap()
}

#[test]
fn a_v2_service_moves_aside_and_hands_controllers_down() {
    let (own, layout) = imitation(false);
    let groups = Cgroups::start(&layout, "vestigo").unwrap();
    assert_eq!(content(&own, "agent/cgroup.procs"), std::process::id().to_string());
    assert_eq!(content(&own, "cgroup.subtree_control"), "+memory");
    assert_eq!(content(&own, "vestigo/cgroup.subtree_control"), "+memory");
    assert!(groups.has(Part::Tree) && groups.has(Part::Freezer) && groups.has(Part::Memory));
    assert_eq!(groups.version(Part::Memory), Some(Version::Two));
    assert_eq!((groups.why_not(Part::Memory), groups.why_not(Part::Cpu)), (None, Some(Absence::SwitchedOff)));
    let limits = Limits { memory: Some(1 << 30), pids: Some(5), cpu: None };
    assert_eq!(groups.missing(&limits), [Part::Pids]);
    let refused = groups.create("one", &limits).unwrap_err();
    assert!(matches!(refused, CgroupError::Missing { part: Part::Pids, why: Absence::NotDelegated }), "{refused}");
}

#[test]
fn the_root_needs_no_moving() {
    let (own, layout) = imitation(true);
    Cgroups::start(&layout, "vestigo").unwrap();
    assert_eq!(content(&own, "agent/cgroup.procs"), "");
    assert_eq!(content(&own, "vestigo/cgroup.subtree_control"), "+memory");
}

#[test]
fn what_is_on_already_is_not_switched_on_again() {
    let (own, layout) = imitation(false);
    fs::write(own.path().join("cgroup.subtree_control"), "cpu memory\n").unwrap();
    Cgroups::start(&layout, "vestigo").unwrap();
    assert_eq!(content(&own, "cgroup.subtree_control"), "cpu memory\n");
}

#[test]
fn a_controller_that_cannot_be_handed_down_is_absent_with_a_reason() {
    let (own, layout) = imitation(false);
    fs::remove_file(own.path().join("vestigo/cgroup.subtree_control")).unwrap();
    let groups = Cgroups::start(&layout, "vestigo").unwrap();
    assert!(groups.has(Part::Tree) && !groups.has(Part::Memory));
    assert!(groups.why_not(Part::Memory).unwrap().to_string().contains("handed down"));
}

#[test]
fn two_agents_do_not_share_a_parent() {
    let (_own, layout) = imitation(true);
    let first = Cgroups::start(&layout, "vestigo").unwrap();
    assert!(matches!(Cgroups::start(&layout, "vestigo"), Err(CgroupError::InUse(_))));
    drop(first);
    Cgroups::start(&layout, "vestigo").unwrap();
}

#[test]
fn without_any_tree_there_are_no_groups_and_no_failure() {
    let groups = Cgroups::start(&Layout::default(), "vestigo").unwrap();
    assert!(Part::ALL.iter().all(|p| !groups.has(*p)));
    let refused = groups.create("one", &Limits::default()).unwrap_err();
    assert!(matches!(refused, CgroupError::Missing { part: Part::Tree, .. }), "{refused}");
}

#[test]
fn a_folder_that_cannot_be_made_is_a_reason() {
    let (own, _) = imitation(true);
    let hierarchy = Hierarchy { version: Version::One, own: own.path().join("gone"), parts: vec![Part::Pids] };
    let groups = Cgroups::start(&Layout::of(vec![hierarchy], BTreeMap::new()), "vestigo").unwrap();
    assert!(groups.why_not(Part::Pids).unwrap().to_string().contains("cannot be made"));
    assert!(groups.why_not(Part::Tree).unwrap().to_string().contains("cannot be made"));
}

#[test]
fn names_stay_in_their_folder() {
    let long = "x".repeat(65);
    for wrong in ["", ".", "..", "a/b", "cgroup.procs", "tasks", "agent", "a b", "ä", "a\n", long.as_str()] {
        assert!(matches!(check_name(wrong), Err(CgroupError::Invalid(_))), "{wrong:?}");
    }
    check_name("01990f7e-1c2b-7000-8000-000000000001").unwrap();
}
