//! `/api/v1/artifacts` and `/api/v1/failures`: what the store has, a page at a time.
//!
//! Parameters: `limit` (at most 200), `after` (a key: what comes behind it), and for artifacts `prefix` (the first digits of keys). Keys are sorted, so that those with one
//! prefix follow each other, and a page of them costs what any page costs.

use axum::{
    Json,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use piecewised_graph::{
    Digest, VerificationOutcome,
    request::{ArtifactFormat, Tuning},
};
use piecewised_store::{Listed, ListedItem, StoreError};
use serde::{Deserialize, Serialize};

use super::{
    Site,
    overview::{named, shortened},
};

const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 200;
const KEY_DIGITS: usize = 64;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    #[serde(default)]
    after: String,
    #[serde(default)]
    prefix: String,
    limit: Option<usize>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Artifacts {
    artifacts: Vec<Artifact>,
    /// `after` of the next page; `None`: there is none.
    next: Option<String>,
}

#[derive(Debug, Serialize)]
struct Artifact {
    key: String,
    digest: String,
    size_bytes: u64,
    created_unix_ms: u64,
    used_unix_ms: u64,
    is_pinned: bool,
    /// `None`: it is compiled code.
    snapshot: Option<String>,
    compiled: Option<Compiled>,
}

#[derive(Debug, Serialize)]
struct Compiled {
    range: Option<String>,
    format: ArtifactFormat,
    tuning: Tuning,
    device: String,
    torch_version: String,
    compile_s: f64,
    n_segments: usize,
    verified: VerificationOutcome,
}

#[derive(Debug, Serialize)]
pub(crate) struct Failures {
    failures: Vec<Failure>,
    next: Option<String>,
}

#[derive(Debug, Serialize)]
struct Failure {
    key: String,
    reason: String,
    message: String,
    failed_unix_ms: u64,
}

/// A page that cannot be given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    #[error("{name} is up to {KEY_DIGITS} hexadecimal digits, the first of a key, or all of them")]
    BadKey { name: &'static str },
    #[error("the store does not answer: {0}")]
    Store(#[from] StoreError),
}

impl IntoResponse for ListError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::BadKey { .. } => StatusCode::BAD_REQUEST,
            Self::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, format!("{self}\n")).into_response()
    }
}

pub(crate) async fn artifacts(
    State(site): State<Site>,
    Query(page): Query<Page>,
) -> Result<Json<Artifacts>, ListError> {
    let prefix = page.prefix.trim().to_ascii_lowercase();
    let first = first_key(&prefix)?;
    let after = page.after()?.max(first.and_then(before));
    let limit = page.limit();
    let mut listed = site.store.list(after, limit).await?;
    let n_read = listed.len();
    listed.retain(|listed| listed.key.to_string().starts_with(&prefix));
    // Full, and nothing of it beyond the prefix: there may be more.
    let next = listed.last().filter(|_| n_read == limit && listed.len() == n_read).map(|last| last.key.to_string());
    Ok(Json(Artifacts { artifacts: listed.into_iter().map(artifact).collect(), next }))
}

pub(crate) async fn failures(State(site): State<Site>, Query(page): Query<Page>) -> Result<Json<Failures>, ListError> {
    let limit = page.limit();
    let listed = site.store.list_failures(page.after()?, limit).await?;
    let next = listed.last().filter(|_| listed.len() == limit).map(|(key, _)| key.to_string());
    let failure = |(key, record): (Digest, piecewised_store::FailureRecord)| Failure {
        key: key.to_string(),
        reason: record.reason,
        message: shortened(&record.message),
        failed_unix_ms: record.failed_unix_ms,
    };
    Ok(Json(Failures { failures: listed.into_iter().map(failure).collect(), next }))
}

impl Page {
    fn limit(&self) -> usize {
        self.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT)
    }

    fn after(&self) -> Result<Option<Digest>, ListError> {
        match self.after.as_str() {
            "" => Ok(None),
            key => key.parse().map(Some).map_err(|_| ListError::BadKey { name: "after" }),
        }
    }
}

/// The lowest key with these first digits; `None`: there are no digits.
fn first_key(prefix: &str) -> Result<Option<Digest>, ListError> {
    let bad = || ListError::BadKey { name: "prefix" };
    if prefix.is_empty() {
        return Ok(None);
    }
    if prefix.len() > KEY_DIGITS || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(bad());
    }
    format!("{prefix:0<KEY_DIGITS$}").parse().map(Some).map_err(|_| bad())
}

/// The key before; `None`: it is the first of all.
fn before(Digest(mut bytes): Digest) -> Option<Digest> {
    for byte in bytes.iter_mut().rev() {
        let (less, borrows) = byte.overflowing_sub(1);
        *byte = less;
        if !borrows {
            return Some(Digest(bytes));
        }
    }
    None
}

fn artifact(listed: Listed) -> Artifact {
    let Listed { key, item, used_unix_ms, is_pinned, is_pinned_by_operator } = listed;
    let (digest, size_bytes, created_unix_ms, snapshot, compiled) = match item {
        ListedItem::Handle(handle) => {
            let compiled = Compiled {
                range: handle.range.map(|range| range.to_string()),
                format: handle.format,
                tuning: handle.tuning.mode,
                device: named(&handle.device),
                torch_version: handle.toolchain.torch_version.clone(),
                compile_s: handle.timings.total_s,
                n_segments: handle.segments.len(),
                verified: handle.verification.outcome,
            };
            (handle.digest, handle.size_bytes, handle.created_unix_ms, None, Some(compiled))
        }
        ListedItem::Snapshot(it) => (
            it.digest,
            it.size_bytes,
            it.created_unix_ms,
            Some(format!("{} {}", it.snapshot.frontend, it.snapshot.name)),
            None,
        ),
    };
    Artifact {
        key: key.to_string(),
        digest: digest.to_string(),
        size_bytes,
        created_unix_ms,
        used_unix_ms,
        // Whoever it is for.
        is_pinned: is_pinned || is_pinned_by_operator,
        snapshot,
        compiled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_prefix_begin_behind_the_key_before_its_first() {
        let before_first = |prefix: &str| first_key(prefix).unwrap().and_then(before).map(|key| key.to_string());
        assert_eq!(before_first("1"), Some(format!("0{}", "f".repeat(63))));
        assert_eq!(before_first("ab0"), Some(format!("aaf{}", "f".repeat(61))));
        assert_eq!(before_first(&format!("{}1", "0".repeat(63))), Some("0".repeat(64)));
        assert_eq!((before_first("000"), before_first("")), (None, None));
        assert!(first_key("xyz").is_err() && first_key(&"0".repeat(65)).is_err() && first_key("é").is_err());
    }
}
