//! sled, as far as the store uses it: records by key, small artifacts by digest, counters.
//!
//! sled's flush is `sync_file_range`, so every flush here is followed by an fsync of sled's one log file; a flush is
//! kept small (see [`crate::commit`]) and no value is large enough for sled to move it into a file that it never syncs.
//! sled can panic on damage: callers catch that and treat it as [`StoreError::Index`].

use std::{
    fs::File,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use piecewised_graph::Digest;

use crate::{
    StoreConfig, StoreError,
    layout::sync_dir,
    record::{Place, Record},
};

const HANDLES: &str = "handles.1";
const ARTIFACTS: &str = "artifacts.1";
const COUNTERS: &str = "counters.1";
const TOTALS: &str = "totals";
/// sled's log, where everything that we store is.
const LOG_NAME: &str = "db";

/// An open index.
#[derive(Debug)]
pub(crate) struct Index {
    db: sled::Db,
    handles: sled::Tree,
    artifacts: sled::Tree,
    counters: sled::Tree,
    log: File,
    n_flushes: AtomicU64,
}

/// All of an index, as read at its open.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Key, artifact's digest, its size, where it lies.
    pub(crate) handles: Vec<(Digest, Digest, u64, Place)>,
    /// Keys, as stored, of what does not verify.
    pub(crate) damaged_handles: Vec<Vec<u8>>,
    pub(crate) artifacts: Vec<Digest>,
    pub(crate) damaged_artifacts: Vec<Vec<u8>>,
    pub(crate) totals: [u64; 4],
}

impl Index {
    pub(crate) fn open(path: &Path, config: &StoreConfig) -> Result<Self, StoreError> {
        let db = sled::Config::new()
            .path(path)
            .cache_capacity(config.cache_bytes)
            .flush_every_ms(Some(500))
            .mode(sled::Mode::LowSpace)
            .use_compression(false)
            .open()?;
        let (handles, artifacts, counters) =
            (db.open_tree(HANDLES)?, db.open_tree(ARTIFACTS)?, db.open_tree(COUNTERS)?);
        let log = File::open(path.join(LOG_NAME)).map_err(StoreError::io("open", path.join(LOG_NAME)))?;
        let index = Self { db, handles, artifacts, counters, log, n_flushes: AtomicU64::new(0) };
        index.flush()?;
        sync_dir(path)?;
        Ok(index)
    }

    /// Reads everything, so that damage shows now and not under a request.
    pub(crate) fn scan(&self) -> Result<Scan, StoreError> {
        let mut scan = Scan::default();
        for item in &self.handles {
            let (key, value) = item?;
            let decoded = Digest::from_slice(&key).ok().and_then(|key| Some((key, Record::decode(&key, &value)?)));
            match decoded {
                Some((key, record)) => scan.handles.push((key, record.digest, record.size_bytes, record.place)),
                None => scan.damaged_handles.push(key.to_vec()),
            }
        }
        for item in &self.artifacts {
            let (digest, value) = item?;
            match Digest::from_slice(&digest) {
                Ok(digest) if Digest::of(&value) == digest => scan.artifacts.push(digest),
                _ => scan.damaged_artifacts.push(digest.to_vec()),
            }
        }
        if let Some(totals) = self.counters.get(TOTALS)? {
            for (total, bytes) in scan.totals.iter_mut().zip(totals.chunks_exact(8)) {
                *total = u64::from_le_bytes(bytes.try_into().expect("chunks of 8"));
            }
        }
        Ok(scan)
    }

    pub(crate) fn record(&self, key: &Digest) -> Result<Option<sled::IVec>, StoreError> {
        Ok(self.handles.get(key.0)?)
    }

    pub(crate) fn artifact(&self, digest: &Digest) -> Result<Option<sled::IVec>, StoreError> {
        Ok(self.artifacts.get(digest.0)?)
    }

    pub(crate) fn put_record(&self, key: &Digest, record: &[u8]) -> Result<(), StoreError> {
        self.handles.insert(key.0, record)?;
        Ok(())
    }

    pub(crate) fn put_artifact(&self, digest: &Digest, artifact: &[u8]) -> Result<(), StoreError> {
        self.artifacts.insert(digest.0, artifact)?;
        Ok(())
    }

    pub(crate) fn remove_record(&self, key: &[u8]) -> Result<(), StoreError> {
        self.handles.remove(key)?;
        Ok(())
    }

    pub(crate) fn remove_artifact(&self, digest: &[u8]) -> Result<(), StoreError> {
        self.artifacts.remove(digest)?;
        Ok(())
    }

    /// Goes to the disk with the next flush, ours or sled's own.
    pub(crate) fn put_totals(&self, totals: [u64; 4]) -> Result<(), StoreError> {
        self.counters.insert(TOTALS, totals.map(u64::to_le_bytes).concat())?;
        Ok(())
    }

    /// What was written before survives a power cut when this returns.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.db.flush()?;
        self.n_flushes.fetch_add(1, Relaxed);
        self.log.sync_all().map_err(|error| StoreError::Index { reason: format!("cannot sync its log: {error}") })
    }

    pub(crate) fn n_flushes(&self) -> u64 {
        self.n_flushes.load(Relaxed)
    }
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> Self {
        Self::Index { reason: error.to_string() }
    }
}
