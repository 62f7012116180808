//! Trying out an S3 server: create-only, checksums, Object Lock.

use std::time::Duration;

use aws_sdk_s3::{
    error::{ProvideErrorMetadata, SdkError},
    operation::put_object::builders::PutObjectFluentBuilder,
    primitives::ByteStream,
    types::ObjectLockMode,
};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use vestigo_model::{Clock, SystemClock};

use super::{
    Key, Put, S3Vault, Vault, VaultError,
    probe::{self, Capabilities, Finding, LockMode},
    s3::{base64, s3_time},
    s3_errors::{explain, status},
};

/// Long enough for the trial, short enough that even a compliance lock soon lets go of it.
const TRIAL: Duration = Duration::from_secs(60);

pub(super) fn probe(vault: &S3Vault) -> Result<Capabilities, VaultError> {
    vault.check_bucket()?;
    let create_only = create_only(vault)?;
    Ok(Capabilities {
        store: "s3".to_owned(),
        create_only,
        checksum: checksum(vault)?,
        object_lock: object_lock(vault)?,
        detail: format!("lock tried in mode {}", trial_mode(vault).as_str()),
    })
}

fn create_only(vault: &S3Vault) -> Result<bool, VaultError> {
    let key = probe::key()?;
    // Without a lock even where locks are configured: the server may not have them, and that is for the next trial to say.
    let plain = |bytes: &'static [u8]| put(vault, &key, bytes).if_none_match("*");
    let (first, second) = (plain(b"first"), plain(b"second"));
    let (place, name) = (vault.place.clone(), key.to_string());
    let refused = vault.run(async move {
        first.send().await.map_err(|e| explain(&place, "write a probe object", &name, &e))?;
        Ok(matches!(second.send().await, Err(error) if matches!(status(&error), Some(412 | 409))))
    })?;
    Ok(refused && vault.get(&key)? == Bytes::from_static(b"first") && vault.put_new_again(&key)?)
}

impl S3Vault {
    /// The very call that everything relies on, on a key that is taken.
    fn put_new_again(&self, key: &Key) -> Result<bool, VaultError> {
        if self.lock != LockMode::Off {
            return Ok(true);
        }
        Ok(self.put_new(key, Bytes::from_static(b"third"))? == Put::Exists)
    }
}

fn put(vault: &S3Vault, key: &Key, bytes: &'static [u8]) -> PutObjectFluentBuilder {
    vault.client.put_object().bucket(&vault.bucket).key(vault.object(key)).body(ByteStream::from_static(bytes))
}

fn checksum(vault: &S3Vault) -> Result<Finding, VaultError> {
    let key = probe::key()?;
    let request = put(vault, &key, b"these bytes").checksum_sha256(base64(&Sha256::digest(b"other bytes")));
    vault.run(async move {
        Ok(match request.customize().disable_payload_signing().send().await {
            Ok(_) => Finding::Ignored("a wrong x-amz-checksum-sha256 was accepted".to_owned()),
            Err(error) if status(&error) == Some(400) => Finding::Works,
            Err(error) => unknown(&error),
        })
    })
}

fn unknown<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> Finding {
    Finding::Unknown(format!("the server answered {}", error.code().unwrap_or("nothing")))
}

fn trial_mode(vault: &S3Vault) -> ObjectLockMode {
    match vault.lock {
        LockMode::Compliance => ObjectLockMode::Compliance,
        _ => ObjectLockMode::Governance,
    }
}

fn object_lock(vault: &S3Vault) -> Result<Finding, VaultError> {
    let key = probe::key()?;
    let mode = trial_mode(vault);
    let locked = put(vault, &key, b"under lock")
        .checksum_sha256(base64(&Sha256::digest(b"under lock")))
        .object_lock_mode(mode.clone())
        .object_lock_retain_until_date(s3_time(SystemClock.now() + TRIAL));
    let (client, bucket, object) = (vault.client.clone(), vault.bucket.clone(), vault.object(&key));
    vault.run(async move {
        if client.get_object_lock_configuration().bucket(&bucket).send().await.is_err() {
            return Ok(Finding::NotOffered);
        }
        let version = match locked.send().await {
            Ok(answer) => answer.version_id().map(str::to_owned),
            Err(error) if status(&error).is_some() => return Ok(Finding::NotOffered),
            Err(error) => return Ok(unknown(&error)),
        };
        let Some(version) = version else {
            return Ok(Finding::Ignored("a locked object got no version id: the bucket is not versioned".to_owned()));
        };
        let delete = || client.delete_object().bucket(&bucket).key(&object).version_id(&version);
        if delete().send().await.is_ok() {
            return Ok(Finding::Ignored("a version under retention was deleted".to_owned()));
        }
        if mode == ObjectLockMode::Compliance && delete().bypass_governance_retention(true).send().await.is_ok() {
            return Ok(Finding::Ignored(
                "a version under compliance was deleted with the governance bypass".to_owned(),
            ));
        }
        let still = client.head_object().bucket(&bucket).key(&object).version_id(&version).send().await;
        Ok(if still.is_ok() { Finding::Works } else { Finding::Ignored("the locked version is gone".to_owned()) })
    })
}
