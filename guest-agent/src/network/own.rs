//! The leases of what is no payload: the system and the pilots of the VM. Everything that the VM itself sends leaves from one of two
//! blocks below the payloads' ports.

use vestigo_model::PortBlock;

/// Ports that only the system can bind, and keeps: some servers (NFS) insist on them.
pub const PRIVILEGED: PortBlock = PortBlock { first: 1, last: 1023 };
/// Lowest port of the VM's own.
const FIRST: u16 = 2048;
/// Fewest ports that both together can live with.
const LEAST: u16 = 2048;

/// Who holds such a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnHolder {
    /// Root, users below uid 1000, and the kernel.
    System,
    /// Users from uid 1000 upwards.
    Pilot,
}

/// The two blocks, when payloads have the ports from `payloads` upwards: a quarter of what is left for the system, the rest for pilots.
/// None when that is too little.
#[must_use]
pub fn leases(payloads: u16) -> Option<[(OwnHolder, PortBlock); 2]> {
    let room = payloads.checked_sub(FIRST).filter(|room| *room >= LEAST)?;
    let border = FIRST + room / 4;
    let system = PortBlock { first: FIRST, last: border - 1 };
    let pilot = PortBlock { first: border, last: payloads - 1 };
    Some([(OwnHolder::System, system), (OwnHolder::Pilot, pilot)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_touch_and_end_below_the_payloads() {
        let blocks = |first| leases(first).map(|pair| pair.map(|(_, block)| (block.first, block.last)));
        assert_eq!(blocks(10_240), Some([(2048, 4095), (4096, 10_239)]));
        assert_eq!(blocks(4096), Some([(2048, 2559), (2560, 4095)]));
        assert_eq!(blocks(4095), None);
        assert_eq!(blocks(0), None);
    }
}
