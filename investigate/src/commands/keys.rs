//! `vestigo keys`: makes, lists and destroys the keys that decide who can read the names in a ledger.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use vestigo_ledger::people::{
    KeyError, Keyring, Owner, PUBLIC_NAME, Period, PublicSet, SecretSet, destroy_secret, read_public, secret_path,
    write_public, write_secret,
};
use vestigo_model::{Clock as _, Label, SystemClock, User, Vo};

use super::{Body, Output};
use crate::{
    exit::{Exit, Usage},
    render,
};

/// Where keys are looked for when none are named: where they may be read, and not otherwise.
const PLACES: [&str; 2] = ["/etc/vestigo/keys", "/var/lib/vestigo/keys/people"];
/// Names other places.
const VARIABLE: &str = "VESTIGO_KEYS";
/// Most months made at once: whoever wants more has not understood what they are for.
const MAX_MONTHS: usize = 120;

/// The keys to read names with: the named files and folders; else those of `VESTIGO_KEYS`; else the usual places, as far as they may
/// be read.
///
/// # Errors
/// A named place that cannot be read, or a damaged file.
pub fn keyring(named: &[PathBuf]) -> Result<Keyring> {
    let from_variable = std::env::var_os(VARIABLE).filter(|list| !list.is_empty());
    match from_variable {
        _ if !named.is_empty() => Keyring::open(named),
        Some(list) => Keyring::open(&std::env::split_paths(&list).collect::<Vec<_>>()),
        None => Keyring::open_where_readable(&PLACES.map(PathBuf::from)),
    }
    .context("Cannot read the keys for names")
}

/// `vestigo keys`.
#[derive(Debug, Args)]
pub struct Keys {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What is done with keys.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Make keys: a secret file for each month, and people.json for the hypervisors
    New(New),
    /// List keys: whose, which month, and whether they read names or only find them
    List(List),
    /// Show one month's keys, and under which pseudonym a user stands; never prints a secret
    Show(Show),
    /// Erase the persons of a month: destroy its keys for good
    Destroy(Destroy),
}

/// Whose keys.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Whose {
    /// Of this VO: they read the names of its users only
    #[arg(long)]
    pub vo: Option<Vo>,
    /// The site's: for VMs without a VO, and of VOs without keys of their own
    #[arg(long)]
    pub site: bool,
}

impl Whose {
    fn owner(&self) -> Owner {
        self.vo.clone().map_or(Owner::Site, Owner::Vo)
    }
}

/// `vestigo keys new`.
#[derive(Debug, Args)]
pub struct New {
    /// Whose.
    #[command(flatten)]
    pub whose: Whose,
    /// First month, like 2026-11
    #[arg(long, value_name = "MONTH")]
    pub from: Period,
    /// How many months
    #[arg(long, default_value_t = 12)]
    pub months: usize,
    /// Folder for the secret files and people.json; an existing people.json is added to
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// `vestigo keys list`.
#[derive(Debug, Args)]
pub struct List {
    /// Files or folders of keys [default: VESTIGO_KEYS, else /etc/vestigo/keys and /var/lib/vestigo/keys/people]
    #[arg(long, value_name = "PATH")]
    pub keys: Vec<PathBuf>,
    /// JSON Lines instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `vestigo keys show`.
#[derive(Debug, Args)]
pub struct Show {
    /// Whose.
    #[command(flatten)]
    pub whose: Whose,
    /// The month
    #[arg(long, value_name = "MONTH")]
    pub period: Period,
    /// Show the pseudonym of this user too
    #[arg(long, requires = "issuer")]
    pub user: Option<Label>,
    /// Who vouches for the user's name
    #[arg(long, requires = "user")]
    pub issuer: Option<Label>,
    /// Which keys, and in which form.
    #[command(flatten)]
    pub list: List,
}

/// `vestigo keys destroy`.
#[derive(Debug, Args)]
pub struct Destroy {
    /// Whose.
    #[command(flatten)]
    pub whose: Whose,
    /// The month
    #[arg(long, value_name = "MONTH")]
    pub period: Period,
    /// Folders of keys, and files people.json, from which the month is taken out
    #[arg(long, value_name = "PATH", required = true)]
    pub keys: Vec<PathBuf>,
    /// Also when the month is not over
    #[arg(long)]
    pub even_now: bool,
    /// Do it. Without this nothing is changed, and what would be is listed
    #[arg(long)]
    pub yes: bool,
}

/// Does it.
///
/// # Errors
/// What cannot be read or written.
pub fn run(keys: &Keys) -> Result<Output> {
    match &keys.action {
        Action::New(new) => make(new),
        Action::List(list) => listed(list),
        Action::Show(show) => shown(show),
        Action::Destroy(destroy) => destroyed(destroy),
    }
}

fn done(text: String, exit: Exit) -> Output {
    Output { body: Body::Text(text), exit, found: None }
}

fn make(new: &New) -> Result<Output> {
    if !(1..=MAX_MONTHS).contains(&new.months) {
        bail!(Usage(format!("--months is {}; give a number from 1 to {MAX_MONTHS}", new.months)));
    }
    let (owner, public) = (new.whose.owner(), new.out.join(PUBLIC_NAME));
    let mut shared = public_sets(&public)?;
    let periods: Vec<Period> = new.from.months(new.months).collect();
    // All or nothing: keys that are there already are found before any are made.
    for period in &periods {
        let path = secret_path(&new.out, &owner, *period);
        let known = shared.iter().any(|set| set.owner == owner && set.period == *period);
        if known || path.exists() {
            bail!(KeyError::Exists { path });
        }
    }
    let mut text = String::new();
    for period in periods {
        let set = SecretSet::generate(owner.clone(), period);
        let path = write_secret(&new.out, &set)?;
        text.push_str(&format!("made {}\n", path.display()));
        shared.push(set.shared);
    }
    write_public(&public, &shared)?;
    text.push_str(&format!(
        "made {public}\n\n\
         Copy {public} to every hypervisor as /etc/vestigo/people.json (root only, 0600) and send hostd SIGHUP.\n\
         Keep the *.key.json files away from the hypervisors: whoever has one reads the names of its month, and without it nobody does. \
         Keep a copy of each: a lost one is an erased month.\n",
        public = public.display()
    ));
    Ok(done(text, Exit::Found))
}

/// The sets in a file for hypervisors; none when there is no such file.
fn public_sets(path: &Path) -> Result<Vec<PublicSet>> {
    match read_public(path) {
        Err(KeyError::Io(error)) if error.is_not_found() => Ok(Vec::new()),
        sets => Ok(sets?),
    }
}

#[derive(Serialize)]
struct Line<'a> {
    owner: &'a Owner,
    period: Period,
    key: String,
    reads_names: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pseudonym: Option<Label>,
}

impl<'a> Line<'a> {
    fn new(set: &'a PublicSet, reads_names: bool, user: Option<&User>) -> Self {
        let pseudonym = user.map(|user| set.pseudonym(user));
        Self { owner: &set.owner, period: set.period, key: set.id(), reads_names, pseudonym }
    }
}

fn listed(list: &List) -> Result<Output> {
    let ring = keyring(&list.keys)?;
    let lines: Vec<Line<'_>> = ring.sets().map(|(set, reads)| Line::new(set, reads, None)).collect();
    lines_text(&lines, list.json)
}

fn lines_text(lines: &[Line<'_>], json: bool) -> Result<Output> {
    let exit = if lines.is_empty() { Exit::Nothing } else { Exit::Found };
    if json {
        let texts = lines.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        return Ok(done(texts.into_iter().map(|text| text + "\n").collect(), exit));
    }
    if lines.is_empty() {
        return Ok(done("No keys: every user is a pseudonym here.\n".to_owned(), exit));
    }
    let mut table = render::table(&["OWNER", "MONTH", "KEY", "CAN", "PSEUDONYM"]);
    for line in lines {
        let can = if line.reads_names { "read names, find users" } else { "find users" };
        let pseudonym = line.pseudonym.as_ref().map_or(String::new(), Label::to_string);
        table.add_row([line.owner.to_string(), line.period.to_string(), line.key.clone(), can.to_owned(), pseudonym]);
    }
    Ok(done(render::table_text(&table), exit))
}

fn shown(show: &Show) -> Result<Output> {
    let (ring, owner) = (keyring(&show.list.keys)?, show.whose.owner());
    let user = show.issuer.clone().zip(show.user.clone()).map(|(issuer, subject)| User { issuer, subject });
    let meant = ring.sets().filter(|(set, _)| set.owner == owner && set.period == show.period);
    let lines: Vec<Line<'_>> = meant.map(|(set, reads)| Line::new(set, reads, user.as_ref())).collect();
    lines_text(&lines, show.list.json)
}

fn destroyed(destroy: &Destroy) -> Result<Output> {
    let (owner, period) = (destroy.whose.owner(), destroy.period);
    if period >= Period::of(SystemClock.now()) && !destroy.even_now {
        bail!(Usage(format!(
            "{period} is not over: hypervisors still seal with its keys, and would make others. Give --even-now to destroy them all the same"
        )));
    }
    let is_meant = |set: &PublicSet| set.owner == owner && set.period == period;
    let mut text = String::new();
    let mut found = false;
    for path in &destroy.keys {
        let secret = if path.is_dir() { secret_path(path, &owner, period) } else { path.clone() };
        let public = if path.is_dir() { path.join(PUBLIC_NAME) } else { path.clone() };
        if path.is_dir() && secret.exists() {
            found = true;
            note(&mut text, destroy.yes, "the secret key", &secret);
            if destroy.yes {
                destroy_secret(&secret)?;
            }
        }
        let sets = if public.exists() { read_public(&public)? } else { Vec::new() };
        if sets.iter().any(is_meant) {
            found = true;
            note(&mut text, destroy.yes, "the search key", &public);
            if destroy.yes {
                let left: Vec<PublicSet> = sets.into_iter().filter(|set| !is_meant(set)).collect();
                write_public(&public, &left)?;
            }
        }
    }
    if !found {
        return Ok(done(format!("No keys of {owner} for {period} there.\n"), Exit::Nothing));
    }
    text.push_str(&rest(&owner, period, destroy.yes));
    Ok(done(text, Exit::Found))
}

fn note(text: &mut String, yes: bool, what: &str, path: &Path) {
    let done = if yes { "destroyed" } else { "would destroy" };
    text.push_str(&format!("{done} {what} in {}\n", path.display()));
}

/// What no program can do from here.
fn rest(owner: &Owner, period: Period, yes: bool) -> String {
    let did = if yes { "" } else { "\nNothing was changed; give --yes to do it.\n" };
    format!(
        "{did}\nThe persons of {period} are erased when no copy of these keys is left anywhere:\n\
         - the secret key: every copy and backup of {owner}.{period}.key.json, also the VO's and the investigators'. With it names can be read.\n\
         - the search key: people.json on every hypervisor (give it with --keys there, then SIGHUP to hostd) and wherever it was granted. With it \
         somebody who knows a name can still test whether it was there.\n\
         Overwriting does not reach snapshots, backups, or what a flash disk has set aside: keep keys on encrypted disks.\n\
         The flows stay, and answer by pseudonym.\n"
    )
}
