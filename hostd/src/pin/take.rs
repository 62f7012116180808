//! Taking hold of one disk.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use vestigo_model::{Disk, Instance, Layer};

use super::{
    HoldError,
    durable::{self, Survive},
    keeper::{PinKeeper, home},
    policy::{FileId, PinId},
    store::{PinDisk, PinLayer, Sighting, Store},
};

/// One run of a VM, as far as its disks need it.
pub(super) struct Run<'a> {
    pub(super) instance: &'a Instance,
    pub(super) xml: &'a str,
    /// It was running before, so a disk without a name may be one that is held.
    pub(super) goes_on: bool,
}

/// A layer that is held or is about to be.
struct Planned {
    layer: PinLayer,
    /// Set if the link is still to be made.
    link: Option<Sighting>,
}

/// Target and reason.
pub(super) type Complaints = Vec<(String, String)>;

impl PinKeeper {
    /// Takes hold of one disk, or finds the hold that there is. An error is about the image; what is wrong with a backing file
    /// is a complaint.
    pub(super) fn take(&mut self, disk: &Disk, run: &Run<'_>, complaints: &mut Complaints) -> Result<PinId, HoldError> {
        let image = disk.chain.first().ok_or_else(|| HoldError::NotAFile(PathBuf::new()))?;
        let sighting = match Store::sight(&image.path) {
            Ok(sighting) => sighting,
            // Unlinked under a running VM (Vac does it at once) and held since before.
            Err(error @ HoldError::Gone(_)) if run.goes_on => {
                let id = self.newest(disk, run, |l| l.original == image.path).ok_or(error)?;
                self.refresh(id, run);
                return Ok(id);
            }
            Err(error) => return Err(error),
        };
        let old = self.newest(disk, run, |l| l.file() == sighting.file);
        let mut planned = vec![self.plan(disk, run, old, 0, Ok(sighting))?];
        for (number, layer) in disk.chain.iter().enumerate().skip(1) {
            match self.plan(disk, run, old, number, Store::sight(&layer.path)) {
                Ok(layer) => planned.push(layer),
                Err(error) => complaints.push((disk.target.clone(), below_lost(&error))),
            }
        }
        match old {
            Some(id) if planned.iter().all(|p| p.link.is_none()) => {
                self.refresh(id, run);
                Ok(id)
            }
            _ => self.make(disk, run, old, planned, complaints),
        }
    }

    /// The newest hold on this disk of this VM whose image is the one meant.
    fn newest(&self, disk: &Disk, run: &Run<'_>, is: impl Fn(&PinLayer) -> bool) -> Option<PinId> {
        let own = |d: &PinDisk| d.instance.domain == run.instance.domain && d.target == disk.target;
        let meant = |d: &PinDisk| d.pending.is_none() && own(d) && d.layers.first().is_some_and(&is);
        self.pins.iter().rev().find(|(_, d)| meant(d)).map(|(id, _)| *id)
    }

    fn refresh(&mut self, id: PinId, run: &Run<'_>) {
        if let Some(disk) = self.pins.get_mut(&id) {
            disk.instance = run.instance.clone();
            run.xml.clone_into(&mut disk.domain_xml);
        }
    }

    /// Where one layer is, or will be, held.
    fn plan(
        &self,
        disk: &Disk,
        run: &Run<'_>,
        old: Option<PinId>,
        number: usize,
        sighting: Result<Sighting, HoldError>,
    ) -> Result<Planned, HoldError> {
        let layer = disk.chain.get(number).ok_or_else(|| HoldError::NotAFile(PathBuf::new()))?;
        let held = |is: &dyn Fn(&PinLayer) -> bool| {
            let old = self.pins.get(&old?)?;
            old.layers.iter().find(|l| is(l)).cloned()
        };
        let sighting = match sighting {
            Ok(sighting) => sighting,
            // Nova purges unused bases; the pin keeps it.
            Err(error) => {
                let layer = held(&|l| l.original == layer.path).ok_or(error)?;
                return Ok(Planned { layer, link: None });
            }
        };
        if let Some(layer) = held(&|l| l.file() == sighting.file) {
            return Ok(Planned { layer, link: None });
        }
        let taken = |path: &Path| self.taken(path);
        let pin = self.store.plan(run.instance.domain, &disk.target, number, &sighting, taken)?;
        Ok(Planned { layer: pin_layer(layer, sighting.file, pin), link: Some(sighting) })
    }

    fn make(
        &mut self,
        disk: &Disk,
        run: &Run<'_>,
        old: Option<PinId>,
        planned: Vec<Planned>,
        complaints: &mut Complaints,
    ) -> Result<PinId, HoldError> {
        let record = |layers| PinDisk {
            target: disk.target.clone(),
            layers,
            instance: run.instance.clone(),
            domain_xml: run.xml.to_owned(),
            pending: None,
        };
        // First a note of what the links will be (it survives a kill of this process), then the links; the caller then
        // makes the note last. Without it, links left by a killed hostd would be disks of nobody.
        let intent = record(planned.iter().map(|p| p.layer.clone()).collect());
        self.save_with(&intent, old, Survive::Process);
        let mut layers = Vec::new();
        for (number, Planned { layer, link }) in planned.into_iter().enumerate() {
            match link.map_or(Ok(()), |sighting| Store::link(&sighting, &layer.pin)) {
                Ok(()) => layers.push(layer),
                Err(error) if number == 0 => {
                    self.save(BTreeSet::from([home(&intent)]), Survive::Process);
                    return Err(error);
                }
                Err(error) => complaints.push((disk.target.clone(), below_lost(&error))),
            }
        }
        self.forget(old, &layers);
        Ok(self.insert(record(layers)))
    }

    /// Drops the earlier form of a disk, with those links that the later one does not use.
    fn forget(&mut self, old: Option<PinId>, used: &[PinLayer]) {
        let Some(id) = old else { return };
        self.policy.remove(id);
        let layers = self.pins.remove(&id).map(|d| d.layers).unwrap_or_default();
        for layer in layers.iter().filter(|l| used.iter().all(|u| u.pin != l.pin)) {
            if let Err(error) = durable::remove(&layer.pin) {
                tracing::warn!(pin = %layer.pin.display(), %error, "cannot remove a pin");
            }
        }
    }
}

fn below_lost(error: &HoldError) -> String {
    format!("a backing file of it is not kept: {error}")
}

fn pin_layer(layer: &Layer, file: FileId, pin: PathBuf) -> PinLayer {
    let FileId { device, inode } = file;
    PinLayer { original: layer.path.clone(), pin, format: layer.format.clone(), device, inode }
}
