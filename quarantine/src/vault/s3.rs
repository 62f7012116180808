//! A vault in an S3 bucket.
//!
//! The SDK is asynchronous and the pipeline is threads, so each vault owns a small runtime; a call hands its future
//! there and waits. That also works when the caller is itself inside a runtime.

use std::{future::Future, sync::mpsc, time::Duration};

use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
        retry::RetryConfig, timeout::TimeoutConfig,
    },
    primitives::{ByteStream, DateTime},
    types::{ObjectLockMode, ObjectLockRetention, ObjectLockRetentionMode},
};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use vestigo_model::{Clock, SystemClock, Timestamp};

use super::{
    Key, Listed, Put, Vault, VaultError, Visit,
    probe::{Capabilities, LockMode},
    s3_errors::{Place, explain, no_such_bucket, status},
};
use crate::codec::as_u64;

/// Keys for the store.
#[derive(Clone, Default)]
pub struct S3Credentials {
    /// Public part.
    pub access_key: String,
    /// Secret part; never shown.
    pub secret_key: String,
    /// For short-lived credentials.
    pub session_token: Option<String>,
}

/// How to speak to the store.
#[derive(Clone)]
pub struct S3Settings {
    /// `http(s)://host:port`; AWS when absent.
    pub endpoint: Option<String>,
    /// Region; many servers take any.
    pub region: String,
    /// Bucket in the path, as nearly every server but AWS wants it.
    pub path_style: bool,
    /// Keys.
    pub credentials: S3Credentials,
    /// Whether objects are locked as they are put.
    pub lock: LockMode,
    /// For how long.
    pub retention: Duration,
}

impl Default for S3Settings {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: "us-east-1".to_owned(),
            path_style: true,
            credentials: S3Credentials::default(),
            lock: LockMode::Off,
            retention: Duration::ZERO,
        }
    }
}

/// What is directly in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Its name in the folder.
    pub name: String,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Bytes, of an object.
    pub size: u64,
    /// Changes with the object, where the server says it.
    pub etag: Option<String>,
}

/// A vault in a bucket.
pub struct S3Vault {
    pub(super) client: Client,
    pub(super) place: Place,
    pub(super) bucket: String,
    prefix: String,
    pub(super) lock: LockMode,
    retention: Duration,
    runtime: Option<Runtime>,
}

impl Drop for S3Vault {
    fn drop(&mut self) {
        // A plain drop would panic when the last owner lets go inside somebody else's runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(super) fn s3_time(at: Timestamp) -> DateTime {
    // Whole seconds: servers differ in what they make of fractions.
    DateTime::from_secs(at.as_nanos().div_euclid(1_000_000_000))
}

fn client(settings: &S3Settings) -> Client {
    let keys = &settings.credentials;
    let credentials = Credentials::new(&keys.access_key, &keys.secret_key, keys.session_token.clone(), None, "vestigo");
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(Duration::from_secs(60))
        .operation_attempt_timeout(Duration::from_secs(180))
        .build();
    let mut config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(settings.region.clone()))
        .credentials_provider(credentials)
        .force_path_style(settings.path_style)
        // Old gateways reject the checksums that newer SDKs add; ours is set by hand where it matters.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(RetryConfig::standard().with_max_attempts(3))
        .timeout_config(timeouts);
    if let Some(endpoint) = &settings.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Client::from_conf(config.build())
}

impl S3Vault {
    /// Prepares to speak to the store; nothing is sent yet.
    pub fn open(bucket: &str, prefix: &str, settings: &S3Settings) -> Result<Self, VaultError> {
        if settings.credentials.access_key.is_empty() {
            return Err(VaultError::Refused(format!(
                "no credentials for s3://{bucket}: name a file with `credentials` in [vault] of quarantine.toml or [s3] of \
                 vestigo.toml, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(|e| VaultError::Unavailable(format!("cannot start threads for S3: {e}")))?;
        Ok(Self {
            client: client(settings),
            place: Place {
                endpoint: settings.endpoint.clone().unwrap_or_else(|| "AWS".to_owned()),
                bucket: bucket.to_owned(),
                region: settings.region.clone(),
            },
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            lock: settings.lock,
            retention: settings.retention,
            runtime: Some(runtime),
        })
    }

    /// Asks for the bucket itself: some servers answer a listing of a bucket that is not there with nothing, and make it at
    /// the first put.
    pub fn check_bucket(&self) -> Result<(), VaultError> {
        let request = self.client.head_bucket().bucket(&self.bucket);
        // An answer to HEAD has no body: why it is refused only another question tells.
        let why = self.client.list_objects_v2().bucket(&self.bucket).max_keys(1);
        let place = self.place.clone();
        self.run(async move {
            let explained = |error| explain(&place, "look at the bucket", &place.bucket, &error);
            match request.send().await {
                Ok(_) => Ok(()),
                Err(error) if status(&error) == Some(404) => Err(no_such_bucket(&place)),
                Err(error) if status(&error) == Some(403) => why.send().await.map(drop).map_err(explained),
                Err(error) => Err(explain(&place, "look at the bucket", &place.bucket, &error)),
            }
        })
    }

    /// The direct children of a folder (`""`: the top): names, whether each is a folder, sizes and ETags of objects, at most `most`.
    ///
    /// # Errors
    /// The store's word, or [`VaultError::Refused`] for a folder of more.
    pub fn children(&self, folder: &str, most: usize) -> Result<Vec<Child>, VaultError> {
        let prefix = if folder.is_empty() { self.prefix.clone() } else { format!("{}{folder}/", self.prefix) };
        let (mut children, mut token) = (Vec::new(), None);
        loop {
            let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(&prefix).delimiter("/");
            let request = request.set_continuation_token(token.take());
            let (place, doing) = (self.place.clone(), format!("list {folder}"));
            let page =
                self.run(async move { request.send().await.map_err(|e| explain(&place, &doing, &doing, &e)) })?;
            for name in page.common_prefixes().iter().filter_map(|folder| folder.prefix()?.strip_prefix(&prefix)) {
                let name = name.trim_end_matches('/').to_owned();
                children.push(Child { name, is_folder: true, size: 0, etag: None });
            }
            for object in page.contents() {
                let Some(name) = object.key().and_then(|key| key.strip_prefix(&prefix)) else { continue };
                let size = object.size().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
                let etag = object.e_tag().map(str::to_owned);
                children.push(Child { name: name.to_owned(), is_folder: false, size, etag });
            }
            if children.len() > most {
                return Err(VaultError::Refused(format!("{} has more than {most} names in {folder:?}", self.url())));
            }
            token = page.next_continuation_token().map(str::to_owned);
            if token.is_none() {
                return Ok(children);
            }
        }
    }

    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, VaultError>> + Send + 'static,
    ) -> Result<T, VaultError> {
        let gone = || VaultError::Unavailable("the S3 threads have stopped".to_owned());
        let (tx, rx) = mpsc::sync_channel(1);
        self.runtime.as_ref().ok_or_else(gone)?.spawn(async move {
            let _ = tx.send(work.await);
        });
        rx.recv().map_err(|_| gone())?
    }

    pub(super) fn object(&self, key: &Key) -> String {
        format!("{}{key}", self.prefix)
    }

    fn lock_mode(&self) -> Option<ObjectLockMode> {
        match self.lock {
            LockMode::Off => None,
            LockMode::Governance => Some(ObjectLockMode::Governance),
            LockMode::Compliance => Some(ObjectLockMode::Compliance),
        }
    }
}

/// A body that arrives whole or not at all.
async fn collect(body: ByteStream, doing: &str, place: &Place) -> Result<Bytes, VaultError> {
    let all = body.collect().await.map_err(|e| {
        VaultError::Unavailable(format!(
            "S3 server {}, bucket {}: the answer broke off while we wanted to {doing}: {e}",
            place.endpoint, place.bucket
        ))
    })?;
    Ok(all.into_bytes())
}

impl Vault for S3Vault {
    fn url(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix).trim_end_matches('/').to_owned()
    }

    fn put_new(&self, key: &Key, bytes: Bytes) -> Result<Put, VaultError> {
        let checksum = base64(&Sha256::digest(&bytes));
        let until = self.lock_mode().map(|_| s3_time(SystemClock.now() + self.retention));
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.object(key))
            .if_none_match("*")
            .checksum_sha256(checksum)
            .set_object_lock_mode(self.lock_mode())
            .set_object_lock_retain_until_date(until)
            .body(ByteStream::from(bytes));
        let (place, key) = (self.place.clone(), key.to_string());
        self.run(async move {
            // The checksum header is signed and covers the body; signing the body as well would digest it a second time.
            match request.customize().disable_payload_signing().send().await {
                Ok(_) => Ok(Put::Created),
                Err(error) if matches!(status(&error), Some(412 | 409)) => Ok(Put::Exists),
                Err(error) => Err(explain(&place, &format!("write {key}"), &key, &error)),
            }
        })
    }

    fn get(&self, key: &Key) -> Result<Bytes, VaultError> {
        let request = self.client.get_object().bucket(&self.bucket).key(self.object(key));
        let (place, key) = (self.place.clone(), key.to_string());
        self.run(async move {
            let doing = format!("read {key}");
            let answer = request.send().await.map_err(|e| explain(&place, &doing, &key, &e))?;
            collect(answer.body, &doing, &place).await
        })
    }

    fn get_range(&self, key: &Key, offset: u64, len: u64) -> Result<Bytes, VaultError> {
        let Some(last) = len.checked_sub(1).and_then(|n| offset.checked_add(n)) else {
            return Ok(Bytes::new());
        };
        let range = format!("bytes={offset}-{last}");
        let request = self.client.get_object().bucket(&self.bucket).key(self.object(key)).range(range);
        let (place, key) = (self.place.clone(), key.to_string());
        self.run(async move {
            let doing = format!("read {key}");
            let short = || VaultError::TooShort { key: key.clone(), wanted: last.saturating_add(1) };
            let answer = match request.send().await {
                Ok(answer) => answer,
                Err(error) if status(&error) == Some(416) => return Err(short()),
                Err(error) => return Err(explain(&place, &doing, &key, &error)),
            };
            let bytes = collect(answer.body, &doing, &place).await?;
            if as_u64(bytes.len()) == len { Ok(bytes) } else { Err(short()) }
        })
    }

    fn size(&self, key: &Key) -> Result<Option<u64>, VaultError> {
        let request = self.client.head_object().bucket(&self.bucket).key(self.object(key));
        let (place, key) = (self.place.clone(), key.to_string());
        self.run(async move {
            match request.send().await {
                Ok(answer) => Ok(Some(answer.content_length().and_then(|n| u64::try_from(n).ok()).unwrap_or(0))),
                Err(error) => match explain(&place, &format!("look at {key}"), &key, &error) {
                    VaultError::NotFound(_) => Ok(None),
                    other => Err(other),
                },
            }
        })
    }

    fn list(&self, prefix: &str, after: Option<&str>, visit: Visit<'_>) -> Result<(), VaultError> {
        let mut token = None;
        loop {
            let request = self
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .prefix(format!("{}{prefix}", self.prefix))
                .set_start_after(after.map(|a| format!("{}{a}", self.prefix)))
                .set_continuation_token(token.take());
            let (place, doing) = (self.place.clone(), format!("list {prefix}"));
            let page =
                self.run(async move { request.send().await.map_err(|e| explain(&place, &doing, &doing, &e)) })?;
            for object in page.contents() {
                let name = object.key().and_then(|k| k.strip_prefix(&self.prefix)).unwrap_or_default();
                if let Ok(key) = Key::new(name) {
                    visit(Listed { key, size: object.size().and_then(|n| u64::try_from(n).ok()).unwrap_or(0) })?;
                }
            }
            token = page.next_continuation_token().map(str::to_owned);
            if token.is_none() {
                return Ok(());
            }
        }
    }

    fn keep_until(&self, key: &Key, until: Timestamp) -> Result<(), VaultError> {
        let mode = match self.lock {
            LockMode::Off => return Ok(()),
            LockMode::Governance => ObjectLockRetentionMode::Governance,
            LockMode::Compliance => ObjectLockRetentionMode::Compliance,
        };
        let (client, bucket, object) = (self.client.clone(), self.bucket.clone(), self.object(key));
        let (place, key) = (self.place.clone(), key.to_string());
        self.run(async move {
            let doing = format!("extend the retention of {key}");
            let head = client.head_object().bucket(&bucket).key(&object).send().await;
            let head = head.map_err(|e| explain(&place, &doing, &key, &e))?;
            let wanted = s3_time(until);
            if head.object_lock_retain_until_date().is_some_and(|now| now.secs() >= wanted.secs()) {
                return Ok(());
            }
            let retention = ObjectLockRetention::builder().mode(mode).retain_until_date(wanted).build();
            let request = client.put_object_retention().bucket(&bucket).key(&object).retention(retention);
            request.send().await.map(|_| ()).map_err(|e| explain(&place, &doing, &key, &e))
        })
    }

    fn probe(&self) -> Result<Capabilities, VaultError> {
        super::s3_probe::probe(self)
    }
}

/// Standard base64 of a digest: the form of S3's checksum headers. Not worth a crate.
pub(super) fn base64(bytes: &[u8]) -> String {
    bytes.chunks(3).map(encode_three).collect()
}

fn encode_three(three: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let at = |n: usize| u32::from(three.get(n).copied().unwrap_or(0));
    let bits = at(0) << 16 | at(1) << 8 | at(2);
    (0..4usize)
        .map(|n| {
            let index = (bits >> (18 - 6 * n)) & 63;
            if n > three.len() { '=' } else { LETTERS.get(index as usize).copied().map_or('=', char::from) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_as_rfc_4648_has_it() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
