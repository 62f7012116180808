//! What hostd holds: search keys and public keys. It takes persons out of records before these are stored, and cannot put them back.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use vestigo_model::{DomainUuid, Fact, FactRecord, HostId, Instance, Label, Payload, Timestamp, User, Vo};

use super::{
    Owner, Period, PersonRow,
    files::{self, KeyError},
    keys::{PublicSet, SecretSet},
    withhold,
};
use crate::segment::content::Content;

type Sets = BTreeMap<(Owner, Period), Arc<PublicSet>>;

/// Takes the persons out of records.
///
/// A record gets the keys of its VM's VO (a host fact) and of the month of its stamp on the host's clock; without such keys the
/// site's; without those the host's own, which are made here when first needed and can be read on this host only. There is
/// no way on which a name is stored in clear for want of a key: the seal of the segment fails, and is tried again.
#[derive(Debug)]
pub struct Sealer {
    given: RwLock<Sets>,
    /// Folder of the host's own keys.
    own: Option<PathBuf>,
    made: Mutex<Sets>,
}

impl Sealer {
    /// With the keys that the site gave, perhaps none, and a folder for the host's own.
    #[must_use]
    pub fn new(given: Vec<PublicSet>, own: Option<PathBuf>) -> Self {
        Self { given: RwLock::new(by_place(given)), own, made: Mutex::default() }
    }

    /// Takes other keys from now on.
    pub fn replace(&self, given: Vec<PublicSet>) {
        *self.given.write().unwrap_or_else(PoisonError::into_inner) = by_place(given);
    }

    /// Until when the site's keys last without a gap from now on: the last month; `None` when this month has none.
    #[must_use]
    pub fn lasts_until(&self, now: Timestamp) -> Option<Period> {
        let given = self.given.read().unwrap_or_else(PoisonError::into_inner);
        let months = std::iter::successors(Some(Period::of(now)), |period| Some(period.next()));
        months.take_while(|period| given.contains_key(&(Owner::Site, *period))).last()
    }

    /// The pseudonym of a user of a VM of this VO at that time.
    ///
    /// # Errors
    /// The host's own keys cannot be made.
    pub fn pseudonym(&self, vo: Option<&Vo>, received: Timestamp, user: &User) -> Result<Label, KeyError> {
        Ok(self.keys(vo, Period::of(received))?.pseudonym(user))
    }

    /// Takes the person out of a record; the row is what was taken, sealed. A guest's chain position stays, with a keyed digest in
    /// place of its digest: that is one of a line with names in it. A copy of a record that has a row elsewhere gets none.
    ///
    /// # Errors
    /// The host's own keys cannot be made.
    pub fn withhold(
        &self,
        record: &mut FactRecord,
        vo: Option<&Vo>,
        copy: bool,
    ) -> Result<Option<PersonRow>, KeyError> {
        let person = withhold::person_of(&record.fact);
        if person.is_none() && record.link.is_none() {
            return Ok(None);
        }
        let keys = self.keys(vo, Period::of(withhold::stamped(record)))?;
        if let Some(link) = &mut record.link {
            link.digest = keys.search.link(link.digest);
        }
        let Some(person) = person else { return Ok(None) };
        let text = serde_json::to_vec(&person).map_err(|_| KeyError::Seal)?;
        let pseudonym = keys.pseudonym(&person.user);
        let mark = Label::cut(&format!("{}.{}", keys.id(), keys.search.mark(&text)));
        withhold::hide(&mut record.fact, pseudonym.clone(), mark);
        if copy {
            return Ok(None);
        }
        let sealed = keys.seal(&text).ok_or(KeyError::Seal)?;
        let (host, domain) = place_of(&record.fact);
        let (Some(host), payload) = (host.cloned(), withhold::run_of(&record.fact)) else { return Ok(None) };
        let (vo, period, key) = (vo.cloned(), keys.period, keys.id());
        Ok(Some(PersonRow { pseudonym, vo, period, host, domain, payload, key, sealed }))
    }

    /// Takes the persons out of everything that goes into a segment, before any of it is written.
    ///
    /// # Errors
    /// As [`Sealer::withhold`]; the content is not to be written then.
    pub(crate) fn withhold_all(&self, content: &mut Content) -> Result<(), KeyError> {
        let instances = content.facts.iter().filter_map(|row| match &row.record.fact {
            Fact::Instance(instance) => Some(instance),
            _ => None,
        });
        let tenants = Tenants::of(instances);
        // A payload that begins and ends in one segment has one row.
        let mut known = BTreeSet::new();
        for row in content.facts.iter_mut().filter(|row| withhold::may_name(&row.record)) {
            let vo = tenants.vo(&row.record);
            let person = self.withhold(&mut row.record, vo, row.carried)?;
            row.text = serde_json::to_string(&row.record).map_err(|_| KeyError::Seal)?;
            let mark = withhold::mark_in(&row.record.fact).map(str::to_owned);
            content.people.extend(person.filter(|person| known.insert((person.domain, person.payload, mark))));
        }
        Ok(())
    }

    fn keys(&self, vo: Option<&Vo>, period: Period) -> Result<Arc<PublicSet>, KeyError> {
        let given = self.given.read().unwrap_or_else(PoisonError::into_inner);
        let of_vo = vo.and_then(|vo| given.get(&(Owner::Vo(vo.clone()), period)));
        if let Some(set) = of_vo.or_else(|| given.get(&(Owner::Site, period))) {
            return Ok(Arc::clone(set));
        }
        drop(given);
        self.own_keys(period)
    }

    fn own_keys(&self, period: Period) -> Result<Arc<PublicSet>, KeyError> {
        let place = (Owner::Site, period);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(set) = made.get(&place) {
            return Ok(Arc::clone(set));
        }
        let folder = self.own.as_deref().ok_or(KeyError::NoKey { owner: Owner::Site, period })?;
        let set = Arc::new(read_or_make(folder, period)?);
        tracing::warn!(
            %period, key = set.id(), folder = %folder.display(),
            "names of this month are sealed with the host's own key: they can be read on this host only; make keys with `vestigo keys new`"
        );
        made.insert(place, Arc::clone(&set));
        Ok(set)
    }
}

fn by_place(sets: Vec<PublicSet>) -> Sets {
    sets.into_iter().map(|set| ((set.owner.clone(), set.period), Arc::new(set))).collect()
}

fn read_or_make(folder: &Path, period: Period) -> Result<PublicSet, KeyError> {
    match files::read_secret(&files::secret_path(folder, &Owner::Site, period)) {
        Ok(set) => return Ok(set.shared),
        Err(KeyError::Io(error)) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    let set = SecretSet::generate(Owner::Site, period);
    files::write_secret(folder, &set)?;
    Ok(set.shared)
}

const fn place_of(fact: &Fact) -> (Option<&HostId>, Option<DomainUuid>) {
    match fact {
        Fact::Payload(payload) => (Some(&payload.host), Some(payload.domain)),
        Fact::Event(event) => (Some(&event.host), event.domain),
        Fact::Instance(_) | Fact::Coverage(_) => (None, None),
    }
}

/// Which VO a fact belongs to: the tenant's of the VM that it is about.
#[derive(Debug, Default)]
struct Tenants(BTreeMap<DomainUuid, BTreeMap<Timestamp, Option<Vo>>>);

impl Tenants {
    /// Of the VMs that a segment knows of. The first record of a VM decides: a VO that is mapped late finds its users in the same
    /// place in this segment.
    fn of<'a>(instances: impl Iterator<Item = &'a Instance>) -> Self {
        let mut tenants = Self::default();
        for instance in instances {
            let starts = tenants.0.entry(instance.domain).or_default();
            starts.entry(instance.start).or_insert_with(|| instance.vo.clone());
        }
        tenants
    }

    /// The VO of the fact's VM at the fact's time.
    fn vo(&self, record: &FactRecord) -> Option<&Vo> {
        let domain = match &record.fact {
            Fact::Payload(Payload { domain, .. }) => Some(*domain),
            Fact::Event(event) => event.domain,
            Fact::Coverage(coverage) => coverage.domain,
            Fact::Instance(instance) => Some(instance.domain),
        };
        let starts = self.0.get(&domain?)?;
        let before = starts.range(..=withhold::stamped(record)).next_back();
        before.or_else(|| starts.iter().next()).and_then(|(_, vo)| vo.as_ref())
    }
}
