//! The store's operations, blocking: one index, its catalogue, and the artifact files.
//!
//! Order of a write: file (temporary, fsync, rename, fsync of the folder), record, flush, fsync, and only then the
//! catalogue, from which everything is answered. A removal goes the other way round. At any moment in between, a crash
//! leaves either nothing or a whole file that the next open takes over.
//!
//! Locks, in this order: an artifact's lock (for everything that changes its file; held across the commit), the
//! commit's turn, the catalogue's. The last is never held while sled or a file is touched.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use piecewised_graph::{Digest, Handle};

use crate::{
    MAX_INDEX_VALUE_BYTES, StoreConfig, StoreError,
    blob::{Frame, MAX_HANDLE_BYTES},
    blobs::{Blobs, Check, Identity},
    catalogue::{Artifact, Catalogue},
    commit::Committer,
    counters::Counters,
    index::Index,
    layout::Layout,
    reader::Source,
    record::{Place, Record, parse_handle},
};

/// What outlives an index that had to be reopened.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: StoreConfig,
    pub(crate) layout: Layout,
    pub(crate) blobs: Blobs,
    pub(crate) counters: Counters,
    /// An artifact's lock is the one of its first byte.
    locks: [Mutex<()>; 256],
    last_stamp: AtomicU64,
}

impl Shared {
    pub(crate) fn new(config: StoreConfig, layout: Layout) -> Self {
        let blobs = Blobs::new(layout.clone());
        let locks = std::array::from_fn(|_| Mutex::new(()));
        Self { config, layout, blobs, counters: Counters::default(), locks, last_stamp: AtomicU64::new(0) }
    }

    fn lock(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        self.locks[usize::from(digest.0[0])].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unix time in nanoseconds, but always later than the last.
    fn stamp(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let before = self.last_stamp.fetch_max(now, Relaxed);
        if before < now { now } else { self.last_stamp.fetch_add(1, Relaxed) + 1 }
    }
}

/// A change of the index.
enum Op {
    Put { key: Digest, digest: Digest, size_bytes: u64, place: Place, record: Vec<u8>, artifact: Option<Bytes> },
    Remove { key: Digest, when: When },
}

/// Which record a removal is meant for, so that it never hits a newer one.
enum When {
    Always,
    Names(Digest),
    Undecodable,
}

/// What a change let go: an artifact that a key no longer names.
type Released = Option<(Digest, Place)>;

/// An open store.
#[derive(Debug)]
pub(crate) struct Engine {
    shared: Arc<Shared>,
    index: Index,
    catalogue: Mutex<Catalogue>,
    committer: Committer<Op, Released>,
}

impl Engine {
    pub(crate) fn new(shared: Arc<Shared>, index: Index, catalogue: Catalogue) -> Self {
        Self { shared, index, catalogue: Mutex::new(catalogue), committer: Committer::new() }
    }

    pub(crate) fn catalogue(&self) -> MutexGuard<'_, Catalogue> {
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner)
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
            let Some((digest, _)) = self.catalogue().key(key) else { return Ok(None) };
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
            if record.place == Place::File && !self.shared.blobs.looks_whole(&digest, record.size_bytes) {
                self.drop_artifact(&digest, self.shared.blobs.identity(&digest))?;
                return Ok(None);
            }
            let handle = self.handle(key, &record)?;
            if handle.is_none() {
                self.drop_record(key, When::Names(digest))?;
            }
            return Ok(handle);
        }
        Ok(None)
    }

    /// The record's handle; `None`: it is damaged.
    fn handle(&self, key: &Digest, record: &Record<'_>) -> Result<Option<Handle>, StoreError> {
        let json = self.json(key, record)?;
        Ok(json.and_then(|json| parse_handle(key, &record.digest, record.size_bytes, &json)))
    }

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

        let config = &self.shared.config;
        let is_short = json.len() <= MAX_INDEX_VALUE_BYTES;
        let threshold = config.inline_threshold_bytes.min(MAX_INDEX_VALUE_BYTES);
        let is_small = threshold > 0 && artifact.len() <= threshold;
        let place = if is_short && is_small { Place::Index } else { Place::File };
        let record = Record { digest, size_bytes, place, json: is_short.then_some(&json[..]) }.encode(&key);

        let released = {
            let _lock = self.shared.lock(&digest);
            if self.holds(&key, &digest, &record, &json)? {
                return Ok(());
            }
            self.shared.layout.ensure_room(size_bytes + json.len() as u64, config.reserve_bytes)?;
            let in_index = (place == Place::Index).then(|| artifact.clone());
            if place == Place::File {
                self.put_file(&digest, artifact, Frame { key, stamp: self.shared.stamp(), json: Some(json) })?;
            }
            let n_bytes = record.len() + in_index.as_ref().map_or(0, Bytes::len);
            self.submit(Op::Put { key, digest, size_bytes, place, record, artifact: in_index }, n_bytes)?
        };
        Counters::add(&self.shared.counters.n_puts);
        self.collect(&key, released)
    }

    /// Whether exactly this is stored already, and whole.
    fn holds(&self, key: &Digest, digest: &Digest, record: &[u8], json: &[u8]) -> Result<bool, StoreError> {
        let Some((named, place)) = self.catalogue().key(key) else { return Ok(false) };
        if named != *digest || self.index.record(key)?.is_none_or(|found| found != record) {
            return Ok(false);
        }
        let Some(decoded) = Record::decode(key, record) else { return Ok(false) };
        match place {
            Place::Index => Ok(self.index.artifact(digest)?.is_some_and(|bytes| Digest::of(&bytes) == *digest)),
            Place::File => Ok(matches!(self.shared.blobs.check(digest, decoded.size_bytes)?, Check::Whole(_))
                && self.json(key, &decoded)?.is_some_and(|found| found == json)),
        }
    }

    /// Makes the artifact's file hold the artifact and `frame`. Under the artifact's lock.
    fn put_file(&self, digest: &Digest, artifact: &Bytes, frame: Frame) -> Result<(), StoreError> {
        let size_bytes = artifact.len() as u64;
        let known = self.catalogue().artifact(digest).cloned();
        let others = known.filter(|artifact| artifact.lies_in(Place::File));
        let Some(others) = others else {
            return self.shared.blobs.create(digest, artifact, &[frame]);
        };
        if let Check::Whole(_) = self.shared.blobs.check(digest, size_bytes)?
            && self.shared.blobs.append(digest, size_bytes, &frame)?
        {
            return Ok(());
        }
        let mut frames = vec![];
        for (other, _) in others.keys.iter().filter(|(other, place)| *other != frame.key && *place == Place::File) {
            if let Some(bytes) = self.index.record(other)?
                && let Some(record) = Record::decode(other, &bytes)
                && let Some(json) = self.json(other, &record)?
            {
                frames.push(Frame { key: *other, stamp: self.shared.stamp(), json: Some(json) });
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

    pub(crate) fn open_artifact(&self, digest: &Digest) -> Result<Option<Source>, StoreError> {
        let Some(artifact) = self.catalogue().artifact(digest).cloned() else { return Ok(None) };
        if artifact.lies_in(Place::File) {
            let identity = match self.shared.blobs.check(digest, artifact.size_bytes)? {
                Check::Whole(file) => return Ok(Some(Source::File(Arc::new(file), artifact.size_bytes))),
                Check::Damaged(identity) => identity,
            };
            self.drop_artifact(digest, identity)?;
        } else {
            match self.index.artifact(digest)? {
                Some(bytes) if Digest::of(&bytes) == *digest => {
                    return Ok(Some(Source::Memory(Bytes::copy_from_slice(&bytes))));
                }
                _ => self.drop_in_index(digest, &artifact)?,
            }
        }
        Ok(None)
    }

    /// Drops an artifact's file that does not verify, and the handles that take it from there. `identity` is the file
    /// that was judged: one that was written since stays.
    fn drop_artifact(&self, digest: &Digest, identity: Option<Identity>) -> Result<(), StoreError> {
        let _lock = self.shared.lock(digest);
        let Some(artifact) = self.catalogue().artifact(digest).cloned() else { return Ok(()) };
        if self.shared.blobs.identity(digest) != identity {
            return Ok(());
        }
        tracing::warn!(%digest, n_handles = artifact.keys.len(), "a damaged artifact is dropped");
        Counters::add(&self.shared.counters.n_damaged_dropped);
        for (key, _) in artifact.keys.iter().filter(|(_, place)| *place == Place::File) {
            self.submit(Op::Remove { key: *key, when: When::Names(*digest) }, 64)?;
        }
        self.shared.blobs.unlink(digest)
    }

    fn drop_in_index(&self, digest: &Digest, artifact: &Artifact) -> Result<(), StoreError> {
        let _lock = self.shared.lock(digest);
        if self.index.artifact(digest)?.is_some_and(|bytes| Digest::of(&bytes) == *digest) {
            return Ok(());
        }
        tracing::warn!(%digest, n_handles = artifact.keys.len(), "a damaged artifact is dropped");
        Counters::add(&self.shared.counters.n_damaged_dropped);
        for (key, _) in &artifact.keys {
            self.submit(Op::Remove { key: *key, when: When::Names(*digest) }, 64)?;
        }
        self.index.remove_artifact(&digest.0)
    }

    fn drop_record(&self, key: &Digest, when: When) -> Result<(), StoreError> {
        tracing::warn!(%key, "a damaged record is dropped");
        Counters::add(&self.shared.counters.n_damaged_dropped);
        let released = self.submit(Op::Remove { key: *key, when }, 64)?;
        self.collect(key, released)
    }

    /// Takes back the space of what `key` no longer names.
    fn collect(&self, key: &Digest, released: Released) -> Result<(), StoreError> {
        let Some((digest, place)) = released else { return Ok(()) };
        let _lock = self.shared.lock(&digest);
        let artifact = self.catalogue().artifact(&digest).cloned();
        let is_used = artifact.as_ref().is_some_and(|artifact| artifact.lies_in(place));
        match (place, artifact) {
            (Place::Index, _) if !is_used => self.index.remove_artifact(&digest.0),
            (Place::File, _) if !is_used => self.shared.blobs.unlink(&digest),
            (Place::File, Some(artifact)) if !artifact.keys.contains(&(*key, Place::File)) => {
                // So that a rebuild does not bring the handle back. Nothing more can be done in a file that is damaged
                // at its end; the next put of this artifact writes it anew.
                let frame = Frame { key: *key, stamp: self.shared.stamp(), json: None };
                self.shared.blobs.append(&digest, artifact.size_bytes, &frame).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn submit(&self, op: Op, n_bytes: usize) -> Result<Released, StoreError> {
        self.committer.submit(op, n_bytes, |ops| self.apply(ops))
    }

    fn apply(&self, ops: &[Op]) -> Result<Vec<Released>, StoreError> {
        let mut is_applied = Vec::with_capacity(ops.len());
        for op in ops {
            is_applied.push(match op {
                Op::Put { key, digest, record, artifact, .. } => {
                    if let Some(artifact) = artifact {
                        self.index.put_artifact(digest, artifact)?;
                    }
                    self.index.put_record(key, record)?;
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
            });
        }
        if let Some(totals) = self.shared.counters.due() {
            self.index.put_totals(totals)?;
        }
        self.index.flush()?;

        let mut catalogue = self.catalogue();
        let effects = ops.iter().zip(is_applied).map(|(op, is_applied)| match op {
            Op::Put { key, digest, size_bytes, place, .. } => catalogue.insert(*key, *digest, *size_bytes, *place),
            Op::Remove { key, .. } if is_applied => catalogue.remove(key),
            Op::Remove { .. } => None,
        });
        Ok(effects.collect())
    }

    /// Writes the counters and makes everything durable.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.index.put_totals(self.shared.counters.totals())?;
        self.index.flush()
    }
}
