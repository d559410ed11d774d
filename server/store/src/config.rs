//! How a store is opened. No I/O.

use std::{path::PathBuf, time::Duration};

/// Where the store lies and what it may use.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The store's folder; created if absent.
    pub path: PathBuf,
    /// The most blocking operations at a time. Writes get at most half of them, so that reads never wait for the disk's
    /// syncs alone.
    pub gate_permits: usize,
    /// How long the index may take to open and be read through before it counts as damaged.
    pub open_timeout: Duration,
    /// The index's page cache.
    pub cache_bytes: u64,
    /// What the artifacts may take on the disk: each counts in whole blocks, and each of its handles as a block. `None`: what
    /// the disk has. Above 95 % of it, those used least recently are evicted in the background, down to 90 %; a put that
    /// would go beyond it makes room itself. Artifacts that a manifest names are never evicted.
    pub max_bytes: Option<u64>,
    /// Free space that no artifact may take, so that the index can still be written, and things removed, on a full disk.
    /// Where there is less, artifacts are evicted for it.
    pub reserve_bytes: u64,
    /// Whether artifacts may be evicted at all.
    pub may_evict: bool,
    /// How much of what cannot be written, because the disk is full or fails, is held in memory until it can; 0: none.
    pub max_held_bytes: u64,
    /// Whether the folder is made where there is none.
    pub create: bool,
    /// How long a failure is remembered; zero: never.
    pub failure_ttl: Duration,
    /// The most failures that are remembered.
    pub max_failures: usize,
}

impl StoreConfig {
    /// The defaults, at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            gate_permits: 16,
            open_timeout: Duration::from_secs(30),
            cache_bytes: 32 << 20,
            max_bytes: None,
            reserve_bytes: 64 << 20,
            may_evict: true,
            max_held_bytes: 256 << 20,
            create: true,
            failure_ttl: Duration::from_secs(3600),
            max_failures: 4096,
        }
    }
}
