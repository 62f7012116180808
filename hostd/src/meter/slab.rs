use super::entry::{Entry, Links};

/// No entry.
pub(super) const NONE: u32 = u32::MAX;
/// Numbers stay below: the bit is the wheel's.
pub(super) const LIMIT: u32 = 1 << 31;
/// Entries are taken from the allocator in chunks of 64 KiB: nothing ever moves, and nothing is copied when the table grows.
const CHUNK: usize = 512;

/// Entries by number.
#[derive(Debug, Default)]
pub(super) struct Slab {
    chunks: Vec<Vec<Entry>>,
    /// The first that is free; the rest hangs on it.
    free: Option<u32>,
    live: usize,
}

impl Slab {
    pub(super) const fn len(&self) -> usize {
        self.live
    }

    pub(super) fn get(&self, at: u32) -> Option<&Entry> {
        let at = at as usize;
        self.chunks.get(at / CHUNK)?.get(at % CHUNK)
    }

    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut Entry> {
        let at = at as usize;
        self.chunks.get_mut(at / CHUNK)?.get_mut(at % CHUNK)
    }

    /// Gives the number; `None` when there are more than numbers.
    pub(super) fn insert(&mut self, entry: Entry) -> Option<u32> {
        let at = match self.free {
            Some(at) => {
                let slot = self.get_mut(at)?;
                let next = slot.links.next;
                *slot = entry;
                self.free = (next != NONE).then_some(next);
                at
            }
            None => self.push(entry)?,
        };
        self.live += 1;
        Some(at)
    }

    fn push(&mut self, entry: Entry) -> Option<u32> {
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let at = u32::try_from((self.chunks.len() - 1) * CHUNK + self.chunks.last()?.len()).ok()?;
        if at >= LIMIT {
            return None;
        }
        self.chunks.last_mut()?.push(entry);
        Some(at)
    }

    /// Frees the number of an entry that hangs nowhere any more.
    pub(super) fn remove(&mut self, at: u32) {
        let next = self.free.unwrap_or(NONE);
        if let Some(entry) = self.get_mut(at) {
            entry.links = Links { prev: NONE, next };
            self.free = Some(at);
            self.live -= 1;
        }
    }
}
