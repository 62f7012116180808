use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Batch, FrameSource, PacketSocket, block,
    budget::{RingBudget, RingShape},
    filter,
    socket::Ring,
};
use crate::meter::Frame;

/// Frames out of a ring that the kernel fills (TPACKET_V3).
#[derive(Debug)]
pub struct RingSource {
    socket: PacketSocket,
    ring: Ring,
    /// The block that comes next.
    next: usize,
    shape: RingShape,
    budget: Arc<Mutex<RingBudget>>,
}

impl RingSource {
    /// Opens the interface with that index. From here on its frames are seen.
    ///
    /// No promiscuous mode: a tap (and a veth) has no address filter in hardware, a packet socket sees all its frames anyway, and
    /// the mode would show in the log and in every listing of the host.
    ///
    /// # Errors
    /// The kernel's: no right, no memory, no such interface.
    pub fn open(index: u32, budget: &Arc<Mutex<RingBudget>>) -> io::Result<Self> {
        let socket = PacketSocket::open()?;
        // Before the ring and before the bind: no frame is ever kept whole, and none is missed.
        socket.filter(&filter::snap())?;
        let mut held = budget.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = held.shape();
        let (shape, ring) = match socket.ring(wanted) {
            Ok(ring) => (wanted, ring),
            // The kernel has less than the budget allows.
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                let floor = RingShape::of(0);
                (floor, socket.ring(floor)?)
            }
            Err(error) => return Err(error),
        };
        socket.bind(index)?;
        if held.is_short(shape) {
            let (options, bytes) = (held.options(), shape.bytes());
            let lasts = shape.lasts(options.rate).as_millis();
            tracing::warn!(
                index,
                bytes,
                lasts_ms = lasts,
                "a ring is smaller than asked for: the memory for rings is used up"
            );
        }
        held.take(shape);
        drop(held);
        Ok(Self { socket, ring, next: 0, shape, budget: Arc::clone(budget) })
    }

    /// Its size.
    #[must_use]
    pub const fn shape(&self) -> RingShape {
        self.shape
    }
}

impl FrameSource for RingSource {
    fn socket(&self) -> &PacketSocket {
        &self.socket
    }

    fn take(&mut self, visit: &mut dyn FnMut(&Frame<'_>)) -> io::Result<Option<Batch>> {
        let Some(bytes) = self.ring.ready(self.next) else { return Ok(None) };
        let batch = block::frames(bytes, visit);
        self.ring.release(self.next);
        self.next = (self.next + 1) % self.shape.blocks;
        Ok(Some(batch))
    }
}

impl Drop for RingSource {
    fn drop(&mut self) {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).give_back(self.shape);
    }
}
