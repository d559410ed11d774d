//! Failures that a compile would only repeat: remembered with the compiler's words, and told at once to the next caller.
//!
//! The key names graph, options, toolchain and device, so that a new toolchain asks anew. The store forgets them after a while, and an
//! operator may at any time ([`crate::Scheduler::forget_failures`]).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use piecewised_graph::Digest;
use piecewised_store::{FailureRecord, Store};

use crate::{JobFailure, SubmitError};

/// What is remembered of `key`.
pub(crate) async fn recall(store: &Store, key: &Digest) -> Result<Option<JobFailure>, SubmitError> {
    let failure = store.get_failure(key).await?.map(|FailureRecord { reason, message, failed_unix_ms }| {
        let age = Duration::from_millis(unix_ms().saturating_sub(failed_unix_ms));
        JobFailure { reason, message, retryable: false, age: Some(age) }
    });
    Ok(failure)
}

/// Remembers a failure that is the graph's own. That it could not be is no reason to fail: it is found out again.
pub(crate) async fn remember(store: &Store, key: &Digest, failure: &JobFailure) {
    if !failure.is_deterministic() {
        return;
    }
    let JobFailure { reason, message, .. } = failure.clone();
    if let Err(error) = store.put_failure(key, FailureRecord { reason, message, failed_unix_ms: unix_ms() }).await {
        tracing::warn!(key = key.short(), "a failure could not be remembered: {error}");
    }
}

/// Now.
pub(crate) fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
