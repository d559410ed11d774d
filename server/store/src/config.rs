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
    /// Free space that no artifact may take, so that the index can still be written, and things removed, on a full disk.
    pub reserve_bytes: u64,
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
            reserve_bytes: 64 << 20,
            failure_ttl: Duration::from_secs(3600),
            max_failures: 4096,
        }
    }
}
