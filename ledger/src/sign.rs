//! Signatures over manifests and tombstones: OpenSSH's format (PROTOCOL.sshsig), so that `ssh-keygen -Y verify` checks them
//! and nobody has to trust this program.
//!
//! [`Signer`] is the host's key, [`signers::Signers`] the file that says whose key may sign for which host.

pub mod signers;

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use ssh_key::{
    Algorithm, HashAlg, LineEnding, PrivateKey, SshSig,
    private::{Ed25519Keypair, KeypairData},
};
use vestigo_model::HostId;

use crate::durable::{self, IoError};

/// SSHSIG namespace of a segment's manifest.
pub const SEGMENT_NAMESPACE: &str = "vestigo-segment";
/// SSHSIG namespace of the proof that a segment's data were removed.
pub const TOMBSTONE_NAMESPACE: &str = "vestigo-tombstone";
/// What a signature's file is called: the signed file's name and this.
pub const SIGNATURE_SUFFIX: &str = ".sig";
/// Largest signature or key file that is read.
const MAX_FILE: u64 = 16 << 10;

/// Why nothing could be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A key file cannot be read or written.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The file holds no key that can sign here.
    #[error("{} {why}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The library refuses.
    #[error("Cannot sign with the host's key")]
    Sign(#[source] ssh_key::Error),
}

/// A key that signs. Its private half never leaves it.
pub struct Signer {
    key: PrivateKey,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.fingerprint())
    }
}

impl Signer {
    /// Reads an OpenSSH private key: ed25519, without a passphrase (nobody is there to type one).
    ///
    /// # Errors
    /// [`SignError`]: not there, not readable, or not such a key.
    pub fn open(path: &Path) -> Result<Self, SignError> {
        let wrong = |why: &str| SignError::Key { path: path.to_owned(), why: why.to_owned() };
        let text = read_bounded(path)?.ok_or_else(|| wrong("is too large for a key"))?;
        let key = PrivateKey::from_openssh(text).map_err(|error| {
            wrong(&format!("is no OpenSSH private key ({error}); make one with: ssh-keygen -t ed25519 -N '' -f FILE"))
        })?;
        if key.is_encrypted() {
            return Err(wrong("has a passphrase; remove it with: ssh-keygen -p -N '' -f FILE"));
        }
        if key.algorithm() != Algorithm::Ed25519 {
            return Err(wrong("is of another kind than ed25519; make one with: ssh-keygen -t ed25519 -N '' -f FILE"));
        }
        Ok(Self { key })
    }

    /// Reads the host's key, or makes it (mode 0600, its folder 0700) with its public half beside it, `.pub`, and the line for
    /// a file of allowed signers, `allowed_signers` in the same folder. Whether it was made now.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn open_or_create(path: &Path, host: &HostId) -> Result<(Self, bool), SignError> {
        let made = !path.exists();
        if made {
            create(path, host)?;
        }
        let signer = Self::open(path)?;
        signer.write_public(path, host)?;
        Ok((signer, made))
    }

    /// A key of which these 32 secret bytes are all there is to know. For tests and for keys kept elsewhere.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self { key: PrivateKey::from(Ed25519Keypair::from_seed(seed)) }
    }

    /// Signs a segment's manifest; the text of a `.sig` file.
    ///
    /// # Errors
    /// [`SignError::Sign`].
    pub fn sign(&self, bytes: &[u8]) -> Result<String, SignError> {
        self.sign_as(SEGMENT_NAMESPACE, bytes)
    }

    /// Signs in a namespace: a signature made in one never counts in another.
    ///
    /// # Errors
    /// [`SignError::Sign`].
    pub fn sign_as(&self, namespace: &str, bytes: &[u8]) -> Result<String, SignError> {
        let signature = SshSig::sign(&self.key, namespace, HashAlg::Sha512, bytes).map_err(SignError::Sign)?;
        signature.to_pem(LineEnding::LF).map_err(SignError::Sign)
    }

    /// The public half as in `id_ed25519.pub`, without a comment.
    #[must_use]
    pub fn public(&self) -> String {
        ssh_key::PublicKey::from(self.key.public_key().key_data().clone()).to_openssh().unwrap_or_default()
    }

    /// `SHA256:…` as `ssh-keygen -l` prints it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.key.fingerprint(HashAlg::Sha256).to_string()
    }

    /// The line of a file of allowed signers that lets this key sign for the host, and for nothing else.
    #[must_use]
    pub fn allowed_line(&self, host: &HostId) -> String {
        format!("{host} namespaces=\"{SEGMENT_NAMESPACE},{TOMBSTONE_NAMESPACE}\" {} {host}\n", self.public())
    }

    fn write_public(&self, path: &Path, host: &HostId) -> Result<(), SignError> {
        let files = [
            (beside(path, ".pub"), format!("{} {host}\n", self.public())),
            (path.with_file_name("allowed_signers"), self.allowed_line(host)),
        ];
        for (file, text) in files {
            if !fs::read(&file).is_ok_and(|there| there == text.as_bytes()) {
                durable::write_file(&file, text.as_bytes())?;
            }
        }
        Ok(())
    }
}

/// The path with something behind its last name.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// The file, if it is not larger than a key or signature can be.
pub(crate) fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>, IoError> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(IoError::at("open", path))?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(IoError::at("read", path))?;
    Ok(u64::try_from(bytes.len()).is_ok_and(|length| length <= MAX_FILE).then_some(bytes))
}

/// Makes a key. Its file is whole or absent, and never readable to others, not even for a moment.
fn create(path: &Path, host: &HostId) -> Result<(), SignError> {
    let seed = random()?;
    let pair = KeypairData::from(Ed25519Keypair::from_seed(&seed));
    let key = PrivateKey::new(pair, host.as_str()).map_err(SignError::Sign)?;
    let text = key.to_openssh(LineEnding::LF).map_err(SignError::Sign)?;
    if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(folder).map_err(IoError::at("create the folder", folder))?;
    }
    let temporary = durable::temporary(path);
    durable::remove_file(&temporary)?;
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // Another process may have made one meanwhile: a link does not replace it.
        match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    };
    let written = write().map_err(IoError::at("write the key", path));
    durable::remove_file(&temporary)?;
    written?;
    path.parent().map_or(Ok(()), durable::sync_folder)?;
    Ok(())
}

fn random() -> Result<[u8; 32], IoError> {
    let path = Path::new("/dev/urandom");
    let mut seed = [0; 32];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut seed)).map_err(IoError::at("read", path))?;
    Ok(seed)
}

#[cfg(test)]
#[path = "sign/tests.rs"]
mod tests;
