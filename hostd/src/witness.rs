//! A second witness of who a VM is: addresses given and announced on its tap, and what its traffic says of its VO. Pure but for a lock.
//!
//! The tap's thread shows the frames of control protocols as they pass ([`crate::meter::Witness`]); the service asks when it joins a
//! record. All of it is the words of guests and of machines on their link: bounded, counted, and each kept under the name of who
//! said it (docs/decisions/0056).

pub mod address;
pub mod firefly;
mod marking;
mod memory;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vestigo_model::{Learnt, Mac};

use crate::meter::{Control, Frame, Witness};

pub use self::{
    marking::Marking,
    memory::{Memory, WitnessCounts},
};

/// What is learnt on one tap; its clones are the same.
#[derive(Debug, Clone)]
pub struct TapWitness {
    mac: Mac,
    memory: Arc<Mutex<Memory>>,
}

impl TapWitness {
    /// Of the tap with this hardware address; `learnt` is known already.
    #[must_use]
    pub fn new(mac: Mac, learnt: Vec<Learnt>) -> Self {
        Self { mac, memory: Arc::new(Mutex::new(Memory::restored(learnt))) }
    }

    /// The VM's hardware address there.
    #[must_use]
    pub const fn mac(&self) -> Mac {
        self.mac
    }

    /// What is known now.
    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Witness for TapWitness {
    fn control(&mut self, frame: &Frame<'_>, control: Control) {
        let mac = self.mac;
        self.memory().look(frame, &control, mac);
    }
}

#[cfg(test)]
mod tests;
