//! What an open found, and what a store has done: plain values for logs and metrics.

use std::{path::PathBuf, time::Duration};

/// How the store came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenOutcome {
    /// There was no store; there is an empty one now.
    Fresh,
    /// The store that was there.
    Existing,
    /// The index opened after its snapshot was set aside.
    WithoutSnapshot,
    /// The index was damaged: set aside, and rebuilt from the artifact files.
    Rebuilt,
    /// The folder held a store of another format version: set aside, and an empty one begun.
    ForeignFormat {
        /// The version found.
        found: u32,
    },
}

/// What an open found and did.
#[derive(Debug, Clone)]
pub struct OpenReport {
    /// How the store came up.
    pub outcome: OpenOutcome,
    /// Handles that can be asked for.
    pub n_handles: usize,
    /// Artifacts behind them.
    pub n_artifacts: usize,
    /// Sum of the artifacts' sizes.
    pub artifact_bytes: u64,
    /// Where what could not be used was moved.
    pub set_aside: Option<PathBuf>,
    /// Handles taken over from artifact files that the index did not know.
    pub n_taken_over: usize,
    /// Records and artifact files dropped because they do not verify or miss their other half.
    pub n_dropped: usize,
    /// Why earlier steps of the ladder failed, in order.
    pub failures: Vec<String>,
    /// Wall time of the open.
    pub elapsed: Duration,
}

/// Counters and sizes. Those marked *lifetime* survive a restart; a crash can lose the latest of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Handles that can be asked for.
    pub n_handles: u64,
    /// Artifacts behind them.
    pub n_artifacts: u64,
    /// Sum of the artifacts' sizes.
    pub artifact_bytes: u64,
    /// Lifetime: lookups that found a handle.
    pub n_hits: u64,
    /// Lifetime: lookups that found none.
    pub n_misses: u64,
    /// Lifetime: puts that became durable.
    pub n_puts: u64,
    /// Lifetime: records and artifacts dropped because they did not verify.
    pub n_damaged_dropped: u64,
    /// Since the open: flushes of the index. Concurrent puts share one.
    pub n_flushes: u64,
    /// Since the open: times the index had to be reopened or rebuilt while running.
    pub n_index_reopens: u64,
    /// Since the open: artifacts whose digest was checked.
    pub n_verified: u64,
}
