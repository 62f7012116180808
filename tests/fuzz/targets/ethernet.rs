//! A frame at the tap. The decoder is pure and comes as its file, without the rest of hostd.
#![no_main]

#[path = "../../../hostd/src/decode.rs"]
#[allow(dead_code, reason = "the rest of hostd uses more of it")]
mod decode;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(packet) = decode::decode(data) {
        assert!(packet.ip_bytes <= u64::from(u32::MAX), "an IP packet's length has a bound");
        assert!(packet.vlan.is_none_or(|vlan| vlan < 4096), "a VLAN id has 12 bits");
        assert_eq!(packet.src.is_ipv4(), packet.dst.is_ipv4());
        if packet.portless() {
            assert_eq!((packet.src_port, packet.dst_port), (0, 0));
        }
    }
});
