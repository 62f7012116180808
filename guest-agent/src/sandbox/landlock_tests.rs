#![allow(clippy::unwrap_used)]
use super::*;

#[test]
fn each_kernel_gets_what_it_can_do_and_the_rest_is_named() {
    let said = |abi, mode| {
        let Applied { abi: same, fs, scoped, missing } = plan(abi, mode);
        assert_eq!(same, abi);
        (fs, scoped, missing.len())
    };
    assert_eq!(said(0, Mode::Strict), (false, false, 1));
    assert_eq!(said(1, Mode::Strict), (false, false, 2));
    assert_eq!(said(2, Mode::Strict), (true, false, 3));
    assert_eq!(said(3, Mode::Strict), (true, false, 2));
    assert_eq!(said(5, Mode::Strict), (true, false, 1));
    for abi in [6, 7, 9, 1000] {
        assert_eq!(said(abi, Mode::Strict), (true, true, 0));
        assert_eq!(said(abi, Mode::Nested), (false, true, 1));
    }
    assert_eq!(said(0, Mode::Nested), (false, false, 1));
    assert_eq!(said(5, Mode::Nested), (false, false, 2));
}

#[test]
fn rules_are_made_for_every_kernel_up_to_this_one() {
    for abi in 0..=sys::landlock_abi() {
        for mode in [Mode::Strict, Mode::Nested] {
            let prepared = prepare_for(abi, &[Path::new("/tmp")], mode).unwrap();
            assert_eq!(prepared.rules.is_some(), prepared.applied.fs || prepared.applied.scoped, "{abi} {mode:?}");
        }
    }
}

#[test]
fn a_path_that_is_not_there_is_named() {
    if plan(sys::landlock_abi(), Mode::Strict).fs {
        let error = prepare(&[Path::new("/no/such")], Mode::Strict).unwrap_err();
        assert!(error.to_string().contains("/no/such"), "{error}");
    }
}
