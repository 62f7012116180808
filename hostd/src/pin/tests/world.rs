//! A cloud manager, a quarantine and a clock around a keeper on a real file system.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;
use vestigo_model::{
    Cloud, Digest, Disk, DomainUuid, Handover, HandoverResult, HostId, Instance, InstanceId, Label, Layer,
    Outcome as Answer, StopReason, Timestamp,
};

use super::super::{Outcome, PinKeeper, PinOptions};
use crate::domain::Inspection;

pub struct World {
    pub dir: TempDir,
    pub keeper: PinKeeper,
    pub now: Timestamp,
    pub folders: Vec<PathBuf>,
}

pub fn vm(n: u128) -> DomainUuid {
    DomainUuid(uuid::Uuid::from_u128(n))
}

/// An inspection of a VM with these disks: target, then the chain.
pub fn inspection(domain: DomainUuid, now: Timestamp, disks: &[(&str, &[&Path])]) -> Inspection {
    let layer = |(n, path): (usize, &&Path)| Layer {
        path: path.to_path_buf(),
        format: if n == 0 { "qcow2" } else { "raw" }.into(),
    };
    let disk = |(target, chain): &(&str, &[&Path])| Disk {
        target: (*target).to_owned(),
        chain: chain.iter().enumerate().map(layer).collect(),
    };
    let instance = Instance {
        host: HostId::new("hv1").unwrap(),
        domain,
        id: InstanceId::new(domain.to_string()).unwrap(),
        name: Label::new("i").unwrap(),
        cloud: Cloud::Plain,
        project: None,
        vo: None,
        owner: None,
        flavour: None,
        image: None,
        taps: Vec::new(),
        disks: disks.iter().map(disk).collect(),
        xml_sha256: Digest::of(b"<domain/>"),
        start: now,
        end: None,
    };
    let xml = "<domain/>".to_owned();
    Inspection {
        instance,
        xml,
        agent_socket: None,
        console_log: None,
        unpinnable: Vec::new(),
        running: true,
        run: None,
    }
}

fn open(dir: &Path, folders: &[PathBuf]) -> (PinKeeper, Vec<Outcome>) {
    let options = PinOptions::new(HostId::new("hv1").unwrap(), folders.to_vec(), dir.join("spool"));
    PinKeeper::open(options, Box::new(|_: &Instance| Vec::new())).unwrap()
}

impl World {
    /// With nothing running and everything known.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folders = vec![dir.path().join("pins")];
        let (mut keeper, outcomes) = open(dir.path(), &folders);
        assert!(outcomes.is_empty());
        let now = "2026-11-22T14:00:00Z".parse().unwrap();
        keeper.resync(&[], now);
        Self { dir, keeper, now, folders }
    }

    /// hostd dies and starts again; `running` is what it finds, on these disks.
    pub fn restart(&mut self) -> Vec<Outcome> {
        let (keeper, outcomes) = open(self.dir.path(), &self.folders);
        self.keeper = keeper;
        outcomes
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A disk with recognisable content.
    pub fn disk(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("marker of {name}")).unwrap();
        path
    }

    pub fn start(&mut self, n: u128, disks: &[(&str, &[&Path])]) -> Vec<Outcome> {
        self.keeper.started(&inspection(vm(n), self.now, disks), self.now)
    }

    pub fn stop(&mut self, n: u128) -> Vec<Outcome> {
        self.keeper.stopped(vm(n), self.now, StopReason::Destroyed)
    }

    /// Time passes; the keeper is asked as its caller would.
    pub fn pass(&mut self, seconds: u64) -> Vec<Outcome> {
        let mut outcomes = self.keeper.readable(self.now);
        for _ in 0..seconds {
            self.now = self.now + Duration::from_secs(1);
            outcomes.extend(self.keeper.readable(self.now));
            outcomes.extend(self.keeper.tick(self.now));
        }
        outcomes
    }

    /// What lies in the spool.
    pub fn handovers(&self) -> Vec<Handover> {
        let files = fs::read_dir(self.path("spool")).unwrap().map(|e| e.unwrap().path());
        let json = files.filter(|p| p.extension().is_some_and(|e| e == "json"));
        json.map(|p| serde_json::from_slice(&fs::read(p).unwrap()).unwrap()).collect()
    }

    /// Quarantine takes everything in the spool, in its order of steps; returns what it read from the images.
    pub fn quarantine(&self) -> Vec<String> {
        let mut read = Vec::new();
        for handover in self.handovers() {
            for disk in &handover.disks {
                read.push(fs::read_to_string(&disk.layers[0].pin).unwrap());
            }
            let outcome = Answer::Captured { vault: "file:///v".into(), manifest_sha256: Digest::of(b"m") };
            let result = HandoverResult { version: 1, item: handover.item, time: self.now, outcome };
            let done = self.path("spool/done");
            fs::write(done.join(".new"), serde_json::to_vec(&result).unwrap()).unwrap();
            fs::rename(done.join(".new"), done.join(format!("{}.json", handover.item))).unwrap();
            for layer in handover.disks.iter().flat_map(|d| &d.layers) {
                fs::remove_file(&layer.pin).unwrap();
            }
            fs::remove_file(self.path("spool").join(format!("{}.json", handover.item))).unwrap();
        }
        read.sort();
        read
    }

    /// Files in the pin folders.
    pub fn pinned(&self) -> Vec<PathBuf> {
        let folders = self.folders.iter().flat_map(|f| fs::read_dir(f).unwrap()).map(|e| e.unwrap().path());
        let mut files: Vec<_> = folders.flat_map(|f| fs::read_dir(f).unwrap()).map(|e| e.unwrap().path()).collect();
        files.retain(|p| p.file_name().is_some_and(|n| n != "pin.json"));
        files
    }
}
