//! From the SDK's errors to one sentence that names endpoint and bucket and says what to do.

use std::error::Error;

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

use super::VaultError;

/// What the sentence needs to name.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) endpoint: String,
    pub(super) bucket: String,
    pub(super) region: String,
}

fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// The HTTP status, when there was an answer at all.
pub(super) fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// `doing` is a verb and its object: `write packs/site/…`; `key` is what a 404 speaks of.
pub(super) fn explain<E>(place: &Place, doing: &str, key: &str, error: &SdkError<E, HttpResponse>) -> VaultError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let Place { endpoint, bucket, region } = place;
    let at = format!("S3 server {endpoint}, bucket {bucket}");
    let Some(status) = status(error) else {
        return VaultError::Unavailable(format!(
            "cannot reach {at}, to {doing}: {}; check that the server runs, `endpoint` in the configuration, and the network",
            root_cause(error)
        ));
    };
    let code = error.code().unwrap_or("no code");
    let said = error.message().unwrap_or("no message");
    match (code, status) {
        ("NoSuchBucket", _) => no_such_bucket(place),
        (
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken" | "UnauthorizedAccess",
            _,
        )
        | (_, 401) => VaultError::Refused(format!(
            "{at}: the credentials are refused ({code}: {said}); check the credentials file or the AWS_* variables, and the clock"
        )),
        ("AuthorizationHeaderMalformed" | "PermanentRedirect", _) | (_, 301 | 307) => VaultError::Refused(format!(
            "{at}: the bucket is not in region {region} ({code}: {said}); correct `region` or `endpoint`"
        )),
        (_, 403) => VaultError::Refused(format!(
            "{at}: no permission to {doing} ({code}: {said}); check the credentials and what the bucket's policy grants them"
        )),
        ("NoSuchKey" | "NotFound" | "NoSuchVersion", _) | (_, 404) => VaultError::NotFound(key.to_owned()),
        (_, 500..) => VaultError::Unavailable(format!(
            "{at}: cannot {doing}: the server answers {status} ({code}: {said}); see its log; this will be tried again"
        )),
        _ => VaultError::Refused(format!("{at}: cannot {doing}: the server answers {status} ({code}: {said})")),
    }
}

/// The sentence for a bucket that is not there.
pub(super) fn no_such_bucket(place: &Place) -> VaultError {
    VaultError::Refused(format!(
        "S3 server {}, bucket {}: there is no such bucket; create it (with Object Lock if retention is to be enforced) or \
         correct `url`",
        place.endpoint, place.bucket
    ))
}
