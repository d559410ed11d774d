//! What an open found, and what a store has done: plain values for logs and metrics.

use std::{fmt, path::PathBuf, time::Duration};

/// How the store came up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OpenOutcome {
    /// There was no store; there is an empty one now.
    Fresh,
    /// The store that was there.
    Existing,
    /// The index opened after its snapshot was set aside.
    WithoutSnapshot,
    /// The index was damaged: set aside, and rebuilt from the artifact files.
    Rebuilt,
    /// The disk is full, or does not let the index be opened: until it does, nothing stored is found, and what is put is held
    /// in memory.
    #[default]
    Unavailable,
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
    /// Handles taken over from artifact files because the index did not know them, or knew older ones.
    pub n_taken_over: usize,
    /// Records and artifact files dropped because they do not verify, or because a record's artifact is missing.
    pub n_dropped: usize,
    /// Why earlier steps of the ladder failed, in order.
    pub failures: Vec<String>,
    /// Wall time of the open.
    pub elapsed: Duration,
}

impl fmt::Display for OpenReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.outcome {
            OpenOutcome::Fresh => write!(f, "new")?,
            OpenOutcome::Existing => write!(f, "as it was")?,
            OpenOutcome::WithoutSnapshot => write!(f, "index recovered without its snapshot")?,
            OpenOutcome::Rebuilt => write!(f, "index rebuilt from the artifacts")?,
            OpenOutcome::Unavailable => write!(f, "the index cannot be opened for now")?,
            OpenOutcome::ForeignFormat { found } => write!(f, "new, in place of one of format version {found}")?,
        }
        let megabytes = self.artifact_bytes as f64 / 1e6;
        write!(f, "; {} handles, {} artifacts, {megabytes:.1} MB", self.n_handles, self.n_artifacts)?;
        for (n, what) in [(self.n_taken_over, "taken over from files"), (self.n_dropped, "dropped as damaged")] {
            if n > 0 {
                write!(f, ", {n} {what}")?;
            }
        }
        if let Some(path) = &self.set_aside {
            write!(f, "; what could not be used is in {}", path.display())?;
        }
        for failure in &self.failures {
            write!(f, "; {failure}")?;
        }
        write!(f, " ({:.3} s)", self.elapsed.as_secs_f64())
    }
}

/// What became of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It survives a power cut.
    Durable,
    /// It could not be written, because the disk is full or fails: it is held in memory, served from there, and written
    /// once that is possible. It does not survive the end of the process.
    Held,
}

/// What artifacts may still take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreRoom {
    /// [`StoreConfig::max_bytes`](crate::StoreConfig::max_bytes).
    pub max_bytes: Option<u64>,
    /// [`StoreConfig::reserve_bytes`](crate::StoreConfig::reserve_bytes).
    pub reserve_bytes: u64,
    /// What the disk has free.
    pub available_bytes: u64,
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
    /// What they are taken to need on the disk; this is what [`StoreConfig::max_bytes`](crate::StoreConfig::max_bytes) bounds.
    pub disk_bytes: u64,
    /// The part of it that stored manifests name, or whose keys are pinned, and that is never evicted.
    pub pinned_bytes: u64,
    /// Stored manifests.
    pub n_manifests: u64,
    /// Failures that are remembered.
    pub n_failures: u64,
    /// Lifetime: lookups that found a handle.
    pub n_hits: u64,
    /// Lifetime: lookups that found none.
    pub n_misses: u64,
    /// Lifetime: puts that became durable.
    pub n_puts: u64,
    /// Lifetime: records and artifacts dropped because they did not verify.
    pub n_damaged_dropped: u64,
    /// Lifetime: artifacts evicted, for the budget or for free space.
    pub n_evicted: u64,
    /// Lifetime: sum of their sizes.
    pub evicted_bytes: u64,
    /// Whether the last write found no room.
    pub is_full: bool,
    /// Whether the last write failed otherwise: the disk is read-only, or broken.
    pub is_failing: bool,
    /// Artifacts that are held in memory because they could not be written.
    pub n_held: u64,
    /// What they take, each with some 4 KiB for its handle.
    pub held_bytes: u64,
    /// Since the open: artifacts held that were given up for others.
    pub n_held_dropped: u64,
    /// Since the open: flushes of the index. Concurrent puts share one.
    pub n_flushes: u64,
    /// Since the open: times the index had to be reopened or rebuilt while running.
    pub n_index_reopens: u64,
    /// Since the open: artifacts whose digest was checked.
    pub n_verified: u64,
}
