#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use std::collections::HashSet;

use nix::libc;
use proptest::prelude::*;

use super::*;

const BOTH: [Mode; 2] = [Mode::Strict, Mode::Nested];
const NO_ARGUMENTS: [u64; 6] = [0; 6];

/// The kernel's side: runs a program over `struct seccomp_data`.
fn run(filter: &Filter, architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [number.to_le_bytes(), architecture.to_le_bytes()].concat();
    data.extend([0; 8]);
    data.extend(arguments.iter().flat_map(|a| a.to_le_bytes()));
    let (mut at, mut loaded) = (0_usize, 0_u32);
    loop {
        let step = &filter.0[at];
        at += 1;
        let go = |condition: bool| usize::from(if condition { step.jt } else { step.jf });
        match step.code {
            LOAD => {
                let from = step.k as usize;
                assert!(from.is_multiple_of(4));
                loaded = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
            }
            AND => loaded &= step.k,
            JUMP => at += step.k as usize,
            IF_EQUAL => at += go(loaded == step.k),
            IF_NOT_LESS => at += go(loaded >= step.k),
            RETURN => return step.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn errno(errno: Errno) -> u32 {
    ERRNO | (errno as i32).cast_unsigned()
}

/// The policy, read directly.
fn expected(mode: Mode, number: u32, arguments: [u64; 6]) -> u32 {
    let low = |n: u8| u32::try_from(arguments[usize::from(n)] & 0xffff_ffff).unwrap();
    if number > LAST_KNOWN && number != u32::MAX {
        return errno(Errno::ENOSYS);
    }
    let Some(call) = policy::calls(mode).find(|call| call.number() == number) else { return ALLOW };
    if call.checks.is_empty() {
        return errno(call.errno);
    }
    let counts = |when| match when {
        When::Is(argument, value) => low(argument) == value,
        When::Has(argument, bits) => low(argument) & bits != 0,
    };
    let refuses = |check: &&Check| {
        check.when.is_none_or(counts)
            && check.values.contains(&(low(check.argument) & check.mask)) == check.refuse_listed
    };
    call.checks.iter().find(refuses).map_or(ALLOW, |check| errno(check.errno))
}

fn number(value: libc::c_long) -> u32 {
    u32::try_from(value).unwrap()
}

/// Values at and beside everything that the policy compares with.
fn argument() -> impl Strategy<Value = u64> {
    let values: Vec<u64> = groups()
        .iter()
        .flat_map(|group| group.calls)
        .flat_map(|call| call.checks)
        .flat_map(|check| {
            let when = check.when.map(|(When::Is(_, value) | When::Has(_, value))| value);
            check.values.iter().copied().chain(when).chain((check.mask != u32::MAX).then_some(check.mask))
        })
        .flat_map(|value| [u64::from(value), u64::from(value) + 1, u64::from(value) | 1 << 31])
        .collect();
    let low = prop_oneof![proptest::sample::select(values), any::<u64>()];
    (low, prop_oneof![Just(0), any::<u32>()]).prop_map(|(low, high)| low ^ (u64::from(high) << 32))
}

fn any_number() -> impl Strategy<Value = u32> {
    let listed: Vec<u32> = groups().iter().flat_map(|group| group.calls).map(Call::number).collect();
    prop_oneof![6 => proptest::sample::select(listed), 3 => 0..600_u32, 1 => any::<u32>()]
}

proptest! {
    #[test]
    fn the_program_says_what_the_list_says(
        nested: bool,
        number in any_number(),
        arguments in proptest::array::uniform6(argument()),
    ) {
        let mode = if nested { Mode::Nested } else { Mode::Strict };
        let filter = Filter::compile(mode);
        prop_assert_eq!(run(&filter, ARCHITECTURE, number, arguments), expected(mode, number, arguments));
    }

    #[test]
    fn another_architecture_ends_the_process(architecture: u32, number in any_number()) {
        prop_assume!(architecture != ARCHITECTURE);
        prop_assert_eq!(run(&Filter::compile(Mode::Nested), architecture, number, NO_ARGUMENTS), KILL_PROCESS);
    }
}

#[test]
fn every_number_gets_the_right_answer() {
    for mode in BOTH {
        let filter = Filter::compile(mode);
        for number in (0..1000).chain(0x3fff_fff0..0x4000_0400).chain(u32::MAX - 9..=u32::MAX) {
            for arguments in [NO_ARGUMENTS, [u64::MAX; 6]] {
                let (is, should) = (run(&filter, ARCHITECTURE, number, arguments), expected(mode, number, arguments));
                assert_eq!(is, should, "{mode:?} {number} {arguments:?}");
            }
        }
    }
}

#[test]
fn each_call_is_listed_once_in_a_mode_and_is_known() {
    for mode in BOTH {
        let mut seen = HashSet::new();
        for call in policy::calls(mode) {
            assert!(seen.insert(call.number()), "{} twice", call.name);
            assert!((1..=LAST_KNOWN).contains(&call.number()), "{}", call.name);
            assert!(call.checks.iter().all(|check| (1..=200).contains(&check.values.len())), "{}", call.name);
        }
    }
}

#[test]
fn the_upper_half_of_an_argument_decides_nothing() {
    let filter = Filter::compile(Mode::Strict);
    let ioctl = |request: u64| run(&filter, ARCHITECTURE, number(libc::SYS_ioctl), [0, request, 0, 0, 0, 0]);
    assert_eq!(ioctl(0x5412), errno(Errno::EPERM));
    assert_eq!(ioctl(0x1_0000_5412), errno(Errno::EPERM));
    assert_eq!(ioctl(0x5413), ALLOW);
    let socket = |family: u64| run(&filter, ARCHITECTURE, number(libc::SYS_socket), [family, 1, 0, 0, 0, 0]);
    assert_eq!(socket(40), errno(Errno::EAFNOSUPPORT));
    assert_eq!(socket(0xffff_ffff_0000_0028), errno(Errno::EAFNOSUPPORT));
    assert_eq!(socket(0xffff_ffff_0000_0002), ALLOW);
}

#[test]
fn x32_calls_and_calls_of_the_future_are_unknown() {
    let filter = Filter::compile(Mode::Nested);
    for number in [0x4000_0000, 0x4000_0000 | number(libc::SYS_socket), LAST_KNOWN + 1, 512, 547, u32::MAX - 1] {
        assert_eq!(run(&filter, ARCHITECTURE, number, NO_ARGUMENTS), errno(Errno::ENOSYS), "{number:#x}");
    }
}

#[test]
fn nested_allows_what_a_container_tool_needs_and_no_more() {
    let (strict, nested) = (Filter::compile(Mode::Strict), Filter::compile(Mode::Nested));
    let ask = |filter, call, first| run(filter, ARCHITECTURE, number(call), [first, 0, 0, 0, 0, 0]);
    for call in [libc::SYS_clone, libc::SYS_unshare] {
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWPID, libc::CLONE_NEWCGROUP] {
            let flag = u64::from(flag.cast_unsigned());
            assert_eq!(ask(&strict, call, flag), errno(Errno::EPERM));
            assert_eq!(ask(&nested, call, flag), ALLOW);
        }
        let network = u64::from((libc::CLONE_NEWNET | libc::CLONE_NEWUSER).cast_unsigned());
        assert_eq!(ask(&nested, call, network), errno(Errno::EPERM));
    }
    let thread = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    assert_eq!(ask(&strict, libc::SYS_clone, u64::from(thread.cast_unsigned())), ALLOW);
    assert_eq!(ask(&strict, libc::SYS_clone, 17), ALLOW);
    for call in [libc::SYS_mount, libc::SYS_pivot_root, libc::SYS_setns, libc::SYS_fsopen] {
        assert_eq!((ask(&strict, call, 0), ask(&nested, call, 0)), (errno(Errno::EPERM), ALLOW));
    }
}

#[test]
fn a_mode_counts_only_where_a_file_is_made() {
    for mode in BOTH {
        let filter = Filter::compile(mode);
        let open =
            |flags: u64, mode: u64| run(&filter, ARCHITECTURE, number(libc::SYS_openat), [0, 0, flags, mode, 0, 0]);
        let temporary = u64::from(libc::O_TMPFILE.cast_unsigned());
        for bit in [0o4000, 0o2000, 0o6755, 0o1_0000_4755] {
            for flags in [0o101, temporary | 1, 0o1102] {
                assert_eq!(open(flags, bit), errno(Errno::EPERM), "{flags:o} {bit:o}");
            }
            assert_eq!(open(u64::from(libc::O_DIRECTORY.cast_unsigned()), bit), ALLOW);
        }
        assert_eq!(open(0o101, 0o1777), ALLOW);
    }
}

#[test]
fn far_answers_are_reached_too() {
    let mut code = Code::new();
    let (near, far) = (code.answer(7), code.answer(9));
    let mut entry = far;
    for value in 0..600 {
        entry = code.branch(IF_EQUAL, value, if value % 2 == 0 { near } else { far }, entry);
    }
    let entry = code.search(&[(1..3, entry), (5..9, near), (20..21, far), (30..31, near), (40..41, entry)]);
    code.then(LOAD, NUMBER_AT, entry);
    let filter = Filter(code.finish());
    assert!(filter.0.len() > 600);
    for (number, answer) in [(0, ALLOW), (1, 9), (2, 7), (8, 7), (9, ALLOW), (20, 9), (30, 7), (40, 7), (41, ALLOW)] {
        assert_eq!(run(&filter, ARCHITECTURE, number, NO_ARGUMENTS), answer, "{number}");
    }
}

/// Each instruction costs at every start of a payload.
#[test]
fn the_program_is_short() {
    for mode in BOTH {
        let filter = Filter::compile(mode);
        assert!(filter.0.len() < 200, "{mode:?}: {} instructions", filter.0.len());
    }
}

#[test]
fn the_list_reads_well() {
    let text: Vec<String> = groups().iter().flat_map(|group| group.calls).map(ToString::to_string).collect();
    assert!(text.contains(&"clone3 (ENOSYS)".to_owned()), "{text:?}");
    assert!(text.iter().any(|t| t.starts_with("ioctl (pushing input into a terminal")), "{text:?}");
    assert!(groups().iter().all(|g| !g.why.is_empty() && !g.rules.is_empty()));
}
