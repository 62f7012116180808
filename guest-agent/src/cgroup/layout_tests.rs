use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

const HYBRID: Sources<'_> = Sources {
    mountinfo: "\
23 1 254:0 / / rw,relatime - ext4 /dev/root rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
",
    own: "9:name=systemd:/\n8:pids:/\n6:freezer:/\n4:memory:/machine/82950\n2:cpuacct:/\n1:cpu:/\n0::/\n",
    cgroups: "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t1\t1\nmemory\t4\t19\t1\nfreezer\t6\t1\t1\npids\t8\t1\t1\n",
};

const PURE_V2: Sources<'_> = Sources {
    mountinfo: "\
28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
35 28 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
",
    own: "0::/system.slice/vestigo-agent.service\n",
    cgroups: "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t80\t1\nmemory\t0\t80\t1\nfreezer\t0\t80\t1\npids\t0\t80\t1\n",
};

const V1_ONLY: Sources<'_> = Sources {
    mountinfo: "\
25 1 0:22 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
26 25 0:23 / /sys/fs/cgroup/systemd rw shared:10 - cgroup cgroup rw,xattr,name=systemd
29 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw shared:11 - cgroup cgroup rw,cpu,cpuacct
30 25 0:27 / /sys/fs/cgroup/memory rw shared:12 - cgroup cgroup rw,memory
31 25 0:28 / /sys/fs/cgroup/pids rw shared:13 - cgroup cgroup rw,pids
32 25 0:29 / /sys/fs/cgroup/freezer rw shared:14 - cgroup cgroup rw,freezer
",
    own: "5:freezer:/\n4:pids:/system.slice/agent.service\n3:memory:/system.slice/agent.service\n2:cpu,cpuacct:/system.slice/agent.service\n1:name=systemd:/system.slice/agent.service\n",
    cgroups: "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t2\t80\t1\ncpuacct\t2\t80\t1\nmemory\t3\t80\t1\nfreezer\t5\t1\t1\npids\t4\t80\t1\n",
};

fn parse(sources: &Sources<'_>, controllers: &str) -> Layout {
    Layout::parse(sources, |_| controllers.to_owned())
}

fn at(layout: &Layout, part: Part) -> Result<(Version, PathBuf), Absence> {
    layout.home(part).map(|h| (h.version, h.own.clone()))
}

fn one(path: &str) -> Result<(Version, PathBuf), Absence> {
    Ok((Version::One, path.into()))
}

fn two(path: &str) -> Result<(Version, PathBuf), Absence> {
    Ok((Version::Two, path.into()))
}

#[test]
fn hybrid_keeps_identity_on_v2_and_limits_on_v1() {
    let layout = parse(&HYBRID, "hugetlb\n");
    assert_eq!(at(&layout, Part::Tree), two("/sys/fs/cgroup/unified"));
    assert_eq!(at(&layout, Part::Freezer), two("/sys/fs/cgroup/unified"));
    assert_eq!(at(&layout, Part::Memory), one("/sys/fs/cgroup/memory/machine/82950"));
    assert_eq!(at(&layout, Part::Pids), one("/sys/fs/cgroup/pids"));
    assert_eq!(at(&layout, Part::Cpu), one("/sys/fs/cgroup/cpu"));
}

#[test]
fn a_v2_machine_asks_its_own_group_what_it_may_use() {
    let asked = std::cell::RefCell::new(PathBuf::new());
    let layout = Layout::parse(&PURE_V2, |path: &Path| {
        path.clone_into(&mut asked.borrow_mut());
        "cpu memory pids\n".to_owned()
    });
    let own = "/sys/fs/cgroup/system.slice/vestigo-agent.service";
    assert_eq!(*asked.borrow(), Path::new(own));
    for part in Part::ALL {
        assert_eq!(at(&layout, part), two(own), "{part}");
    }
    assert_eq!(layout.hierarchies().len(), 1);
}

#[test]
fn what_is_not_delegated_is_said_to_be() {
    let layout = parse(&PURE_V2, "pids");
    assert_eq!(at(&layout, Part::Memory), Err(Absence::NotDelegated));
    assert!(at(&layout, Part::Pids).is_ok() && at(&layout, Part::Tree).is_ok() && at(&layout, Part::Freezer).is_ok());
    let off = Sources { cgroups: "#x\ncpu\t0\t1\t1\nmemory\t0\t1\t0\n", ..PURE_V2 };
    let layout = parse(&off, "cpu");
    assert_eq!(at(&layout, Part::Memory), Err(Absence::SwitchedOff));
    assert_eq!(at(&layout, Part::Pids), Err(Absence::NotInKernel));
    let unknown = Sources { cgroups: "", ..PURE_V2 };
    assert_eq!(at(&parse(&unknown, "cpu"), Part::Memory), Err(Absence::NotDelegated));
}

#[test]
fn what_v1_holds_and_does_not_show_cannot_be_delegated() {
    let without: String =
        HYBRID.mountinfo.lines().filter(|l| !l.contains("/pids")).map(|l| l.to_owned() + "\n").collect();
    let layout = parse(&Sources { mountinfo: &without, ..HYBRID }, "hugetlb");
    assert_eq!(at(&layout, Part::Pids), Err(Absence::NotMounted));
}

#[test]
fn without_v2_the_freezer_is_the_tree() {
    let layout = parse(&V1_ONLY, "");
    assert_eq!(at(&layout, Part::Tree), one("/sys/fs/cgroup/freezer"));
    assert_eq!(at(&layout, Part::Freezer), one("/sys/fs/cgroup/freezer"));
    assert_eq!(at(&layout, Part::Cpu), one("/sys/fs/cgroup/cpu,cpuacct/system.slice/agent.service"));
    assert_eq!(at(&layout, Part::Memory), one("/sys/fs/cgroup/memory/system.slice/agent.service"));
    let without: String =
        V1_ONLY.mountinfo.lines().filter(|l| !l.contains("freezer")).map(|l| l.to_owned() + "\n").collect();
    let layout = parse(&Sources { mountinfo: &without, ..V1_ONLY }, "");
    assert_eq!(at(&layout, Part::Tree), one("/sys/fs/cgroup/pids/system.slice/agent.service"));
    assert_eq!(at(&layout, Part::Freezer), Err(Absence::NotMounted));
}

#[test]
fn containers_with_and_without_a_namespace() {
    let namespaced = Sources { own: "0::/\n", ..PURE_V2 };
    assert_eq!(at(&parse(&namespaced, "memory"), Part::Memory), two("/sys/fs/cgroup"));
    let bound = Sources {
        mountinfo: "30 1 0:27 /docker/ab /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
        own: "3:memory:/docker/ab/x y\n",
        cgroups: "",
    };
    assert_eq!(at(&parse(&bound, ""), Part::Memory), one("/sys/fs/cgroup/memory/x y"));
    let read_only = PURE_V2.mountinfo.replace(" rw,nosuid", " ro,nosuid");
    let read_only = Sources { mountinfo: &read_only, ..PURE_V2 };
    for part in [Part::Tree, Part::Memory, Part::Freezer] {
        assert_eq!(at(&parse(&read_only, "memory"), part), Err(Absence::ReadOnly), "{part}");
    }
    for own in ["0::/../other\n", "0::/gone (deleted)\n"] {
        assert_eq!(at(&parse(&Sources { own, ..PURE_V2 }, ""), Part::Tree), Err(Absence::Unreachable), "{own}");
    }
}

#[test]
fn a_covered_mount_is_not_used_and_names_are_unescaped() {
    let sources = Sources {
        mountinfo: "30 1 0:27 / /a\\040b ro - cgroup2 none ro\n31 30 0:27 / /a\\040b rw - cgroup2 none rw\n",
        own: "0::/x:y\n",
        cgroups: "",
    };
    assert_eq!(at(&parse(&sources, ""), Part::Tree), two("/a b/x:y"));
    assert_eq!(unescape("\\134\\1\\999"), Path::new("\\\\1\\999"));
}

#[test]
fn nothing_at_all() {
    let layout = parse(&Sources { mountinfo: "", own: "", cgroups: "" }, "");
    for part in Part::ALL {
        assert_eq!(at(&layout, part), Err(Absence::NotMounted), "{part}");
    }
}

proptest! {
    /// Whatever the texts: no panic, every part has a home or a reason, and no home leaves its mount.
    #[test]
    fn any_text_has_an_answer(
        mountinfo in "([0-9 ]{0,6}(/[a-z.\\\\0-9]{0,5}){0,3} /[a-z]{1,3} r[ow] - cgroup2? c r[ow],(memory|pids|cpu|freezer)\n){0,5}",
        own in "([0-9]:(memory|pids|cpu,freezer|):/?[a-z./]{0,8}\n){0,5}",
        junk in "\\PC{0,60}",
        cgroups in "((memory|pids|cpu)\t[0-9]\t[0-9]\t[01]\n){0,3}",
    ) {
        let mountinfo = format!("{mountinfo}{junk}");
        let layout = parse(&Sources { mountinfo: &mountinfo, own: &own, cgroups: &cgroups }, &junk);
        for part in Part::ALL {
            if let Ok(home) = layout.home(part) {
                prop_assert!(home.own.is_absolute());
                prop_assert!(!home.own.components().any(|c| c == Component::ParentDir));
            }
        }
    }

    /// What the kernel escapes comes back.
    #[test]
    fn escapes_round_trip(name in "[a-z \\\\\t\n/]{0,20}") {
        let escaped: String = name.chars().map(|c| match c {
            ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", u32::from(c)),
            other => other.to_string(),
        }).collect();
        prop_assert_eq!(unescape(&escaped), PathBuf::from(name));
    }
}
