//! The list of refused system calls, in groups with a reason each.
//!
//! The answer is ENOSYS where programs have a way on without the call (as on a kernel built without it), EPERM where they
//! must be told no.
//!
//! Left alone on purpose: `ptrace`, `process_vm_readv`/`writev` and `pidfd_getfd`. Debuggers, leak sanitizers, crash handlers
//! and MPI need them, and they reach only what the kernel's ptrace rule allows: processes of this payload's own uid and PID
//! namespace. PID 1 is not dumpable, and a traced process stays under this filter.

use std::fmt;

use nix::{errno::Errno, libc};

use super::Mode;

/// The newest call that this list was checked against (Linux 6.18: `file_setattr`); same number on all architectures.
pub(super) const LAST_KNOWN: u32 = 469;

/// System calls that are refused for one reason.
#[derive(Debug)]
pub struct Group {
    /// Short name.
    pub name: &'static str,
    /// Why, in one sentence.
    pub why: &'static str,
    /// The rules of the WLCG recommendations that it serves.
    pub rules: &'static [&'static str],
    /// What is refused.
    pub calls: &'static [Call],
}

/// One refused system call.
#[derive(Debug)]
pub struct Call {
    /// As in the manual, without the section.
    pub name: &'static str,
    number: libc::c_long,
    /// The answer, if there are no checks.
    pub errno: Errno,
    /// Refused only for what these say; always if there are none. The first that refuses, answers.
    pub checks: &'static [Check],
    /// In which modes; `None` is both.
    only: Option<Mode>,
}

/// One look at the low 32 bits of an argument.
#[derive(Debug, PartialEq, Eq)]
pub struct Check {
    /// Looked at only then.
    pub when: Option<When>,
    /// Number of the argument, from 0.
    pub argument: u8,
    /// Only these bits count.
    pub mask: u32,
    /// At most 200.
    pub values: &'static [u32],
    /// The values are refused; otherwise everything but them is.
    pub refuse_listed: bool,
    /// The answer.
    pub errno: Errno,
    /// What is refused, in words.
    pub what: &'static str,
}

/// What another argument of the call must be for a check to count. The first number is the argument's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// It has this value.
    Is(u8, u32),
    /// At least one of these bits is set.
    Has(u8, u32),
}

impl Call {
    /// Its number on this architecture.
    #[must_use]
    pub fn number(&self) -> u32 {
        // No number is negative or that large; 0 (read) would be noticed by every test.
        u32::try_from(self.number).unwrap_or(0)
    }

    /// Is it refused in this mode?
    #[must_use]
    pub fn is_in(&self, mode: Mode) -> bool {
        self.only.is_none_or(|only| only == mode)
    }
}

/// For `explain`: `ioctl (pushing input into a terminal: EPERM)`.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", self.name)?;
        if self.checks.is_empty() {
            write!(f, "{:?}", self.errno)?;
        }
        for (n, check) in self.checks.iter().enumerate() {
            write!(f, "{}{}: {:?}", if n == 0 { "" } else { "; " }, check.what, check.errno)?;
        }
        f.write_str(")")
    }
}

/// Everything that is refused, by reason.
#[must_use]
pub const fn groups() -> &'static [Group] {
    GROUPS
}

/// What is refused in a mode.
pub(super) fn calls(mode: Mode) -> impl Iterator<Item = &'static Call> {
    GROUPS.iter().flat_map(|group| group.calls).filter(move |call| call.is_in(mode))
}

const fn call(name: &'static str, number: libc::c_long, errno: Errno) -> Call {
    Call { name, number, errno, checks: &[], only: None }
}

const fn no(name: &'static str, number: libc::c_long) -> Call {
    call(name, number, Errno::EPERM)
}

const fn absent(name: &'static str, number: libc::c_long) -> Call {
    call(name, number, Errno::ENOSYS)
}

const fn checked(name: &'static str, number: libc::c_long, checks: &'static [Check]) -> Call {
    Call { name, number, errno: Errno::EPERM, checks, only: None }
}

const fn only(mode: Mode, call: Call) -> Call {
    Call { only: Some(mode), ..call }
}

/// Refuses an argument that is none of these values.
const fn unless(argument: u8, values: &'static [u32], errno: Errno, what: &'static str) -> Check {
    Check { when: None, argument, mask: u32::MAX, values, refuse_listed: false, errno, what }
}

/// Refuses an argument that is one of these values.
const fn these(argument: u8, values: &'static [u32], errno: Errno, what: &'static str) -> Check {
    Check { refuse_listed: true, ..unless(argument, values, errno, what) }
}

/// Looks only at these bits of the argument.
const fn bits(mask: u32, check: Check) -> Check {
    Check { mask, ..check }
}

/// Looks only if an argument has a value.
const fn when(argument: u8, value: i32, check: Check) -> Check {
    Check { when: Some(When::Is(argument, value.cast_unsigned())), ..check }
}

/// Refuses set-uid and set-gid bits in a mode that stands in this argument.
const fn set_id(argument: u8) -> Check {
    bits(libc::S_ISUID | libc::S_ISGID, unless(argument, &[0], Errno::EPERM, "set-uid and set-gid bits"))
}

/// The same for a call that makes a file only with certain flags, which stand in the argument before the mode. Without them
/// there is no mode: some programs leave a register as it was.
const fn set_id_if_made(argument: u8) -> Check {
    Check { when: Some(When::Has(argument - 1, MAKES_A_FILE)), ..set_id(argument) }
}

// O_CREAT, and __O_TMPFILE of asm-generic/fcntl.h without the O_DIRECTORY that the C library adds.
const MAKES_A_FILE: u32 = 0o100 | 0o20_000_000;

// The namespaces of clone(2). A time namespace (0x80) can be asked for by unshare and clone3 only: in clone these bits are
// the number of a signal.
const NAMESPACES: u32 = 0x7e02_0000;
const TIME_NAMESPACE: u32 = 0x80;
const NETWORK_NAMESPACE: u32 = 0x4000_0000;

const FAMILIES: Check = unless(
    0,
    &[
        libc::AF_UNIX.cast_unsigned(),
        libc::AF_INET.cast_unsigned(),
        libc::AF_INET6.cast_unsigned(),
        libc::AF_NETLINK.cast_unsigned(),
    ],
    Errno::EAFNOSUPPORT,
    "a family other than unix, inet, inet6 and netlink",
);
const NETLINK: Check = unless(2, &[0], Errno::EPROTONOSUPPORT, "netlink other than route");
// By default, ICMP echo, TCP, UDP, multipath TCP (which is TCP to everybody else).
const INET: Check = unless(2, &[0, 1, 6, 17, 262], Errno::EPROTONOSUPPORT, "IPv4 other than TCP, UDP and ICMP");
const INET6: Check = unless(2, &[0, 6, 17, 58, 262], Errno::EPROTONOSUPPORT, "IPv6 other than TCP, UDP and ICMP");
// linux/net.h: the kernel turns an inet socket of this type into a packet socket.
const PACKET_TYPE: Check = bits(0xf, these(1, &[10], Errno::EAFNOSUPPORT, "the old way to a packet socket"));

const SOCKET: &[Check] = &[
    FAMILIES,
    PACKET_TYPE,
    when(0, libc::AF_NETLINK, NETLINK),
    when(0, libc::AF_INET, INET),
    when(0, libc::AF_INET6, INET6),
];

#[cfg(target_arch = "x86_64")]
const OTHER_ARCHITECTURES: &[Call] = &[
    no("ioperm", libc::SYS_ioperm),
    no("iopl", libc::SYS_iopl),
    absent("modify_ldt", libc::SYS_modify_ldt),
    absent("uselib", libc::SYS_uselib),
    absent("sysfs", libc::SYS_sysfs),
    absent("_sysctl", libc::SYS__sysctl),
];
#[cfg(not(target_arch = "x86_64"))]
const OTHER_ARCHITECTURES: &[Call] = &[];

const DEVICE: Check = Check {
    mask: libc::S_IFMT,
    ..these(0, &[libc::S_IFCHR, libc::S_IFBLK], Errno::EPERM, "character and block devices")
};

// mkdir(2) is not here: the kernel takes no such bits from it. A folder that inherits its group still does.
const SET_ID: &[Call] = &[
    #[cfg(target_arch = "x86_64")]
    checked("chmod", libc::SYS_chmod, &[set_id(1)]),
    #[cfg(target_arch = "x86_64")]
    checked("creat", libc::SYS_creat, &[set_id(1)]),
    #[cfg(target_arch = "x86_64")]
    checked("open", libc::SYS_open, &[set_id_if_made(2)]),
    #[cfg(target_arch = "x86_64")]
    only(Mode::Nested, checked("mknod", libc::SYS_mknod, &[set_id(1)])),
    checked("fchmod", libc::SYS_fchmod, &[set_id(1)]),
    checked("fchmodat", libc::SYS_fchmodat, &[set_id(2)]),
    checked("fchmodat2", 452, &[set_id(2)]),
    checked("openat", libc::SYS_openat, &[set_id_if_made(3)]),
    only(Mode::Nested, checked("mknodat", libc::SYS_mknodat, &[set_id(2)])),
    // Its mode lies in memory. Programs go on with openat.
    absent("openat2", libc::SYS_openat2),
    // A message queue is a file too.
    checked("mq_open", libc::SYS_mq_open, &[set_id_if_made(2)]),
];

const GROUPS: &[Group] = &[
    Group {
        name: "sockets",
        why: "vsock reaches the hypervisor past the network namespace and could forge attribution; the other families are \
              reached by nobody's jobs but by many kernel bugs",
        rules: &["R-ISO-29", "R-ISO-37"],
        calls: &[checked("socket", libc::SYS_socket, SOCKET), checked("socketpair", libc::SYS_socketpair, &[FAMILIES])],
    },
    Group {
        name: "io_uring",
        why: "its operations are not seen by this filter, and it has a socket operation",
        rules: &["R-ISO-29", "R-ISO-37"],
        calls: &[
            absent("io_uring_setup", libc::SYS_io_uring_setup),
            absent("io_uring_enter", libc::SYS_io_uring_enter),
            absent("io_uring_register", libc::SYS_io_uring_register),
        ],
    },
    Group {
        name: "namespaces",
        why: "a user namespace gives rights in it, and with them most of the kernel's attack surface",
        rules: &["R-ISO-23", "R-ISO-37"],
        calls: &[
            only(
                Mode::Strict,
                checked("clone", libc::SYS_clone, &[bits(NAMESPACES, unless(0, &[0], Errno::EPERM, "new namespaces"))]),
            ),
            only(
                Mode::Strict,
                checked(
                    "unshare",
                    libc::SYS_unshare,
                    &[bits(NAMESPACES | TIME_NAMESPACE, unless(0, &[0], Errno::EPERM, "new namespaces"))],
                ),
            ),
            only(Mode::Strict, no("setns", libc::SYS_setns)),
            only(
                Mode::Nested,
                checked(
                    "clone",
                    libc::SYS_clone,
                    &[bits(NETWORK_NAMESPACE, unless(0, &[0], Errno::EPERM, "a new network namespace"))],
                ),
            ),
            only(
                Mode::Nested,
                checked(
                    "unshare",
                    libc::SYS_unshare,
                    &[bits(NETWORK_NAMESPACE, unless(0, &[0], Errno::EPERM, "a new network namespace"))],
                ),
            ),
            // Its flags lie in memory, where a filter cannot look. The C library goes on with clone.
            absent("clone3", libc::SYS_clone3),
        ],
    },
    Group {
        name: "mounts",
        why: "the file tree of a payload is the agent's to build",
        rules: &["R-ISO-8"],
        calls: &[
            only(Mode::Strict, no("mount", libc::SYS_mount)),
            only(Mode::Strict, no("umount2", libc::SYS_umount2)),
            only(Mode::Strict, no("pivot_root", libc::SYS_pivot_root)),
            only(Mode::Strict, no("chroot", libc::SYS_chroot)),
            only(Mode::Strict, no("open_tree", libc::SYS_open_tree)),
            only(Mode::Strict, no("move_mount", libc::SYS_move_mount)),
            only(Mode::Strict, no("fsopen", libc::SYS_fsopen)),
            only(Mode::Strict, no("fsconfig", libc::SYS_fsconfig)),
            only(Mode::Strict, no("fsmount", libc::SYS_fsmount)),
            only(Mode::Strict, no("fspick", libc::SYS_fspick)),
            only(Mode::Strict, no("mount_setattr", libc::SYS_mount_setattr)),
            only(Mode::Strict, no("open_tree_attr", 467)),
        ],
    },
    Group {
        name: "devices and handles",
        why: "a file is reached by its path or not at all",
        rules: &["R-ISO-8"],
        calls: &[
            #[cfg(target_arch = "x86_64")]
            only(Mode::Strict, checked("mknod", libc::SYS_mknod, &[Check { argument: 1, ..DEVICE }, set_id(1)])),
            // In a nested namespace the kernel refuses all devices but the harmless 0:0, which overlay file systems need.
            only(Mode::Strict, checked("mknodat", libc::SYS_mknodat, &[Check { argument: 2, ..DEVICE }, set_id(2)])),
            no("open_by_handle_at", libc::SYS_open_by_handle_at),
            no("name_to_handle_at", libc::SYS_name_to_handle_at),
            no("fanotify_init", libc::SYS_fanotify_init),
        ],
    },
    Group {
        name: "set-uid and set-gid bits",
        why: "in a folder of the caller's the payload's files are the caller's: with such a bit, everybody in the VM could \
              run a program as the caller",
        rules: &["R-ISO-23"],
        calls: SET_ID,
    },
    Group {
        name: "limits of other processes",
        why: "the payload's PID 1 has its uid, and works without limits that the payload chose",
        rules: &["R-ISO-5"],
        calls: &[checked(
            "prlimit64",
            libc::SYS_prlimit64,
            // Its own number would do too, but a filter does not know it; libraries say 0.
            &[unless(0, &[0], Errno::EPERM, "a process named by its number")],
        )],
    },
    Group {
        name: "terminal",
        why: "pushing input into a terminal runs commands as whoever reads from it; line disciplines are seldom used drivers",
        rules: &["R-ISO-29"],
        calls: &[checked(
            "ioctl",
            libc::SYS_ioctl,
            &[these(
                1,
                // TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD of asm-generic/ioctls.h.
                &[0x5412, 0x541c, 0x541d, 0x5423],
                Errno::EPERM,
                "pushing input into a terminal, taking the console, line disciplines",
            )],
        )],
    },
    Group {
        name: "keyrings",
        why: "key rings outlive processes and are found by uid; programs that use them have a way on without",
        rules: &["R-ISO-26", "R-ISO-33"],
        calls: &[
            absent("add_key", libc::SYS_add_key),
            absent("request_key", libc::SYS_request_key),
            absent("keyctl", libc::SYS_keyctl),
        ],
    },
    Group {
        name: "kernel",
        why: "large interfaces into the kernel with a history of escapes; no job needs them",
        rules: &["R-ISO-23"],
        calls: &[
            no("bpf", libc::SYS_bpf),
            no("userfaultfd", libc::SYS_userfaultfd),
            no("perf_event_open", libc::SYS_perf_event_open),
            no("kcmp", libc::SYS_kcmp),
            // Of its own process it stays: MPI and NUMA libraries ask where their memory lies.
            checked("move_pages", libc::SYS_move_pages, &[unless(0, &[0], Errno::EPERM, "memory of other processes")]),
            checked(
                "personality",
                libc::SYS_personality,
                // Ask, Linux, 32-bit name of the machine, no address randomisation (debuggers).
                &[unless(0, &[u32::MAX, 0, 8, 0x0004_0000], Errno::EPERM, "modes that make memory executable or old")],
            ),
            absent("lookup_dcookie", libc::SYS_lookup_dcookie),
            absent("nfsservctl", libc::SYS_nfsservctl),
        ],
    },
    Group {
        name: "other architectures and input/output ports",
        why: "32-bit and x32 calls have other numbers: a call of the first kills the process, of the second is unknown",
        rules: &["R-ISO-23"],
        calls: OTHER_ARCHITECTURES,
    },
    Group {
        name: "administration",
        why: "the machine is not the payload's; the kernel refuses these too",
        rules: &["R-ISO-5", "R-ISO-34"],
        calls: &[
            no("acct", libc::SYS_acct),
            no("adjtimex", libc::SYS_adjtimex),
            no("clock_adjtime", libc::SYS_clock_adjtime),
            no("clock_settime", libc::SYS_clock_settime),
            no("settimeofday", libc::SYS_settimeofday),
            no("delete_module", libc::SYS_delete_module),
            no("init_module", libc::SYS_init_module),
            no("finit_module", libc::SYS_finit_module),
            no("kexec_load", libc::SYS_kexec_load),
            no("kexec_file_load", libc::SYS_kexec_file_load),
            no("quotactl", libc::SYS_quotactl),
            no("quotactl_fd", libc::SYS_quotactl_fd),
            no("reboot", libc::SYS_reboot),
            no("swapon", libc::SYS_swapon),
            no("swapoff", libc::SYS_swapoff),
            no("syslog", libc::SYS_syslog),
            no("vhangup", libc::SYS_vhangup),
        ],
    },
];
