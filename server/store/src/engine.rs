//! The store's operations, blocking: one index, its catalogue, and the artifact files.
//!
//! Order of a write: file (temporary, fsync, rename, fsync of the folder), record, flush, fsync, and only then the
//! catalogue, from which everything is answered. A removal goes the other way round. At any moment in between, a crash
//! leaves either nothing or a whole file that the next open takes over.
//!
//! Locks, in this order: an artifact's lock (for everything that changes its file; held across the commit), the
//! commit's turn, the catalogue's, the failures'. The last two are never held while sled or a file is touched.

use std::{
    fs::File,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use piecewised_graph::{Digest, Handle};

use crate::{
    StoreConfig, StoreError,
    blob::{Frame, MAX_HANDLE_BYTES},
    blobs::{Blobs, Check, Identity},
    catalogue::Catalogue,
    commit::Committer,
    counters::Counters,
    failures::{Failures, Remembered},
    index::{Fingerprint, Index},
    layout::Layout,
    record::{Record, parse_handle},
};

/// What outlives an index that had to be reopened.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: StoreConfig,
    pub(crate) layout: Layout,
    pub(crate) blobs: Blobs,
    pub(crate) counters: Counters,
    /// A file could not be brought into line with the index: the next open has to look at all of them.
    pub(crate) is_untidy: AtomicBool,
    /// An artifact's lock is the one of its first byte.
    locks: [Mutex<()>; 256],
    last_stamp: AtomicU64,
}

impl Shared {
    pub(crate) fn new(config: StoreConfig, layout: Layout) -> Self {
        Self {
            blobs: Blobs::new(layout.clone()),
            config,
            layout,
            counters: Counters::default(),
            is_untidy: AtomicBool::new(false),
            locks: std::array::from_fn(|_| Mutex::new(())),
            last_stamp: AtomicU64::new(0),
        }
    }

    fn lock(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        self.locks[usize::from(digest.0[0])].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unix time in nanoseconds, but always later than any before.
    pub(crate) fn stamp(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let next = |last: u64| Some(now.max(last.saturating_add(1)));
        match self.last_stamp.fetch_update(Relaxed, Relaxed, next) {
            Ok(last) | Err(last) => now.max(last.saturating_add(1)),
        }
    }

    /// Makes later stamps later than this one, whatever the clock says.
    pub(crate) fn saw_stamp(&self, stamp: u64) {
        self.last_stamp.fetch_max(stamp, Relaxed);
    }
}

/// A change of the index.
pub(crate) enum Op {
    Put { key: Digest, digest: Digest, size_bytes: u64, record: Vec<u8> },
    Remove { key: Digest, when: When },
    Fail { key: Digest, failure: Vec<u8>, remembered: Remembered },
    Forget { keys: Vec<Digest> },
}

/// Which record a removal is meant for, so that it never hits a newer one.
pub(crate) enum When {
    Always,
    Names(Digest),
    Undecodable,
}

/// An open store.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) index: Index,
    catalogue: Mutex<Catalogue>,
    failures: Mutex<Failures>,
    /// The effect of a change is the artifact that its key no longer names.
    committer: Committer<Op, Option<Digest>>,
}

impl Engine {
    pub(crate) fn new(shared: Arc<Shared>, index: Index, catalogue: Catalogue, failures: Failures) -> Self {
        let (catalogue, failures) = (Mutex::new(catalogue), Mutex::new(failures));
        Self { shared, index, catalogue, failures, committer: Committer::new() }
    }

    pub(crate) fn catalogue(&self) -> MutexGuard<'_, Catalogue> {
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn n_flushes(&self) -> u64 {
        self.index.n_flushes()
    }

    pub(crate) fn get(&self, key: &Digest) -> Result<Option<Handle>, StoreError> {
        let found = self.look_up(key)?;
        let counters = &self.shared.counters;
        Counters::add(if found.is_some() { &counters.n_hits } else { &counters.n_misses });
        if let Some(totals) = counters.due() {
            self.index.put_totals(totals)?;
        }
        Ok(found)
    }

    fn look_up(&self, key: &Digest) -> Result<Option<Handle>, StoreError> {
        // More than one round only while the key is being written.
        for _ in 0..8 {
            let Some(digest) = self.catalogue().key(key) else { return Ok(None) };
            let Some(bytes) = self.index.record(key)? else {
                self.committer.settle();
                continue;
            };
            let Some(record) = Record::decode(key, &bytes) else {
                self.drop_record(key, When::Undecodable)?;
                return Ok(None);
            };
            if record.digest != digest {
                self.committer.settle();
                continue;
            }
            if !self.shared.blobs.looks_whole(&digest, record.size_bytes) {
                self.drop_artifact(&digest, self.shared.blobs.identity(&digest))?;
                return Ok(None);
            }
            let json = self.json(key, &record)?;
            let handle = json.and_then(|json| parse_handle(key, &digest, record.size_bytes, &json));
            if handle.is_none() {
                self.drop_record(key, When::Names(digest))?;
            }
            return Ok(handle);
        }
        Ok(None)
    }

    /// The handle's JSON form; `None`: it is lost.
    fn json(&self, key: &Digest, record: &Record<'_>) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(json) = record.json {
            return Ok(Some(json.to_vec()));
        }
        let described = self.shared.blobs.describe(&record.digest)?;
        Ok(described.and_then(|(_, mut tail)| tail.handles.remove(key)?.json))
    }

    pub(crate) fn put(&self, handle: &Handle, artifact: &Bytes) -> Result<(), StoreError> {
        let size_bytes = artifact.len() as u64;
        if size_bytes != handle.size_bytes {
            return Err(StoreError::SizeMismatch { expected: handle.size_bytes, found: size_bytes });
        }
        let digest = Digest::of(artifact);
        if digest != handle.digest {
            return Err(StoreError::DigestMismatch { expected: handle.digest, found: digest });
        }
        let key = handle.key;
        let json = serde_json::to_vec(handle).map_err(|error| StoreError::Task { reason: error.to_string() })?;
        if json.len() > MAX_HANDLE_BYTES {
            return Err(StoreError::HandleTooLarge { key, n_bytes: json.len(), limit: MAX_HANDLE_BYTES });
        }

        let released = {
            let _lock = self.shared.lock(&digest);
            if self.holds(&key, &digest, size_bytes, &json)? {
                return Ok(());
            }
            let needed_bytes = size_bytes + json.len() as u64;
            self.shared.layout.ensure_room(needed_bytes, self.shared.config.reserve_bytes)?;
            let stamp = self.shared.stamp();
            let record = Record::new(digest, size_bytes, stamp, &json).encode(&key);
            self.put_file(&digest, artifact, Frame { key, stamp, json: Some(json) })?;
            let n_bytes = record.len();
            self.submit(Op::Put { key, digest, size_bytes, record }, n_bytes)?
        };
        Counters::add(&self.shared.counters.n_puts);
        if let Err(error) = self.collect(&key, released) {
            // The put itself is done.
            tracing::warn!(%key, %error, "cannot take back the space of a replaced artifact");
        }
        Ok(())
    }

    /// Whether exactly this is stored already, and whole.
    fn holds(&self, key: &Digest, digest: &Digest, size_bytes: u64, json: &[u8]) -> Result<bool, StoreError> {
        if self.catalogue().key(key) != Some(*digest) {
            return Ok(false);
        }
        let Some(bytes) = self.index.record(key)? else { return Ok(false) };
        let Some(record) = Record::decode(key, &bytes) else { return Ok(false) };
        Ok(record.digest == *digest
            && matches!(self.shared.blobs.check(digest, size_bytes)?, Check::Whole(_))
            && self.json(key, &record)?.is_some_and(|found| found == json))
    }

    /// Makes the artifact's file hold the artifact and `frame`. Under the artifact's lock.
    fn put_file(&self, digest: &Digest, artifact: &Bytes, frame: Frame) -> Result<(), StoreError> {
        let size_bytes = artifact.len() as u64;
        let Some(known) = self.catalogue().artifact(digest).cloned() else {
            return self.shared.blobs.create(digest, artifact, &[frame]);
        };
        if let Check::Whole(_) = self.shared.blobs.check(digest, size_bytes)?
            && self.shared.blobs.append(digest, size_bytes, &frame)?
        {
            return Ok(());
        }
        let mut frames = Vec::new();
        for other in known.keys.iter().filter(|other| **other != frame.key) {
            if let Some(bytes) = self.index.record(other)?
                && let Some(record) = Record::decode(other, &bytes)
                && let Some(json) = self.json(other, &record)?
            {
                frames.push(Frame { key: *other, stamp: record.stamp, json: Some(json) });
            }
        }
        frames.push(frame);
        self.shared.blobs.create(digest, artifact, &frames)
    }

    pub(crate) fn remove(&self, key: &Digest) -> Result<bool, StoreError> {
        let released = self.submit(Op::Remove { key: *key, when: When::Always }, 64)?;
        self.collect(key, released)?;
        Ok(released.is_some())
    }

    /// The artifact's file, verified, and the artifact's size.
    pub(crate) fn open_artifact(&self, digest: &Digest) -> Result<Option<(File, u64)>, StoreError> {
        let Some(size_bytes) = self.catalogue().artifact(digest).map(|artifact| artifact.size_bytes) else {
            return Ok(None);
        };
        match self.shared.blobs.check(digest, size_bytes)? {
            Check::Whole(file) => Ok(Some((file, size_bytes))),
            Check::Damaged(identity) => {
                self.drop_artifact(digest, identity)?;
                Ok(None)
            }
        }
    }

    /// Drops an artifact that does not verify, and its handles. `identity` is the file that was judged: one that was
    /// written since stays.
    fn drop_artifact(&self, digest: &Digest, identity: Option<Identity>) -> Result<(), StoreError> {
        let _lock = self.shared.lock(digest);
        let Some(artifact) = self.catalogue().artifact(digest).cloned() else { return Ok(()) };
        if self.shared.blobs.identity(digest) != identity {
            return Ok(());
        }
        tracing::warn!(%digest, n_handles = artifact.keys.len(), "a damaged artifact is dropped");
        Counters::add(&self.shared.counters.n_damaged_dropped);
        for key in artifact.keys {
            self.submit(Op::Remove { key, when: When::Names(*digest) }, 64)?;
        }
        self.shared.blobs.unlink(digest)
    }

    fn drop_record(&self, key: &Digest, when: When) -> Result<(), StoreError> {
        tracing::warn!(%key, "a damaged record is dropped");
        Counters::add(&self.shared.counters.n_damaged_dropped);
        let released = self.submit(Op::Remove { key: *key, when }, 64)?;
        self.collect(key, released)
    }

    /// Takes back the space of the artifact that `key` no longer names, or notes in its file that it does not.
    fn collect(&self, key: &Digest, released: Option<Digest>) -> Result<(), StoreError> {
        let Some(digest) = released else { return Ok(()) };
        let _lock = self.shared.lock(&digest);
        let artifact = self.catalogue().artifact(&digest).cloned();
        let result = match artifact {
            None => self.shared.blobs.unlink(&digest),
            Some(artifact) if artifact.keys.contains(key) => Ok(()),
            Some(artifact) => {
                let frame = Frame { key: *key, stamp: self.shared.stamp(), json: None };
                self.shared.blobs.append(&digest, artifact.size_bytes, &frame).map(drop)
            }
        };
        if result.is_err() {
            self.shared.is_untidy.store(true, Relaxed);
        }
        result
    }

    pub(crate) fn submit(&self, op: Op, n_bytes: usize) -> Result<Option<Digest>, StoreError> {
        self.committer.submit(op, n_bytes, |ops| self.apply(ops))
    }

    fn apply(&self, ops: &[Op]) -> Result<Vec<Option<Digest>>, StoreError> {
        let mut is_applied = Vec::with_capacity(ops.len());
        for op in ops {
            is_applied.push(match op {
                Op::Put { key, record, .. } => {
                    self.index.put_record(key, record)?;
                    self.index.remove_failure(&key.0)?;
                    true
                }
                Op::Remove { key, when } => {
                    let found = self.index.record(key)?;
                    let is_meant = found.is_some_and(|bytes| match (when, Record::decode(key, &bytes)) {
                        (When::Always, _) | (When::Undecodable, None) => true,
                        (When::Names(digest), Some(record)) => record.digest == *digest,
                        _ => false,
                    });
                    if is_meant {
                        self.index.remove_record(&key.0)?;
                    }
                    is_meant
                }
                Op::Fail { key, failure, .. } => {
                    self.index.put_failure(key, failure)?;
                    true
                }
                Op::Forget { keys } => {
                    keys.iter().try_for_each(|key| self.index.remove_failure(&key.0))?;
                    true
                }
            });
        }
        if let Some(totals) = self.shared.counters.due() {
            self.index.put_totals(totals)?;
        }
        self.index.flush()?;

        let (mut catalogue, mut failures) = (self.catalogue(), self.failures());
        let effects = ops.iter().zip(is_applied).map(|(op, is_applied)| match op {
            Op::Put { key, digest, size_bytes, .. } => {
                failures.remove(key);
                catalogue.insert(*key, *digest, *size_bytes)
            }
            Op::Remove { key, .. } if is_applied => catalogue.remove(key),
            Op::Remove { .. } => None,
            Op::Fail { key, remembered, .. } => {
                failures.insert(*key, *remembered);
                None
            }
            Op::Forget { keys } => {
                keys.iter().for_each(|key| failures.remove(key));
                None
            }
        });
        Ok(effects.collect())
    }

    /// Makes everything durable, the counters too; returns what tells this state of the index.
    pub(crate) fn finish(&self) -> Result<Fingerprint, StoreError> {
        self.index.put_totals(self.shared.counters.totals())?;
        self.index.flush()?;
        Ok(self.index.scan()?.fingerprint)
    }
}
