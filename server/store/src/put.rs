//! Puts and removals.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use piecewised_graph::{Digest, Handle, Snapshot};
use serde::Serialize;

use crate::{
    StoreError,
    blob::{Frame, MAX_HANDLE_BYTES},
    blobs::Check,
    catalogue::disk_bytes,
    counters::Counters,
    engine::{Engine, Op, When},
    evict::Extent,
    record::Record,
};

/// What of a handle a put needs, checked.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) key: Digest,
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    json: Vec<u8>,
}

impl Prepared {
    /// Checks that the handle is the artifact's.
    pub(crate) fn new(handle: &Handle, artifact: &Bytes) -> Result<Self, StoreError> {
        let size_bytes = artifact.len() as u64;
        if size_bytes != handle.size_bytes {
            return Err(StoreError::SizeMismatch { expected: handle.size_bytes, found: size_bytes });
        }
        let digest = Digest::of(artifact);
        if digest != handle.digest {
            return Err(StoreError::DigestMismatch { expected: handle.digest, found: digest });
        }
        Self::unchecked(handle)
    }

    /// For a handle whose artifact is known to be the one that it names.
    pub(crate) fn unchecked(handle: &Handle) -> Result<Self, StoreError> {
        Self::described(handle.key, handle.digest, handle.size_bytes, handle)
    }

    /// For a snapshot whose description was made of its bytes.
    pub(crate) fn snapshot(snapshot: &Snapshot) -> Result<Self, StoreError> {
        Self::described(snapshot.key, snapshot.digest, snapshot.size_bytes, snapshot)
    }

    fn described(
        key: Digest,
        digest: Digest,
        size_bytes: u64,
        description: &impl Serialize,
    ) -> Result<Self, StoreError> {
        let json = serde_json::to_vec(description).map_err(|error| StoreError::Task { reason: error.to_string() })?;
        if json.len() > MAX_HANDLE_BYTES {
            return Err(StoreError::HandleTooLarge { key, n_bytes: json.len(), limit: MAX_HANDLE_BYTES });
        }
        Ok(Self { key, digest, size_bytes, json })
    }
}

impl Engine {
    /// Makes an artifact and its handle durable. Makes room first, and once more where it was not enough.
    pub(crate) fn put(&self, prepared: &Prepared, artifact: &Bytes) -> Result<(), StoreError> {
        let needed_bytes = self.needed_bytes(prepared);
        self.make_room(needed_bytes)?;
        match self.put_at(prepared, artifact, None) {
            Err(error @ StoreError::Full { .. }) => {
                if self.evict(Extent::Enough, || Ok(needed_bytes))? == 0 {
                    return Err(error);
                }
                self.put_at(prepared, artifact, None)
            }
            result => result,
        }
    }

    /// Makes an artifact durable that was held in memory since `stamp`, unless something else came under its key.
    pub(crate) fn put_held(&self, prepared: &Prepared, artifact: &Bytes, stamp: u64) -> Result<(), StoreError> {
        self.make_room(self.needed_bytes(prepared))?;
        self.put_at(prepared, artifact, Some(stamp))
    }

    /// What a put takes beside what is there.
    fn needed_bytes(&self, prepared: &Prepared) -> u64 {
        let whole = disk_bytes(prepared.size_bytes, 1);
        let is_known = self.catalogue().artifact(&prepared.digest).is_some();
        let is_there = if is_known { disk_bytes(prepared.size_bytes, 0) } else { 0 };
        whole - is_there + prepared.json.len() as u64
    }

    fn put_at(&self, prepared: &Prepared, artifact: &Bytes, held: Option<u64>) -> Result<(), StoreError> {
        let &Prepared { key, digest, size_bytes, ref json } = prepared;
        let released = {
            let _lock = self.shared.lock(&digest);
            if self.holds(&key, &digest, size_bytes, json)? {
                let mut held_artifacts = self.shared.held();
                if held.is_none_or(|stamp| held_artifacts.has(&key, stamp)) {
                    held_artifacts.remove(&key);
                }
                drop(held_artifacts);
                self.forget_failures(Some(key))?;
                self.catalogue().touch(&digest, self.shared.stamp());
                return Ok(());
            }
            let needed_bytes = size_bytes + json.len() as u64;
            self.shared.layout.ensure_room(needed_bytes, self.shared.config.reserve_bytes)?;
            let stamp = held.unwrap_or_else(|| self.shared.stamp());
            let record = Record::new(digest, size_bytes, stamp, json).encode(&key);
            self.put_file(&digest, artifact, Frame { key, stamp, json: Some(json.clone()) })?;
            let n_bytes = record.len();
            self.submit(Op::Put { key, digest, size_bytes, stamp, record, held: held.is_some() }, n_bytes)?
        };
        if released != Some(digest) {
            Counters::add(&self.shared.counters.n_puts);
        }
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
        self.settle_evictions()?;
        Ok(released.is_some())
    }

    /// Takes back the space of the artifact that `key` does not name, unless something else does; then its file notes
    /// that this key does not.
    pub(crate) fn collect(&self, key: &Digest, released: Option<Digest>) -> Result<(), StoreError> {
        let Some(digest) = released else { return Ok(()) };
        let _lock = self.shared.lock(&digest);
        let artifact = self.catalogue().artifact(&digest).cloned();
        let is_pinned = self.shared.programs().is_pinned(&digest);
        match artifact {
            Some(artifact) if artifact.keys.contains(key) => Ok(()),
            Some(artifact) if is_pinned || !artifact.keys.is_empty() => {
                let frame = Frame { key: *key, stamp: self.shared.stamp(), json: None };
                let noted = self.shared.blobs.append(&digest, artifact.size_bytes, &frame).map(drop);
                noted.inspect_err(|_| self.shared.is_untidy.store(true, Relaxed))
            }
            _ => self.unlink(&digest),
        }
    }

    /// Deletes the file of an artifact that nothing names, for good when it returns. Under the artifact's lock.
    pub(crate) fn unlink(&self, digest: &Digest) -> Result<(), StoreError> {
        let unlinked = self.shared.blobs.unlink(digest).inspect_err(|error| {
            tracing::warn!(%digest, %error, "cannot delete an artifact; the next start will");
            self.shared.is_untidy.store(true, Relaxed);
        });
        if unlinked.is_ok() {
            self.catalogue().forget(digest);
        }
        unlinked
    }
}
