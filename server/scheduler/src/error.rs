//! Why a job is not taken, and how one fails.

use std::time::Duration;

use piecewised_executor::ExecutorError;
use piecewised_store::StoreError;
use thiserror::Error;

/// A request that is not taken.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The daemon is ending.
    #[error("the daemon is shutting down; ask again when it has restarted")]
    Draining,
    /// Too many jobs wait.
    #[error(
        "{n_queued} jobs are waiting and {n_new} more do not fit, the limit is {limit}; ask again when some are done"
    )]
    QueueFull {
        /// Jobs that wait.
        n_queued: usize,
        /// Jobs that this request would add.
        n_new: usize,
        /// The limit.
        limit: usize,
        /// When there may be room; `None`: never for so many at once.
        retry_after: Option<Duration>,
    },
    /// The caller has too many jobs waiting.
    #[error(
        "you have {n_queued} jobs waiting and {n_new} more do not fit, the limit for one peer is {limit}; ask again when some are done"
    )]
    PeerQueueFull {
        /// Jobs that wait for it.
        n_queued: usize,
        /// Jobs that this request would add.
        n_new: usize,
        /// The limit.
        limit: usize,
        /// When there may be room; `None`: never for so many at once.
        retry_after: Option<Duration>,
    },
    /// The caller's graphs take too much of the daemon's memory.
    #[error(
        "the graphs that you wait for have {bytes} bytes and {new_bytes} more do not fit, the limit for one peer is {limit}; ask again when \
         some are done"
    )]
    PeerBytesFull {
        /// Bytes of the graphs that it waits for.
        bytes: usize,
        /// Bytes that this request would add.
        new_bytes: usize,
        /// The limit.
        limit: usize,
        /// When there may be room; `None`: never for so many at once.
        retry_after: Option<Duration>,
    },
    /// No interpreter with a torch that works.
    #[error("this daemon has no toolchain to compile with: {reason}")]
    NoToolchain {
        /// What was tried.
        reason: String,
    },
    /// The interpreter's torch is still being imported.
    #[error("the daemon has just started and is still importing torch; ask again in a few seconds")]
    StillProbing,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SubmitError {
    /// The same, with `delay` where there may be room later.
    pub(crate) fn retried_after(mut self, delay: Duration) -> Self {
        if let Self::QueueFull { retry_after, .. }
        | Self::PeerQueueFull { retry_after, .. }
        | Self::PeerBytesFull { retry_after, .. } = &mut self
        {
            *retry_after = retry_after.map(|_| delay);
        }
        self
    }
}

/// How a job failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFailure {
    /// As in the proto's `Failed.reason`.
    pub reason: String,
    /// For people; the compiler's own words where it was the compiler.
    pub message: String,
    /// Whether the same request may end otherwise.
    pub retryable: bool,
    /// How long ago it happened, where it was remembered and not tried again.
    pub age: Option<Duration>,
}

impl JobFailure {
    pub(crate) fn new(reason: &str, message: impl Into<String>, retryable: bool) -> Self {
        Self { reason: reason.to_owned(), message: message.into(), retryable, age: None }
    }

    /// Whether the job fails so wherever and whenever it is tried with this toolchain.
    pub(crate) fn is_deterministic(&self) -> bool {
        matches!(self.reason.as_str(), "COMPILE_ERROR" | "UNPROVEN_RANGE" | "UNSUPPORTED") && !self.retryable
    }

    pub(crate) fn store(error: &StoreError) -> Self {
        Self::new("STORE_FAILED", format!("the artifact could not be stored: {error}"), true)
    }

    pub(crate) fn abandoned() -> Self {
        Self::new("CANCELLED", "nobody waited for the compile any more; ask again", true)
    }

    pub(crate) fn cancelled() -> Self {
        Self::new("CANCELLED", "the daemon ended before the job did; ask again", true)
    }

    pub(crate) fn executor(error: &ExecutorError) -> Self {
        match error {
            ExecutorError::Failed { reason, message } => Self::new(reason.as_str(), message.clone(), false),
            ExecutorError::TimedOut { .. } => Self::new("EXECUTOR_TIMEOUT", error.to_string(), true),
            ExecutorError::DeviceFault { .. } => Self::new("DEVICE_FAULT", error.to_string(), true),
            ExecutorError::OutOfMemory { .. } => Self::new("OUT_OF_MEMORY", error.to_string(), true),
            ExecutorError::BadJob { .. } => Self::new("INTERNAL", error.to_string(), false),
            ExecutorError::Unusable { .. } => Self::new("NO_TOOLCHAIN", error.to_string(), true),
            _ => Self::new("EXECUTOR_CRASHED", error.to_string(), true),
        }
    }
}
