//! What a tap's witness reads: ARP, neighbour discovery, DHCP and fireflies. The parsers are pure and come as their files.
#![no_main]

use vestigo_model::Mac;

/// What the parsers name of hostd's decoder.
#[allow(dead_code, reason = "the parsers use two of them")]
mod decode {
    pub mod proto {
        pub const TCP: u8 = 6;
        pub const UDP: u8 = 17;
    }
}

#[path = "../../../hostd/src/witness/address.rs"]
mod address;
#[path = "../../../hostd/src/witness/firefly.rs"]
mod firefly;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let given = |message: Option<address::Dhcp>| {
        if let Some(address::Dhcp::Reply { given, .. }) = message {
            assert!(given.len() <= 8, "one reply gives a bounded number of addresses");
        }
    };
    match kind % 5 {
        0 => assert!(address::arp_sender(data, MAC).is_none_or(|ip| ip.is_ipv4() && !ip.is_unspecified())),
        1 => {
            let source = std::net::Ipv6Addr::UNSPECIFIED.into();
            assert!(address::neighbour_sender(*kind, source, data).is_none_or(|ip| ip.is_ipv6()));
        }
        2 => given(address::dhcp(data, MAC)),
        3 => given(address::dhcp6(data)),
        _ => assert!(firefly::read(data).is_none_or(|firefly| firefly.tag.experiment != 0)),
    }
});
