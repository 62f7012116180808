//! Blocks of ports, found by a port. Pure.
//!
//! A block is the sum of a few aligned ranges, as a range of addresses is of prefixes: one for a block of 1024 ports that begins at a
//! multiple of 1024. Ranges are numbered as the nodes of a binary tree over all ports, root 1: those that hold a port are its
//! ancestors, so a look-up takes as many steps as there are sizes of range in use, and meets only blocks that hold the port.

use std::collections::BTreeMap;

use vestigo_model::PortBlock;

/// Height of the tree: ports are numbers of so many bits.
const BITS: u32 = 16;

/// Blocks with a value each.
#[derive(Debug)]
pub struct PortIndex<T> {
    nodes: BTreeMap<u32, Vec<(PortBlock, T)>>,
    /// How many entries there are at each height, ports themselves being at height 0.
    heights: [usize; BITS as usize + 1],
}

impl<T> Default for PortIndex<T> {
    fn default() -> Self {
        Self { nodes: BTreeMap::new(), heights: [0; BITS as usize + 1] }
    }
}

impl<T: Copy> PortIndex<T> {
    /// Enters a block.
    pub fn insert(&mut self, block: PortBlock, value: T) {
        for (node, height) in ranges(block) {
            self.nodes.entry(node).or_default().push((block, value));
            self.count(height, 1);
        }
    }

    /// Takes the block's values out that `is` names.
    pub fn remove(&mut self, block: PortBlock, is: impl Fn(&T) -> bool) {
        for (node, height) in ranges(block) {
            let Some(entries) = self.nodes.get_mut(&node) else { continue };
            let before = entries.len();
            entries.retain(|(of, value)| *of != block || !is(value));
            let removed = before.abs_diff(entries.len());
            if entries.is_empty() {
                self.nodes.remove(&node);
            }
            self.count(height, -removed.cast_signed());
        }
    }

    /// Every block that holds the whole range.
    pub fn covering(&self, range: PortBlock) -> impl Iterator<Item = &T> {
        self.at_or_above(leaf(range.first), 0)
            .filter(move |(block, _)| block.last >= range.last)
            .map(|(_, value)| value)
    }

    /// Every block that holds a port of the range; one may come several times.
    pub fn touching(&self, range: PortBlock) -> impl Iterator<Item = &T> {
        let of = move |(node, height)| self.at_or_above(node, height).chain(self.below(node, height));
        ranges(range).flat_map(of).map(|(_, value)| value)
    }

    fn count(&mut self, height: u32, change: isize) {
        if let Some(count) = self.heights.get_mut(height as usize) {
            *count = count.saturating_add_signed(change);
        }
    }

    fn at_or_above(&self, node: u32, height: u32) -> impl Iterator<Item = &(PortBlock, T)> {
        let used = self.heights.iter().skip(height as usize).enumerate().filter(|(_, count)| **count > 0);
        used.filter_map(move |(up, _)| self.nodes.get(&(node >> up))).flatten()
    }

    fn below(&self, node: u32, height: u32) -> impl Iterator<Item = &(PortBlock, T)> {
        (1..=height)
            .flat_map(move |down| self.nodes.range(node << down..(node + 1) << down))
            .flat_map(|(_, entries)| entries)
    }
}

const fn leaf(port: u16) -> u32 {
    (1 << BITS) | port as u32
}

/// The aligned ranges that make up the block: node and height of each.
fn ranges(block: PortBlock) -> impl Iterator<Item = (u32, u32)> {
    let (mut at, end) = (u32::from(block.first), u32::from(block.last) + 1);
    std::iter::from_fn(move || {
        let room = end.checked_sub(at).filter(|room| *room > 0)?;
        let height = at.trailing_zeros().min(room.ilog2()).min(BITS);
        let node = ((1 << BITS) | at) >> height;
        at += 1 << height;
        Some((node, height))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block() -> impl Strategy<Value = PortBlock> {
        let any = (any::<u16>(), any::<u16>()).prop_map(|(a, b)| PortBlock { first: a.min(b), last: a.max(b) });
        let near = (0..40u16, 0..40u16).prop_map(|(a, b)| PortBlock { first: a.min(b), last: a.max(b) });
        let aligned = (0..64u16).prop_map(|n| PortBlock { first: n << 10, last: (n << 10) | 1023 });
        prop_oneof![any, near, aligned]
    }

    #[test]
    fn an_aligned_block_is_one_range() {
        assert_eq!(ranges(PortBlock { first: 20_480, last: 21_503 }).count(), 1);
        assert_eq!(ranges(PortBlock { first: 0, last: u16::MAX }).collect::<Vec<_>>(), [(1, BITS)]);
    }

    proptest! {
        #[test]
        fn finds_what_a_scan_finds(
            blocks in prop::collection::vec(block(), 0..30),
            gone in prop::collection::vec(any::<bool>(), 30),
            asked in block(),
        ) {
            let mut index = PortIndex::default();
            blocks.iter().enumerate().for_each(|(n, block)| index.insert(*block, n));
            let gone = |n: usize| gone.get(n).copied().unwrap_or(false);
            blocks.iter().enumerate().filter(|(n, _)| gone(*n)).for_each(|(n, block)| index.remove(*block, |of| *of == n));
            let scan = |fits: &dyn Fn(&PortBlock) -> bool| -> Vec<usize> {
                blocks.iter().enumerate().filter(|(n, block)| !gone(*n) && fits(block)).map(|(n, _)| n).collect()
            };
            let sorted = |found: &mut dyn Iterator<Item = &usize>| {
                let mut found: Vec<usize> = found.copied().collect();
                found.sort_unstable();
                found
            };
            let covering = scan(&|block| block.contains(asked.first) && block.contains(asked.last));
            prop_assert_eq!(sorted(&mut index.covering(asked)), covering);
            let mut touching = sorted(&mut index.touching(asked));
            touching.dedup();
            prop_assert_eq!(touching, scan(&|block| block.first <= asked.last && asked.first <= block.last));
            (0..blocks.len()).for_each(|n| blocks.iter().for_each(|block| index.remove(*block, |of| *of == n)));
            prop_assert!(index.nodes.is_empty() && index.heights.iter().all(|count| *count == 0));
        }
    }
}
