//! sled, as far as the store uses it: records by key, and the counters.
//!
//! sled's flush is `sync_file_range`, so every flush here is followed by an fsync of sled's one log file; a flush is
//! kept small (see [`crate::commit`]) and no record is large enough for sled to move it into a file that it never syncs.
//! sled can panic on damage: callers catch that and treat it as [`StoreError::Index`].

use std::{
    fs::File,
    io,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use piecewised_graph::Digest;

use crate::{
    StoreConfig, StoreError,
    counters::Totals,
    failures::{self, Remembered},
    layout::sync_dir,
    record::{Record, checksum_of},
};

const HANDLES: &str = "handles.1";
/// Artifacts' last uses.
const ACCESSED: &str = "accessed.1";
const FAILURES: &str = "failures.1";
const COUNTERS: &str = "counters.1";
const TOTALS: &str = "totals";
/// sled's log, where everything that we store is.
const LOG_NAME: &str = "db";

/// An open index.
#[derive(Debug)]
pub(crate) struct Index {
    db: sled::Db,
    handles: sled::Tree,
    failures: sled::Tree,
    accessed: sled::Tree,
    counters: sled::Tree,
    log: File,
    n_flushes: AtomicU64,
}

/// What a record says before its JSON.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) key: Digest,
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    pub(crate) stamp: u64,
    pub(crate) is_detached: bool,
}

/// All of an index, as read at its open.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) entries: Vec<Entry>,
    /// Keys, as stored, of what does not verify.
    pub(crate) damaged: Vec<Vec<u8>>,
    pub(crate) fingerprint: Fingerprint,
    /// `None`: one that does not verify.
    pub(crate) failures: Vec<(Vec<u8>, Option<Remembered>)>,
    /// Artifacts' last uses; `None`: it is none.
    pub(crate) accessed: Vec<(Vec<u8>, Option<u64>)>,
    pub(crate) totals: Totals,
}

/// Tells whether an index holds the same records as before: the sum of their checksums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fingerprint(u128);

impl Fingerprint {
    fn add(&mut self, record: &[u8]) {
        let checksum = checksum_of(record).map_or(1, u128::from_le_bytes);
        self.0 = self.0.wrapping_add(checksum);
    }

    pub(crate) fn text(self) -> String {
        format!("{:032x}", self.0)
    }
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
        let (handles, counters) = (db.open_tree(HANDLES)?, db.open_tree(COUNTERS)?);
        let (failures, accessed) = (db.open_tree(FAILURES)?, db.open_tree(ACCESSED)?);
        let log = File::open(path.join(LOG_NAME)).map_err(StoreError::io("open", path.join(LOG_NAME)))?;
        let index = Self { db, handles, failures, accessed, counters, log, n_flushes: AtomicU64::new(0) };
        index.flush()?;
        sync_dir(path)?;
        Ok(index)
    }

    /// Reads everything, so that damage shows now and not under a request.
    pub(crate) fn scan(&self) -> Result<Scan, StoreError> {
        let mut scan = Scan::default();
        for item in &self.handles {
            let (key, value) = item?;
            scan.fingerprint.add(&value);
            let decoded = Digest::from_slice(&key).ok().and_then(|key| Some((key, Record::decode(&key, &value)?)));
            let Some((key, Record { digest, size_bytes, stamp, json })) = decoded else {
                scan.damaged.push(key.to_vec());
                continue;
            };
            scan.entries.push(Entry { key, digest, size_bytes, stamp, is_detached: json.is_none() });
        }
        for item in &self.failures {
            let (key, value) = item?;
            scan.failures.push((key.to_vec(), failures::when(&key, &value)));
        }
        for item in &self.accessed {
            let (digest, value) = item?;
            scan.accessed.push((digest.to_vec(), value.as_ref().try_into().ok().map(u64::from_le_bytes)));
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

    pub(crate) fn put_record(&self, key: &Digest, record: &[u8]) -> Result<(), StoreError> {
        self.handles.insert(key.0, record)?;
        Ok(())
    }

    pub(crate) fn remove_record(&self, key: &[u8]) -> Result<(), StoreError> {
        self.handles.remove(key)?;
        Ok(())
    }

    pub(crate) fn failure(&self, key: &Digest) -> Result<Option<sled::IVec>, StoreError> {
        Ok(self.failures.get(key.0)?)
    }

    pub(crate) fn put_failure(&self, key: &Digest, failure: &[u8]) -> Result<(), StoreError> {
        self.failures.insert(key.0, failure)?;
        Ok(())
    }

    pub(crate) fn remove_failure(&self, key: &[u8]) -> Result<(), StoreError> {
        self.failures.remove(key)?;
        Ok(())
    }

    /// Goes to the disk with the next flush, as all that follow.
    pub(crate) fn put_accessed(&self, digest: &Digest, stamp: u64) -> Result<(), StoreError> {
        self.accessed.insert(digest.0, &stamp.to_le_bytes())?;
        Ok(())
    }

    pub(crate) fn remove_accessed(&self, digest: &[u8]) -> Result<(), StoreError> {
        self.accessed.remove(digest)?;
        Ok(())
    }

    /// Goes to the disk with the next flush, ours or sled's own.
    pub(crate) fn put_totals(&self, totals: Totals) -> Result<(), StoreError> {
        self.counters.insert(TOTALS, totals.map(u64::to_le_bytes).concat())?;
        Ok(())
    }

    /// What was written before survives a power cut when this returns.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.db.flush()?;
        self.n_flushes.fetch_add(1, Relaxed);
        self.log.sync_all().map_err(|error| sled::Error::Io(error).into())
    }

    pub(crate) fn n_flushes(&self) -> u64 {
        self.n_flushes.load(Relaxed)
    }
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> Self {
        use io::ErrorKind::{OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        use rustix::io::Errno;
        let reason = error.to_string();
        match error {
            sled::Error::Io(error)
                if matches!(
                    error.kind(),
                    OutOfMemory | PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull
                ) || [Errno::MFILE, Errno::NFILE]
                    .map(|errno| Some(errno.raw_os_error()))
                    .contains(&error.raw_os_error()) =>
            {
                Self::IndexRefused { reason }
            }
            _ => Self::Index { reason },
        }
    }
}
