//! How a store is opened. No I/O.

use std::{path::PathBuf, time::Duration};

/// The largest value that goes into the index, in bytes: handles above it are kept in their artifact's file, artifacts
/// above it are files. sled writes a leaf of up to 20 records as one item and moves items above 128 KiB into files that
/// it never syncs, so a leaf must stay below that.
pub const MAX_INDEX_VALUE_BYTES: usize = 4096;

/// Where the store lies and what it may use.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The store's folder; created if absent.
    pub path: PathBuf,
    /// Artifacts up to this size lie in the index itself, larger ones in files; 0: all in files; at most
    /// [`MAX_INDEX_VALUE_BYTES`].
    pub inline_threshold_bytes: usize,
    /// The most blocking operations at a time. Writes get at most half of them, so that reads never wait for the disk's
    /// syncs alone.
    pub gate_permits: usize,
    /// How long the index may take to open and be read through before it counts as damaged.
    pub open_timeout: Duration,
    /// The index's page cache.
    pub cache_bytes: u64,
    /// Free space that no artifact may take, so that the index can still be written, and things removed, on a full disk.
    pub reserve_bytes: u64,
}

impl StoreConfig {
    /// The defaults, at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            inline_threshold_bytes: 4096,
            gate_permits: 16,
            open_timeout: Duration::from_secs(30),
            cache_bytes: 32 << 20,
            reserve_bytes: 64 << 20,
        }
    }
}
