//! The writer: appends to the log, seals segments, recovers after a crash.
//!
//! ```text
//!   append ─► wal/N ──seal──► 1. wal/N+1 begins with what still holds (whole or absent)
//!                             2. five Parquet files of everything up to N (each whole or absent)
//!                             3. manifest: from here on the segment exists and N is covered
//!                             4. wal/N is removed
//! ```
//! A crash before 3 leaves rubble files, removed on open, and `wal/N` with `wal/N+1`, sealed together next time; between 3 and
//! 4 it leaves a covered generation, which readers drop and the next open removes. A seal that *fails* (disk full) is a
//! crash before 3 without the crash: appending goes on in `wal/N+1`.

use std::{
    fs::{File, OpenOptions, TryLockError},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use vestigo_model::{Digest, FactRecord, Flow, HostId, Instance, LinkPosition, Payload, Timestamp};

use crate::{
    compact::{CompactError, Link, Prepared},
    durable::{self, IoError},
    entry::{Entry, EntryRef, Head, Header, VERSION},
    error::LedgerError,
    flows::{BATCH, Flows},
    frame,
    log::{self, Log, OpenLog},
    manifest::{self, Generations, Manifest},
    people::Sealer,
    segment::{SegmentError, content, seal},
    sign::Signer,
    state::State,
    tasks::TaskUse,
};

/// How long a failed seal is left alone before it is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// How old a record of another day must be for its segment to be due.
const AFTER_MIDNIGHT: Duration = Duration::from_secs(3600);

/// How a ledger is written.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// The hypervisor.
    pub host: HostId,
    /// A segment is due when its first record is this old …
    pub max_segment_age: Duration,
    /// … or when its log has grown by this much since it was begun with what is carried on.
    pub max_wal_bytes: u64,
}

/// What a restarted hostd needs to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Instances without an end.
    pub instances: Vec<Instance>,
    /// Payloads without an end, or that ended within the hour before the last record.
    pub payloads: Vec<Payload>,
    /// The furthest position per (domain, boot).
    pub links: Vec<LinkPosition>,
    /// Runs of signed tasks whose permission has not expired.
    pub tasks: Vec<TaskUse>,
    /// Time of the last record: the gap from here to now is to be written as coverage.
    pub last_recorded: Option<Timestamp>,
    /// Bytes cut off the log's end: a write that did not finish, so nothing that was acknowledged.
    pub torn_bytes: u64,
}

/// A sealed segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInfo {
    /// The folder of its files.
    pub folder: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// SHA-256 of the manifest file.
    pub digest: Digest,
}

/// Called before every durable step of a seal, so that tests can crash there.
type Step = Box<dyn FnMut(&str) -> Result<(), SegmentError> + Send>;

/// The single owner of a ledger folder. Blocks on the disk, so it lives in a thread of its own.
pub struct Writer {
    root: PathBuf,
    options: WriterOptions,
    log: Log,
    state: State,
    /// Time of the first record that no segment holds.
    first: Option<Timestamp>,
    /// Generations before the current one that no segment holds.
    pending: Vec<u64>,
    retry: Option<Timestamp>,
    sequence: u64,
    head: Digest,
    people: Option<Arc<Sealer>>,
    signer: Option<Arc<Signer>>,
    open: OpenLog,
    step: Step,
    _lock: File,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Writer {
    /// Opens (or makes) the ledger folder, recovers its log and locks it against a second writer.
    ///
    /// # Errors
    /// [`LedgerError::Locked`], [`LedgerError::OtherHost`], or what the disk says.
    pub fn open(root: &Path, options: WriterOptions) -> Result<(Self, Recovered), LedgerError> {
        Self::open_with(root, options, Box::new(log::open_file))
    }

    pub(crate) fn open_with(
        root: &Path,
        options: WriterOptions,
        open: OpenLog,
    ) -> Result<(Self, Recovered), LedgerError> {
        durable::create_folder(root)?;
        durable::create_folder(&log::folder(root))?;
        durable::make_private(&log::folder(root))?;
        let lock = lock(root)?;
        let sealed = sealed_head(root, &options.host)?;
        clear_rubble(root, &options.host, sealed.sequence)?;
        let mut recovery = Recovery::read(root, &options.host, sealed.covered)?;
        let log = match recovery.last {
            Some((generation, good)) if recovery.headed => Log::open(root, generation, good, &open)?,
            // None, or one that does not say whose it is: readers would pass over whatever is appended to it.
            last => {
                let generation = last.map_or(sealed.covered, |(generation, _)| generation) + 1;
                recovery.pending.extend(last.map(|(generation, _)| generation));
                begin(root, &options.host, generation, &recovery.state, sealed.head())?;
                let length = file_length(&log::path(root, generation))?;
                Log::open(root, generation, length, &open)?
            }
        };
        let recovered = recovery.recovered();
        let writer = Self {
            root: root.to_owned(),
            options,
            log,
            state: recovery.state,
            first: recovery.first,
            pending: recovery.pending,
            retry: None,
            sequence: sealed.sequence,
            head: sealed.digest,
            people: None,
            signer: None,
            open,
            step: Box::new(|_| Ok(())),
            _lock: lock,
        };
        Ok((writer, recovered))
    }

    /// From now on no segment names a person: pseudonyms stand in it, and names are sealed.
    pub fn seal_names_with(&mut self, people: Arc<Sealer>) {
        self.people = Some(people);
    }

    /// From now on every manifest is signed with this key.
    pub fn sign_with(&mut self, signer: Arc<Signer>) {
        self.signer = Some(signer);
    }

    /// Appends facts and flows, all or nothing. With facts, everything is durable when this returns (one sync for the
    /// batch); flows alone become durable with the next fact, [`Writer::sync`] or seal.
    ///
    /// # Errors
    /// The disk's; nothing of the batch is kept then, and the writer can go on.
    pub fn append(&mut self, facts: &[FactRecord], flows: &[Flow]) -> Result<(), LedgerError> {
        let mut frames = Vec::new();
        for fact in facts {
            encode(EntryRef::Fact(fact), &mut frames)?;
        }
        for batch in flows.chunks(BATCH) {
            frame::encode(&Flows::of(batch).encode().map_err(LedgerError::EncodeFlows)?, &mut frames)?;
        }
        if frames.is_empty() {
            return Ok(());
        }
        self.leave_suspect_log()?;
        self.log.append(&frames, !facts.is_empty())?;
        facts.iter().for_each(|fact| self.state.apply_fact(fact));
        flows.iter().for_each(|flow| self.state.apply_last(flow.last));
        self.first = self.first.or_else(|| first_time(facts, flows));
        Ok(())
    }

    /// Makes the flows that were appended durable.
    ///
    /// # Errors
    /// The disk's.
    pub fn sync(&mut self) -> Result<(), LedgerError> {
        self.leave_suspect_log()?;
        Ok(self.log.sync()?)
    }

    /// Seals when the log is old or large enough, or when an earlier seal failed and it is time to try again.
    ///
    /// # Errors
    /// The disk's; the records stay in the log and the seal is tried again later.
    pub fn seal_if_due(&mut self, now: Timestamp) -> Result<Option<SegmentInfo>, LedgerError> {
        if let Some(retry) = self.retry {
            // A clock that was set back must not keep the seal waiting.
            let wait = retry.since(now);
            return if wait.is_zero() || wait > RETRY { self.seal(now) } else { Ok(None) };
        }
        if self.is_due(now) { self.seal(now) } else { Ok(None) }
    }

    fn is_due(&self, now: Timestamp) -> bool {
        // The clock may have been set either way: a first record far in the future is as good a reason as one far back.
        let age = self.first.map(|first| now.since(first).max(first.since(now)));
        // Growth, not length: what a generation begins with may be more than the limit, and then every record would seal.
        let day = |time: Timestamp| time.as_nanos().div_euclid(86_400_000_000_000);
        // However rarely it seals: a segment lies in the folder of its day. Late records of the day before are waited for.
        let over = self.first.is_some_and(|first| day(first) != day(now)) && age >= Some(AFTER_MIDNIGHT);
        over || age
            .is_some_and(|age| age >= self.options.max_segment_age || self.log.grown() >= self.options.max_wal_bytes)
    }

    /// Seals whatever the log holds; `None` when it holds nothing new.
    ///
    /// # Errors
    /// The disk's; the records stay in the log and the seal is tried again later.
    pub fn seal(&mut self, now: Timestamp) -> Result<Option<SegmentInfo>, LedgerError> {
        if self.first.is_none() {
            return Ok(None);
        }
        let sealed = self.try_seal(now);
        self.retry = sealed.is_err().then(|| now + RETRY);
        sealed
    }

    fn try_seal(&mut self, now: Timestamp) -> Result<Option<SegmentInfo>, LedgerError> {
        // A retry seals what the failed one left; a new generation each time would eat the disk that is full already.
        if self.retry.is_none() || self.pending.is_empty() {
            self.rotate(now)?;
        }
        let info = self.write_segment(now)?;
        // From here on the segment exists: whatever fails below, these generations must never be sealed again.
        self.pending.clear();
        self.first = self.first_of_current()?;
        self.remove_covered()?;
        self.note_head();
        Ok(info)
    }

    fn write_segment(&mut self, now: Timestamp) -> Result<Option<SegmentInfo>, LedgerError> {
        let (Some(first), Some(last)) = (self.pending.first().copied(), self.pending.last().copied()) else {
            return Ok(None);
        };
        let mut content = content::gather(&self.root, &self.pending)?;
        if !content.is_new() {
            return Ok(None);
        }
        if let Some(people) = &self.people {
            people.withhold_all(&mut content)?;
        }
        let order = seal::Order {
            root: &self.root,
            host: &self.options.host,
            sequence: self.sequence + 1,
            previous: self.head,
            wal: Generations { first, last },
            now,
            signer: self.signer.as_deref(),
        };
        let sealed = seal::write(&order, &content, &mut self.step)?;
        self.sequence = sealed.manifest.sequence;
        self.head = sealed.digest;
        Ok(Some(SegmentInfo { folder: sealed.folder, manifest: sealed.manifest, digest: sealed.digest }))
    }

    /// Puts a compacted segment behind the newest one.
    ///
    /// # Errors
    /// The disk's; the chain is as it was then.
    pub fn adopt(&mut self, prepared: &Prepared, now: Timestamp) -> Result<SegmentInfo, LedgerError> {
        let sequence = self.sequence + 1;
        self.adopt_by_steps(prepared, now, &mut |_| Ok(())).inspect_err(|_| prepared.withdraw(sequence))
    }

    pub(crate) fn adopt_by_steps(
        &mut self,
        prepared: &Prepared,
        now: Timestamp,
        step: &mut dyn FnMut(&str) -> Result<(), CompactError>,
    ) -> Result<SegmentInfo, LedgerError> {
        let first = self.pending.first().copied().unwrap_or(self.log.generation);
        let link = Link {
            host: &self.options.host,
            sequence: self.sequence + 1,
            previous: self.head,
            covered: first.saturating_sub(1),
            signer: self.signer.as_deref(),
            now,
        };
        let sealed = prepared.commit(&link, step)?;
        self.sequence = sealed.manifest.sequence;
        self.head = sealed.digest;
        self.note_head();
        Ok(SegmentInfo { folder: sealed.folder, manifest: sealed.manifest, digest: sealed.digest })
    }

    /// Says in the log which segment is the newest one now. Nothing rests on it but that a tail which vanishes is missed, so a disk
    /// that is full is no failure of the seal: the next generation begins with it anyway.
    fn note_head(&mut self) {
        let head = SealedHead { sequence: self.sequence, digest: self.head, covered: 0 }.head();
        let (generation, last_recorded) = (self.log.generation, self.state.last_recorded);
        let header = Header { version: VERSION, host: self.options.host.clone(), generation, last_recorded, head };
        let mut frames = Vec::new();
        let noted = encode(EntryRef::Header(&header), &mut frames).and_then(|()| Ok(self.log.append_own(&frames)?));
        if let Err(error) = noted {
            tracing::warn!(%error, "the log does not know the newest segment");
        }
    }

    /// Removes every generation before the current one, also those that an earlier seal could not remove.
    fn remove_covered(&mut self) -> Result<(), LedgerError> {
        (self.step)("remove-log")?;
        for generation in log::generations(&self.root)?.into_iter().filter(|g| *g < self.log.generation) {
            durable::remove_file(&log::path(&self.root, generation))?;
        }
        Ok(durable::sync_folder(&log::folder(&self.root))?)
    }

    /// After an ordinary seal the current generation is new; after a retried one it has been appended to.
    fn first_of_current(&self) -> Result<Option<Timestamp>, LedgerError> {
        let mut first = None;
        log::each(&log::path(&self.root, self.log.generation), &mut |entry| {
            first = first.or_else(|| entry_time(&entry))
        })?;
        Ok(first)
    }

    /// Begins the next generation with what still holds.
    fn rotate(&mut self, now: Timestamp) -> Result<(), LedgerError> {
        self.log.cut_tail()?;
        if !self.log.suspect {
            self.log.sync()?;
        }
        (self.step)("rotate")?;
        self.state.prune(now);
        let generation = self.log.generation + 1;
        let head = SealedHead { sequence: self.sequence, digest: self.head, covered: 0 }.head();
        begin(&self.root, &self.options.host, generation, &self.state, head)?;
        let length = file_length(&log::path(&self.root, generation))?;
        let next = Log::open(&self.root, generation, length, &self.open)?;
        self.pending.push(self.log.generation);
        self.log = next;
        Ok(())
    }

    /// A file whose sync failed is not written to again.
    fn leave_suspect_log(&mut self) -> Result<(), LedgerError> {
        if !self.log.suspect {
            return Ok(());
        }
        let now = self.state.last_recorded.unwrap_or(Timestamp::from_nanos(0));
        self.rotate(now)
    }

    #[cfg(test)]
    pub(crate) fn crash_at(&mut self, step: Step) {
        self.step = step;
    }
}

fn encode(entry: EntryRef<'_>, frames: &mut Vec<u8>) -> Result<(), LedgerError> {
    let payload = serde_json::to_vec(&entry).map_err(LedgerError::Encode)?;
    Ok(frame::encode(&payload, frames)?)
}

fn first_time(facts: &[FactRecord], flows: &[Flow]) -> Option<Timestamp> {
    facts.first().map(|fact| fact.recorded).or_else(|| flows.first().map(|flow| flow.last))
}

fn entry_time(entry: &Entry) -> Option<Timestamp> {
    match entry {
        Entry::Fact(record) => Some(record.recorded),
        Entry::Flow(flow) => Some(flow.last),
        Entry::Flows(batch) => batch.rows.first().map(|row| Timestamp::from_nanos(row.last())),
        Entry::Header(_) | Entry::Carried(_) | Entry::Link(_) | Entry::Task(_) => None,
    }
}

fn file_length(path: &Path) -> Result<u64, IoError> {
    std::fs::metadata(path).map(|metadata| metadata.len()).map_err(IoError::at("look at", path))
}

/// Writes a new generation: its header and what holds. Whole or absent, like every file of the ledger but the log's end.
fn begin(root: &Path, host: &HostId, generation: u64, state: &State, head: Option<Head>) -> Result<(), LedgerError> {
    let last_recorded = state.last_recorded;
    let header = Header { version: VERSION, host: host.clone(), generation, last_recorded, head };
    let mut frames = Vec::new();
    encode(EntryRef::Header(&header), &mut frames)?;
    for record in state.facts() {
        encode(EntryRef::Carried(record), &mut frames)?;
    }
    for link in state.links() {
        encode(EntryRef::Link(link), &mut frames)?;
    }
    for used in state.tasks() {
        encode(EntryRef::Task(used), &mut frames)?;
    }
    Ok(durable::write_file(&log::path(root, generation), &frames)?)
}

fn lock(root: &Path) -> Result<File, LedgerError> {
    let path = root.join("writer.lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o640)
        .open(&path)
        .map_err(IoError::at("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LedgerError::Locked { root: root.to_owned() }),
        Err(TryLockError::Error(error)) => Err(IoError::at("lock", &path)(error).into()),
    }
}

/// The end of the chain of segments.
struct SealedHead {
    sequence: u64,
    digest: Digest,
    /// Highest generation of the log that a segment holds.
    covered: u64,
}

impl SealedHead {
    /// As the log's header says it.
    fn head(&self) -> Option<Head> {
        (self.sequence > 0).then_some(Head { sequence: self.sequence, sha256: self.digest })
    }
}

fn sealed_head(root: &Path, host: &HostId) -> Result<SealedHead, LedgerError> {
    let mut last: Option<manifest::Place> = None;
    for folder in manifest::folders(root, Some(host))? {
        let places = manifest::places(&folder)?;
        last = last.into_iter().chain(places).max_by_key(|place| place.sequence);
    }
    let Some(place) = last else {
        return Ok(SealedHead { sequence: 0, digest: Digest::ZERO, covered: 0 });
    };
    let sealed = manifest::read(&place)?;
    Ok(SealedHead { sequence: place.sequence, digest: sealed.digest, covered: sealed.manifest.wal.last })
}

/// Removes the files of a segment whose manifest was never written, and temporary files.
fn clear_rubble(root: &Path, host: &HostId, sequence: u64) -> Result<(), LedgerError> {
    for folder in manifest::folders(root, Some(host))? {
        for name in durable::names(&folder)? {
            let unlisted = manifest::sequence_of(&name).is_some_and(|number| number > sequence);
            if unlisted || (name.starts_with('.') && name.ends_with(".tmp")) {
                tracing::info!(file = %folder.join(&name).display(), "removing what a crash left of a segment");
                durable::remove_file(&folder.join(&name))?;
            }
        }
    }
    for name in durable::names(&log::folder(root))?.iter().filter(|name| name.ends_with(".tmp")) {
        durable::remove_file(&log::folder(root).join(name))?;
    }
    Ok(())
}

/// What the log gives back.
#[derive(Default)]
struct Recovery {
    state: State,
    first: Option<Timestamp>,
    pending: Vec<u64>,
    /// The last generation and where its last whole frame ends.
    last: Option<(u64, u64)>,
    /// Whether that one begins with its header.
    headed: bool,
    torn: u64,
}

impl Recovery {
    fn read(root: &Path, host: &HostId, covered: u64) -> Result<Self, LedgerError> {
        let mut recovery = Self::default();
        for generation in log::generations(root)? {
            if generation <= covered {
                durable::remove_file(&log::path(root, generation))?;
                continue;
            }
            let (mut begins, mut is_first) = (None, true);
            let read = log::each(&log::path(root, generation), &mut |entry| {
                recovery.first = recovery.first.or_else(|| entry_time(&entry));
                recovery.state.apply(&entry);
                if std::mem::take(&mut is_first) {
                    begins = header_host(&entry);
                }
            })?;
            recovery.headed = begins.is_some();
            check_host(root, host, begins)?;
            if read.torn + read.damaged + read.unreadable > 0 {
                let (torn, damaged, unreadable) = (read.torn, read.damaged, read.unreadable);
                tracing::warn!(generation, torn, damaged, unreadable, "the write-ahead log is not whole");
            }
            recovery.torn += read.torn;
            recovery.pending.extend(recovery.last.map(|(generation, _)| generation));
            recovery.last = Some((generation, read.good));
        }
        Ok(recovery)
    }

    fn recovered(&self) -> Recovered {
        let last = self.state.last_recorded;
        let matters = |used: &&TaskUse| last.is_none_or(|last| used.matters_at(last));
        Recovered {
            instances: self.state.open_instances(),
            payloads: self.state.live_payloads(),
            links: self.state.link_positions(),
            tasks: self.state.tasks().filter(matters).cloned().collect(),
            last_recorded: last,
            torn_bytes: self.torn,
        }
    }
}

fn header_host(entry: &Entry) -> Option<HostId> {
    match entry {
        Entry::Header(header) => Some(header.host.clone()),
        _ => None,
    }
}

/// Whose log it is, as its header says.
fn check_host(root: &Path, host: &HostId, found: Option<HostId>) -> Result<(), LedgerError> {
    match found {
        Some(found) if found != *host => {
            Err(LedgerError::OtherHost { root: root.to_owned(), found, asked: host.clone() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
