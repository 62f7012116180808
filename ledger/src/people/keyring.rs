//! What an investigator holds: some of the keys, or none. Possession decides what can be seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use vestigo_model::{DomainUuid, HostId, Label, PayloadUid, TimeRange, Timestamp, User, Vo};

use super::{
    Owner, Period, Person, PersonRow,
    files::{self, KeyError, PUBLIC_NAME},
    keys::{self, PublicSet, SecretSet},
    withhold,
};
use crate::{durable, reader::Facts};

/// Most files that a folder of keys may have.
const MAX_FILES: usize = 20_000;

/// Keys, by what they can do.
#[derive(Debug, Default, Clone)]
pub struct Keyring {
    /// Of one owner and month there may be several: each host without given keys makes its own.
    search: BTreeMap<(Owner, Period), Vec<PublicSet>>,
    /// By key id.
    secret: BTreeMap<String, SecretSet>,
}

impl Keyring {
    /// The keys in these files, and in the files of these folders: `*.key.json` with secrets, `people.json` without.
    ///
    /// # Errors
    /// [`KeyError`]: what cannot be read is not left out in silence.
    pub fn open(paths: &[PathBuf]) -> Result<Self, KeyError> {
        let mut keyring = Self::default();
        paths.iter().try_for_each(|path| keyring.take(path))?;
        Ok(keyring)
    }

    /// As [`Keyring::open`], without what is not there or may not be read: for places that are only looked into.
    ///
    /// # Errors
    /// [`KeyError`]: a file of keys that is damaged.
    pub fn open_where_readable(paths: &[PathBuf]) -> Result<Self, KeyError> {
        let mut keyring = Self::default();
        for path in paths {
            match keyring.take(path) {
                Err(KeyError::Io(error)) if is_closed(&error.source) => {}
                taken => taken?,
            }
        }
        Ok(keyring)
    }

    fn take(&mut self, path: &Path) -> Result<(), KeyError> {
        if !path.is_dir() {
            return self.take_file(path);
        }
        let names = durable::names(path)?;
        let wanted = names.iter().filter(|name| *name == PUBLIC_NAME || files::is_secret(name));
        wanted.take(MAX_FILES).try_for_each(|name| self.take_file(&path.join(name)))
    }

    fn take_file(&mut self, path: &Path) -> Result<(), KeyError> {
        if path.file_name().and_then(|name| name.to_str()).is_some_and(files::is_secret) {
            self.add(files::read_secret(path)?);
        } else {
            files::read_public(path)?.into_iter().for_each(|set| self.add_search(set));
        }
        Ok(())
    }

    /// Adds keys with their secret.
    pub fn add(&mut self, set: SecretSet) {
        self.add_search(set.shared.clone());
        self.secret.insert(set.shared.id(), set);
    }

    /// Adds keys without a secret.
    pub fn add_search(&mut self, set: PublicSet) {
        let known = self.search.entry((set.owner.clone(), set.period)).or_default();
        if !known.contains(&set) {
            known.push(set);
        }
    }

    /// Whether there is no key at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.search.is_empty()
    }

    /// Whether any name can be read.
    #[must_use]
    pub fn opens(&self) -> bool {
        !self.secret.is_empty()
    }

    /// The keys: each with whether its secret is there.
    pub fn sets(&self) -> impl Iterator<Item = (&PublicSet, bool)> {
        self.search.values().flatten().map(|set| (set, self.secret.contains_key(&set.id())))
    }

    /// Every pseudonym that payloads of this user may stand under which ran in the range: of a VO (and the site's, which serve VOs
    /// without keys), or of all. Those of earlier months too: a payload keeps the one of the month in which it began.
    #[must_use]
    pub fn pseudonyms(&self, issuer: &Label, subject: &Label, vo: Option<&Vo>, range: TimeRange) -> BTreeSet<Label> {
        let user = User { issuer: issuer.clone(), subject: subject.clone() };
        let last = Period::of(range.to);
        let meant = |owner: &Owner| match owner {
            Owner::Site => true,
            Owner::Vo(of) => vo.is_none_or(|vo| of == vo),
        };
        let sets = self.search.iter().filter(|((owner, period), _)| *period <= last && meant(owner));
        sets.flat_map(|(_, sets)| sets).map(|set| set.pseudonym(&user)).collect()
    }

    /// Whom a question about a user means: by name, or by pseudonym.
    #[must_use]
    pub fn asked(&self, issuer: Option<&Label>, subject: &Label, range: TimeRange) -> Asked {
        let pseudonyms = issuer.map(|issuer| self.pseudonyms(issuer, subject, None, range)).unwrap_or_default();
        let place = keys::place_of(subject.as_str());
        let sets = place.as_ref().and_then(|place| self.search.get(place)).cloned().unwrap_or_default();
        let by_pseudonym = place.is_some();
        Asked { issuer: issuer.cloned(), subject: subject.clone(), pseudonyms, sets, by_pseudonym }
    }

    /// What is to be said of a question about a user that these keys leave open: `closed` payloads that were looked at have names
    /// that nobody opened.
    pub(crate) fn left_open(&self, asked: &Asked, closed: usize) -> Option<String> {
        if asked.needs_names() {
            let why = "payloads have a pseudonym that no key here opens, so the user may be among them: \
                       name the issuer too, with which a search key finds them, or give the secret key with --keys";
            return (closed > 0).then(|| format!("{closed} {why}"));
        }
        let nothing = self.is_empty() && !asked.by_pseudonym;
        nothing.then(|| "there is no search key here, so only records that name users in clear were looked at: give keys with --keys, or ask for the pseudonym".to_owned())
    }

    /// What is in a row; `None` without its key.
    #[must_use]
    pub fn unseal(&self, row: &PersonRow) -> Option<Person> {
        self.unseal_marked(row).map(|(person, _)| person)
    }

    fn unseal_marked(&self, row: &PersonRow) -> Option<(Person, Label)> {
        let set = self.secret.get(&row.key)?;
        let text = set.open(&row.sealed)?;
        let mark = Label::cut(&format!("{}.{}", row.key, set.shared.search.mark(&text)));
        Some((serde_json::from_slice(&text).ok()?, mark))
    }

    /// Puts names in place of pseudonyms where it has the keys. `rows` gives what the ledger holds of the hosts and times asked for:
    /// more than that is no harm. A row is believed only if the record's own mark says so.
    ///
    /// # Errors
    /// What `rows` says.
    pub fn reveal<E>(
        &self,
        facts: &mut Facts,
        rows: impl FnOnce(&Wanted) -> Result<Vec<PersonRow>, E>,
    ) -> Result<(), E> {
        let wanted = Wanted::of(facts);
        if !self.opens() || wanted.runs.is_empty() {
            return Ok(());
        }
        let mut known: BTreeMap<RowKey, Vec<PersonRow>> = BTreeMap::new();
        for row in rows(&wanted)? {
            known.entry((row.host.clone(), row.domain, row.payload)).or_default().push(row);
        }
        let find = |key: &RowKey, mark: &str| {
            let rows = known.get(key)?.iter().filter(|row| withhold::key_of_mark(mark) == Some(row.key.as_str()));
            rows.filter_map(|row| self.unseal_marked(row)).find(|(_, of)| of.as_str() == mark).map(|(person, _)| person)
        };
        for payload in facts.payloads.iter_mut().chain(&mut facts.conflicting) {
            let key = (payload.host.clone(), Some(payload.domain), Some(payload.claim.uid));
            let person = payload.claim.withheld.as_ref().and_then(|mark| find(&key, mark.as_str()));
            person.into_iter().for_each(|person| withhold::show_claim(&mut payload.claim, person));
        }
        for event in &mut facts.events {
            let key = (event.host.clone(), event.domain, withhold::run_of_event(event));
            let person = withhold::mark_of(event).and_then(|mark| find(&key, mark));
            person.into_iter().for_each(|person| withhold::show_event(event, person));
        }
        Ok(())
    }
}

/// Whom a question means. Stored records name users by pseudonym, those in the log and in segments of version 1 by name.
#[derive(Debug, Clone)]
pub struct Asked {
    issuer: Option<Label>,
    subject: Label,
    pseudonyms: BTreeSet<Label>,
    /// Keys that may have made the pseudonym that is asked for.
    sets: Vec<PublicSet>,
    by_pseudonym: bool,
}

impl Asked {
    /// Whether this is the user.
    #[must_use]
    pub fn is(&self, user: &User) -> bool {
        if user.is_pseudonym() {
            return user.subject == self.subject || self.pseudonyms.contains(&user.subject);
        }
        let by_name = user.subject == self.subject && self.issuer.as_ref().is_none_or(|issuer| user.issuer == *issuer);
        by_name || self.sets.iter().any(|set| set.pseudonym(user) == self.subject)
    }

    /// Whether stored names must be opened to find the user: without the issuer no pseudonym can be computed.
    #[must_use]
    pub const fn needs_names(&self) -> bool {
        self.issuer.is_none() && !self.by_pseudonym
    }

    /// What the column `user` of payloads can hold for this user; `None`: it decides nothing, see [`Asked::needs_names`].
    #[must_use]
    pub fn column_values(&self) -> Option<BTreeSet<Label>> {
        let own = std::iter::once(self.subject.clone());
        (!self.needs_names()).then(|| self.pseudonyms.iter().cloned().chain(own).collect())
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
}

type RowKey = (HostId, Option<DomainUuid>, Option<PayloadUid>);

/// Where rows are to be looked for: by host, when the records were stamped that they belong to. The row of a record lies in the segment
/// that the record was first written to, so in one whose `recorded` begins no later than a while after the stamp and
/// ends no earlier than it.
#[derive(Debug, Default, Clone)]
pub struct Wanted {
    stamps: BTreeMap<HostId, BTreeSet<Timestamp>>,
    runs: BTreeSet<RowKey>,
}

/// How long after the host's stamp a record may be written, and how far the host's clock may step back between the two.
const LATE: std::time::Duration = std::time::Duration::from_secs(3600);

impl Wanted {
    fn of(facts: &Facts) -> Self {
        let mut wanted = Self::default();
        for payload in facts.payloads.iter().chain(&facts.conflicting).filter(|p| p.claim.withheld.is_some()) {
            wanted.add(&payload.host, payload.received, (Some(payload.domain), Some(payload.claim.uid)));
        }
        for event in facts.events.iter().filter(|event| withhold::mark_of(event).is_some()) {
            wanted.add(&event.host, event.time, (event.domain, withhold::run_of_event(event)));
        }
        wanted
    }

    fn add(&mut self, host: &HostId, stamp: Timestamp, (domain, run): (Option<DomainUuid>, Option<PayloadUid>)) {
        self.stamps.entry(host.clone()).or_default().insert(stamp);
        self.runs.insert((host.clone(), domain, run));
    }

    /// Whether a row belongs to one of the records.
    #[must_use]
    pub fn wants(&self, row: &PersonRow) -> bool {
        self.runs.contains(&(row.host.clone(), row.domain, row.payload))
    }

    /// From the first to the last stamp; `None` when nothing is wanted.
    #[must_use]
    pub fn range(&self) -> Option<TimeRange> {
        let first = self.stamps.values().filter_map(BTreeSet::first).min()?;
        let last = self.stamps.values().filter_map(BTreeSet::last).max()?;
        TimeRange::new(*first, *last)
    }

    /// Whether a segment of this host, whose records were written in this range, may hold one of the rows.
    #[must_use]
    pub fn may_lie_in(&self, host: &HostId, recorded: TimeRange) -> bool {
        let times = self.stamps.get(host);
        times.is_some_and(|times| times.range(recorded.from - LATE..=recorded.to + LATE).next().is_some())
    }
}
