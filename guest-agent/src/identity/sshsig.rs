//! Detached signatures made by `ssh-keygen -Y sign` (OpenSSH's PROTOCOL.sshsig).

use ssh_key::{Algorithm, PublicKey, SshSig, public::KeyData};

use super::signers;

/// The namespace of task statements: no signature that a user made for git, e-mail or a login fits here, nor the reverse.
pub const NAMESPACE: &str = "task@vestigo";
/// Largest signature file; one by RSA 4096 has 1.6 KiB.
pub const MAX_SIGNATURE: usize = 16 << 10;

/// Why a signature does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Too big.
    #[error("the signature is larger than {} KiB; give the file that ssh-keygen -Y sign wrote", MAX_SIGNATURE >> 10)]
    Size,
    /// Not an SSHSIG file.
    #[error("the signature cannot be read ({0}); give the .sig file that ssh-keygen -Y sign wrote")]
    Format(String),
    /// Made for something else.
    #[error("the signature was made for namespace {found:?}; sign with: ssh-keygen -Y sign -n {NAMESPACE} -f KEY FILE")]
    Namespace {
        /// Its namespace.
        found: String,
    },
    /// A kind of key that is not accepted.
    #[error("{0}")]
    Key(String),
    /// The bytes are others, or the key is.
    #[error("the signature does not fit the statement: one of the two was changed after signing; sign it again")]
    Mismatch,
}

/// Reads a `.sig` file.
///
/// # Errors
/// When it is not one, or not one that may ever be accepted.
pub fn read(signature: &[u8]) -> Result<SshSig, SignatureError> {
    if signature.len() > MAX_SIGNATURE {
        return Err(SignatureError::Size);
    }
    let read = SshSig::from_pem(signature).map_err(|e| SignatureError::Format(super::printable(&e.to_string())))?;
    if read.version() != SshSig::VERSION || !read.reserved().is_empty() {
        return Err(SignatureError::Format("version other than 1".into()));
    }
    if read.namespace() != NAMESPACE {
        return Err(SignatureError::Namespace { found: read.namespace().chars().take(64).collect() });
    }
    signers::acceptable(read.public_key()).map_err(SignatureError::Key)?;
    match (read.public_key().algorithm(), read.signature().algorithm()) {
        (Algorithm::Rsa { .. }, Algorithm::Rsa { hash: Some(_) }) => Ok(read),
        (key, made) if key == made => Ok(read),
        (key, made) => {
            let made = super::printable(made.as_str());
            Err(SignatureError::Key(format!("a key of type {key} cannot make a {made} signature")))
        }
    }
}

/// The key that signed exactly these bytes. Whose it is, is another question.
///
/// # Errors
/// When the signature does not hold.
pub fn verify(message: &[u8], signature: &[u8]) -> Result<KeyData, SignatureError> {
    let signature = read(signature)?;
    let key = PublicKey::from(signature.public_key().clone());
    key.verify(NAMESPACE, message, &signature).map_err(|_| SignatureError::Mismatch)?;
    Ok(signature.public_key().clone())
}

#[cfg(test)]
mod tests {
    use base64ct::{Base64, Encoding};

    use super::*;

    const SIGNED: &str = include_str!("../../../tests/fuzz/corpus/signed_task.sig");

    /// The signature with every name of its algorithm replaced by one as long.
    fn renamed(name: &[u8; 11]) -> String {
        let body: String = SIGNED.lines().filter(|line| !line.starts_with('-')).collect();
        let mut bytes = Base64::decode_vec(&body).unwrap();
        for at in 0..bytes.len() - name.len() {
            if &bytes[at..at + name.len()] == b"ssh-ed25519" {
                bytes[at..at + name.len()].copy_from_slice(name);
            }
        }
        let text = Base64::encode_string(&bytes);
        let lines: Vec<&str> = text.as_bytes().chunks(70).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", lines.join("\n"))
    }

    /// Found by the fuzzer: the library repeats the name of an algorithm that it does not know.
    #[test]
    fn what_a_terminal_would_obey_is_not_repeated() {
        assert!(read(renamed(b"ssh-ed25519").as_bytes()).is_ok(), "the same as before");
        for (name, printed) in [(b"ssh-\x1b[2J519", "[2J519"), (b"\x1b[2Jaa@b.cc", "aa@b.cc")] {
            let said = read(renamed(name).as_bytes()).unwrap_err().to_string();
            assert!(said.contains(printed), "{said:?}");
            assert!(!said.contains(char::is_control), "{said:?}");
        }
    }
}
