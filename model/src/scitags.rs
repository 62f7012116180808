//! The experiments of the SciTags registry (scitags.org, version of September 2025).

/// The registry's name of an experiment number. Number 1, `default`, is nobody's; `None` for that and for what is not in it.
#[must_use]
pub const fn experiment_name(number: u16) -> Option<&'static str> {
    Some(match number {
        2 => "atlas",
        3 => "cms",
        4 => "lhcb",
        5 => "alice",
        6 => "belleii",
        7 => "ska",
        8 => "dune",
        9 => "lsst",
        10 => "ilc",
        11 => "auger",
        12 => "juno",
        13 => "nova",
        14 => "xenon",
        _ => return None,
    })
}
