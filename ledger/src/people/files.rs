//! Key files: one with secrets per owner and period, and one without for the hypervisors.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crypto_box::SecretKey;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::{
    Owner, Period,
    keys::{PublicSet, SearchKey, SecretSet},
};
use crate::durable::{self, IoError};

/// `format` of the file for hypervisors.
const PUBLIC: &str = "vestigo-people";
/// `format` of a file with a period's secrets.
const SECRET: &str = "vestigo-people-key";
/// Version of both.
const VERSION: u32 = 1;
/// How files with secrets are called: `<owner>.<period>` and this.
const SUFFIX: &str = ".key.json";
/// How the file for hypervisors is called.
pub const PUBLIC_NAME: &str = "people.json";
/// Longest key file; 12 months of some hundred VOs need less than one MiB.
const MAX_BYTES: u64 = 4 << 20;

/// What is wrong with keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file or folder.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The file is no JSON of the form.
    #[error("{} is no file of keys; restore it, or make keys with `vestigo keys new`", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// The parser's word.
        #[source]
        source: serde_json::Error,
    },
    /// It does not hold what it should.
    #[error("{}: {what}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Keys that are there already are never written over: what they sealed would be lost.
    #[error("{} is there already; keys are not written over. Give another folder or other months", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// No box could be made.
    #[error("cannot seal the names in a record")]
    Seal,
    /// There is no key at all.
    #[error("there is no key for {owner} in {period}, and no folder for the host's own keys")]
    NoKey {
        /// Whose.
        owner: Owner,
        /// When.
        period: Period,
    },
}

#[derive(Serialize, Deserialize)]
struct PublicFile {
    format: String,
    version: u32,
    keys: Vec<PublicEntry>,
}

#[derive(Serialize, Deserialize)]
struct PublicEntry {
    owner: Owner,
    period: Period,
    search: String,
    public: String,
}

#[derive(Serialize, Deserialize)]
struct SecretFile {
    format: String,
    version: u32,
    #[serde(flatten)]
    entry: PublicEntry,
    secret: String,
}

fn bytes_of(path: &Path, name: &str, text: &str) -> Result<[u8; 32], KeyError> {
    let content = || KeyError::Content { path: path.to_owned(), what: format!("{name} is not 32 bytes in base 64") };
    BASE64.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(content)
}

fn entry_of(set: &PublicSet) -> PublicEntry {
    let (search, public) = (BASE64.encode(&set.search.0), BASE64.encode(&set.public));
    PublicEntry { owner: set.owner.clone(), period: set.period, search, public }
}

fn set_of(path: &Path, entry: PublicEntry) -> Result<PublicSet, KeyError> {
    let search = SearchKey(bytes_of(path, "search", &entry.search)?);
    let public = bytes_of(path, "public", &entry.public)?;
    Ok(PublicSet { owner: entry.owner, period: entry.period, search, public })
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, KeyError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(IoError::at("open", path))?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(IoError::at("read", path))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(KeyError::Content { path: path.to_owned(), what: "longer than 4 MiB, so no file of keys".into() });
    }
    Ok(bytes)
}

fn check(path: &Path, format: &str, version: u32, wanted: &str) -> Result<(), KeyError> {
    if format == wanted && version <= VERSION {
        return Ok(());
    }
    let what = format!("format {format} version {version}, but this program reads {wanted} up to {VERSION} here");
    Err(KeyError::Content { path: path.to_owned(), what })
}

/// Reads the file for hypervisors.
///
/// # Errors
/// [`KeyError`].
pub fn read_public(path: &Path) -> Result<Vec<PublicSet>, KeyError> {
    let malformed = |source| KeyError::Malformed { path: path.to_owned(), source };
    let file: PublicFile = serde_json::from_slice(&read_bounded(path)?).map_err(malformed)?;
    check(path, &file.format, file.version, PUBLIC)?;
    file.keys.into_iter().map(|entry| set_of(path, entry)).collect()
}

/// Writes the file for hypervisors, for its owner alone: search keys are in it.
///
/// # Errors
/// [`KeyError`].
pub fn write_public(path: &Path, sets: &[PublicSet]) -> Result<(), KeyError> {
    let file = PublicFile { format: PUBLIC.into(), version: VERSION, keys: sets.iter().map(entry_of).collect() };
    let malformed = |source| KeyError::Malformed { path: path.to_owned(), source };
    let mut bytes = serde_json::to_vec_pretty(&file).map_err(malformed)?;
    bytes.push(b'\n');
    let temporary = durable::temporary(path);
    durable::remove_file(&temporary)?;
    write_new(&temporary, &bytes)?;
    fs::rename(&temporary, path).map_err(IoError::at("rename the new file to", path))?;
    Ok(sync_parent(path)?)
}

/// Reads the secrets of one owner and period.
///
/// # Errors
/// [`KeyError`].
pub fn read_secret(path: &Path) -> Result<SecretSet, KeyError> {
    let malformed = |source| KeyError::Malformed { path: path.to_owned(), source };
    let file: SecretFile = serde_json::from_slice(&read_bounded(path)?).map_err(malformed)?;
    check(path, &file.format, file.version, SECRET)?;
    let secret = SecretKey::from_bytes(bytes_of(path, "secret", &file.secret)?);
    let shared = set_of(path, file.entry)?;
    let set = SecretSet::new(shared.owner.clone(), shared.period, shared.search.0, secret);
    if set.shared == shared {
        return Ok(set);
    }
    Err(KeyError::Content {
        path: path.to_owned(),
        what: "its secret key is not the other half of its public one".into(),
    })
}

/// Where the secrets of this owner and period lie in a folder.
#[must_use]
pub fn secret_path(folder: &Path, owner: &Owner, period: Period) -> PathBuf {
    folder.join(format!("{owner}.{period}{SUFFIX}"))
}

/// Writes secrets into a folder, readable by its owner alone; never over others.
///
/// # Errors
/// [`KeyError::Exists`], or what the disk says.
pub fn write_secret(folder: &Path, set: &SecretSet) -> Result<PathBuf, KeyError> {
    let path = secret_path(folder, &set.shared.owner, set.shared.period);
    let secret = BASE64.encode(&set.secret.to_bytes());
    let file = SecretFile { format: SECRET.into(), version: VERSION, entry: entry_of(&set.shared), secret };
    let malformed = |source| KeyError::Malformed { path: path.clone(), source };
    let mut bytes = serde_json::to_vec_pretty(&file).map_err(malformed)?;
    bytes.push(b'\n');
    create_private(folder)?;
    let temporary = durable::temporary(&path);
    durable::remove_file(&temporary)?;
    write_new(&temporary, &bytes)?;
    // A link, and not a rename: it fails where something is.
    let linked = fs::hard_link(&temporary, &path);
    durable::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(KeyError::Exists { path }),
        Err(error) => Err(IoError::at("write", &path)(error).into()),
        Ok(()) => {
            sync_parent(&path)?;
            Ok(path)
        }
    }
}

/// Overwrites a file of secrets, removes it, and makes that durable. What a disk, a snapshot or a backup still has of it is
/// beyond any program's reach.
///
/// # Errors
/// What the disk says.
pub fn destroy_secret(path: &Path) -> Result<(), KeyError> {
    let mut file = OpenOptions::new().write(true).open(path).map_err(IoError::at("open", path))?;
    let length = file.metadata().map_err(IoError::at("look at", path))?.len().min(MAX_BYTES);
    let zeros = vec![0; usize::try_from(length).unwrap_or(0)];
    file.write_all(&zeros).and_then(|()| file.sync_all()).map_err(IoError::at("overwrite", path))?;
    durable::remove_file(path)?;
    Ok(sync_parent(path)?)
}

/// Whether a file in a folder of keys is one with secrets, by its name.
pub(super) fn is_secret(name: &str) -> bool {
    name.ends_with(SUFFIX) && !name.starts_with('.')
}

fn sync_parent(path: &Path) -> Result<(), IoError> {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), durable::sync_folder)
}

fn create_private(folder: &Path) -> Result<(), IoError> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(IoError::at("create the folder", folder))
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), IoError> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(IoError::at("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(IoError::at("write", path))
}
