use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{
    Notify,
    mpsc::{
        self,
        error::{TryRecvError, TrySendError},
    },
};
use vestigo_model::{DomainUuid, HostId, InstanceId, Tap, Vo};

use crate::{meter::Metered, witness::TapWitness};

/// Records of one tap that may wait. What finds no room stays in the tap's meter.
const ROOM: usize = 2048;
/// Most records taken of one tap before the next has its turn.
const SHARE: usize = 64;

/// Whose tap it is: what every record from it carries.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The hypervisor.
    pub host: HostId,
    /// The VM.
    pub domain: DomainUuid,
    /// Its cloud id.
    pub instance: InstanceId,
    /// Its VO.
    pub vo: Option<Vo>,
    /// The tap.
    pub tap: Tap,
    /// What is learnt on it.
    pub witness: TapWitness,
}

/// A record with the tap it comes from.
#[derive(Debug, Clone)]
pub struct Tapped {
    /// The tap.
    pub observed: Arc<Observed>,
    /// The record.
    pub record: Metered,
}

/// The thread's end of a tap's queue. That it is dropped is news too.
#[derive(Debug)]
pub struct TapSender {
    // Dropped in this order: first the queue ends, then the bell rings.
    queue: mpsc::Sender<Metered>,
    bell: Bell,
}

#[derive(Debug)]
struct Bell(Arc<Notify>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl TapSender {
    /// How many records find room now. Nobody else sends into this queue, so they will.
    #[must_use]
    pub fn room(&self) -> usize {
        self.queue.capacity()
    }

    /// How many records find room when none waits.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.queue.max_capacity()
    }

    /// Whether nobody will ever take a record any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Queues records that there is room for; gives the number of those that were too many.
    pub fn send(&self, records: Vec<Metered>) -> u64 {
        let left = records.into_iter().filter_map(|record| self.queue.try_send(record).err()).count();
        self.bell.0.notify_one();
        u64::try_from(left).unwrap_or(u64::MAX)
    }

    /// Queues all records, and waits for room, until nobody takes them any more; gives the number of those that are left.
    /// Blocks.
    pub fn send_all(&self, records: Vec<Metered>) -> u64 {
        let mut left = u64::try_from(records.len()).unwrap_or(u64::MAX);
        for record in records {
            let sent = match self.queue.try_send(record) {
                Err(TrySendError::Full(record)) => {
                    self.bell.0.notify_one();
                    self.queue.blocking_send(record).is_ok()
                }
                tried => tried.is_ok(),
            };
            if !sent {
                break;
            }
            left -= 1;
        }
        self.bell.0.notify_one();
        left
    }
}

#[derive(Debug)]
struct Queue {
    observed: Arc<Observed>,
    records: mpsc::Receiver<Metered>,
}

/// What a turn gave.
#[derive(Debug, Default)]
pub struct Turn {
    /// Records, a share of each tap.
    pub records: Vec<Tapped>,
    /// Taps whose capture has ended and whose last record has been taken.
    pub ended: Vec<Arc<Observed>>,
    /// Whether more waits.
    pub more: bool,
}

/// The queues of all taps, read in turn: a tap that says much waits for those that say little, never the reverse.
#[derive(Debug, Default)]
pub struct TapQueues {
    queues: Mutex<VecDeque<Queue>>,
    wake: Arc<Notify>,
}

impl TapQueues {
    /// A queue for a tap.
    #[must_use]
    pub fn open(&self, observed: Arc<Observed>) -> TapSender {
        let (queue, records) = mpsc::channel(ROOM);
        self.lock().push_back(Queue { observed, records });
        TapSender { queue, bell: Bell(Arc::clone(&self.wake)) }
    }

    /// Waits until something was queued, or a capture has ended.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Has [`TapQueues::woken`] return: more waits.
    pub fn ring(&self) {
        self.wake.notify_one();
    }

    /// A share of each tap, `room` records at most. Where room ends, the next turn begins.
    #[must_use]
    pub fn turn(&self, room: usize) -> Turn {
        self.take(room, |_| true)
    }

    /// The same for the taps of one VM.
    #[must_use]
    pub fn turn_of(&self, domain: DomainUuid, room: usize) -> Turn {
        self.take(room, |observed| observed.domain == domain)
    }

    /// Takes no more records of the VM. What its captures still hold is theirs to count.
    pub fn abandon(&self, domain: DomainUuid) {
        self.lock().retain(|queue| queue.observed.domain != domain);
    }

    /// Whether the VM has a queue that has not ended.
    #[must_use]
    pub fn has(&self, domain: DomainUuid) -> bool {
        self.lock().iter().any(|queue| queue.observed.domain == domain)
    }

    fn take(&self, mut room: usize, of: impl Fn(&Observed) -> bool) -> Turn {
        let mut queues = self.lock();
        let mut turn = Turn::default();
        for _ in 0..queues.len() {
            let Some(queue) = queues.front_mut() else { break };
            if room == 0 {
                turn.more = true;
                break;
            }
            let share = if of(&queue.observed) { SHARE.min(room) } else { 0 };
            if queue.give(share, &mut room, &mut turn) {
                turn.ended.extend(queues.pop_front().map(|queue| queue.observed));
            } else if share == SHARE || room > 0 {
                queues.rotate_left(1);
            } else {
                // Room ended inside of its share: it comes first in the next turn.
                turn.more = true;
                break;
            }
        }
        turn
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Gives a share; whether nothing can come any more.
    fn give(&mut self, share: usize, room: &mut usize, turn: &mut Turn) -> bool {
        for _ in 0..share {
            match self.records.try_recv() {
                Ok(record) => {
                    *room -= 1;
                    turn.records.push(Tapped { observed: Arc::clone(&self.observed), record });
                }
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
        turn.more |= share > 0;
        false
    }
}

#[cfg(test)]
mod tests;
