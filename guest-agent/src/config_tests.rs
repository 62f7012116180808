#![allow(clippy::unwrap_used)]
use super::*;

#[test]
fn empty_is_the_default() {
    assert_eq!(Config::parse("").unwrap(), Config::default());
}

#[test]
fn detail_is_off_until_asked_for() {
    assert_eq!(Config::default().detail(), None);
    let config = Config::parse("detail = \"connections\"\ndetail_interval = 2.5").unwrap();
    assert_eq!(config.detail(), Some(Duration::from_millis(2500)));
}

#[test]
fn the_default_has_54_blocks_and_room_for_them() {
    let config = Config::default();
    assert_eq!(config.blocks().unwrap().count(), 54);
    // 54 * 4 and the name server's four fit into a /24, and into nothing smaller.
    let of = |prefix: u8| Config::parse(&format!("inner_network = \"10.0.0.0/{prefix}\""));
    assert!(of(24).is_ok() && of(25).is_err());
    assert_eq!(of(24).unwrap().inner_network.dns(), Ipv4Addr::new(10, 0, 0, 254));
}

#[test]
fn limits_are_read_as_on_the_command_line() {
    for (text, cpus) in [("1.5", 1500), ("2", 2000), ("\"0.25\"", 250)] {
        assert_eq!(Config::parse(&format!("cpus = {text}")).unwrap().cpus, Some(Millicores(cpus)), "{text}");
    }
    for text in ["1073741824", "\"1G\"", "\"1024M\""] {
        assert_eq!(Config::parse(&format!("memory = {text}")).unwrap().memory, Some(1 << 30), "{text}");
    }
}

#[test]
fn messages_have_no_names_of_types() {
    let wrong = [
        "cpus = true",
        "cpus = [1]",
        "memory = 1.5",
        "memory = []",
        "pids = \"x\"",
        "block = 70000",
        "pids = -1",
        "expose = \"/cvmfs\"",
        "allow_uids = 5",
        "uplink = 3",
        "opaque_tokens = 1",
        "ack_timeout = \"1\"",
        "spool_bytes = 1.5",
        "allowed_signers = 1",
        "ports = 5",
        "link = 1",
        "ipv6 = 1",
        "detail = 1",
    ];
    for text in wrong {
        let (_, message) = Config::parse(text).unwrap_err();
        let named = ["u16", "u32", "u64", "usize", "f64", "enum", "sequence", "Path", "variant of"];
        assert!(!named.iter().any(|name| message.contains(name)), "{text}: {message}");
    }
}

#[test]
fn errors_name_line_and_key() {
    let cases = [
        ("fail_mode = \"open\"\nfial = 1\n", 2, "fial"),
        ("\nfail_mode = \"ajar\"\n", 2, "fail_mode"),
        ("ports = \"5-1\"", 1, "ports"),
        ("# x\nblock = 60000\n", 2, "block"),
        ("inner_network = \"10.0.0.1/8\"", 1, "inner_network"),
        ("inner_network = \"10.0.0.0/29\"", 1, "inner_network"),
        ("ports = \"3000-65535\"", 1, "ports"),
        ("ipv6 = \"2001:db8::/56\"", 1, "ipv6"),
        ("connections = 3", 1, "connections"),
        ("ack_timeout = -1.0", 1, "ack_timeout"),
        ("expose = [\"/run/x\"]", 1, "expose"),
        ("link = \"tcp:1\"", 1, "link"),
        ("allow_uids = [-1]", 1, "allow_uids"),
        ("detail = \"all\"", 1, "detail"),
        ("detail = \"connections\"\ndetail_interval = 0.01", 2, "detail_interval"),
        ("detail_interval = nan", 1, "detail_interval"),
        ("cpus = true", 1, "cpus"),
        ("memory = \"1X\"", 1, "memory"),
        ("rest = 86401", 1, "rest"),
        ("token_max_hours = 0", 1, "token_max_hours"),
        ("token_max_hours = 745", 1, "token_max_hours"),
        ("uid_base = 4294967295", 1, "uid_base"),
        ("uplink = \"\"", 1, "uplink"),
        ("uplink = \"eth0/1\"", 1, "uplink"),
    ];
    for (text, line, key) in cases {
        let (at, message) = Config::parse(text).unwrap_err();
        assert_eq!((at, key_of(text, at).as_str()), (line, key), "{text}: {message}");
    }
}
