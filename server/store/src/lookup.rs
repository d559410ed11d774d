//! Lookups and reads, and what is done with what they find damaged.

use std::fs::File;

use piecewised_graph::{Digest, Handle};

use crate::{
    StoreError,
    blobs::{Check, Identity},
    counters::Counters,
    engine::{Engine, Op, When},
    record::{Record, Stored},
};

impl Engine {
    pub(crate) fn get(&self, key: &Digest) -> Result<Option<Stored>, StoreError> {
        let found = self.look_up(key)?;
        let counters = &self.shared.counters;
        Counters::add(if found.is_some() { &counters.n_hits } else { &counters.n_misses });
        if let Some(totals) = counters.due() {
            self.index.put_totals(totals)?;
        }
        Ok(found)
    }

    /// A handle that was just looked up, without touching the index or a file.
    pub(crate) fn recent(&self, key: &Digest) -> Option<Handle> {
        let mut catalogue = self.catalogue();
        let handle = catalogue.recent.get(key)?.clone();
        catalogue.touch(&handle.digest, self.shared.stamp());
        drop(catalogue);
        Counters::add(&self.shared.counters.n_hits);
        Some(handle)
    }

    fn look_up(&self, key: &Digest) -> Result<Option<Stored>, StoreError> {
        // More than one round only while the key is being written.
        for _ in 0..8 {
            let (found, mark) = {
                let catalogue = self.catalogue();
                (catalogue.key(key), catalogue.recent.mark())
            };
            let Some(digest) = found else { return Ok(None) };
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
            let stored = json.and_then(|json| Stored::parse_of(key, &digest, record.size_bytes, &json));
            match &stored {
                Some(stored) => {
                    let mut catalogue = self.catalogue();
                    catalogue.touch(&digest, self.shared.stamp());
                    if let Stored::Handle(handle) = stored {
                        catalogue.recent.keep(mark, handle);
                    }
                }
                None => self.drop_record(key, When::Names(digest))?,
            }
            return Ok(stored);
        }
        Ok(None)
    }

    /// The handle's JSON form; `None`: it is lost.
    pub(crate) fn json(&self, key: &Digest, record: &Record<'_>) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(json) = record.json {
            return Ok(Some(json.to_vec()));
        }
        let described = self.shared.blobs.describe(&record.digest)?;
        Ok(described.and_then(|(_, mut tail)| tail.handles.remove(key)?.json))
    }

    /// The artifact's file, verified, and the artifact's size.
    pub(crate) fn open_artifact(&self, digest: &Digest) -> Result<Option<(File, u64)>, StoreError> {
        let Some(size_bytes) = self.catalogue().artifact(digest).map(|artifact| artifact.size_bytes) else {
            return Ok(None);
        };
        match self.shared.blobs.check(digest, size_bytes)? {
            Check::Whole(file) => {
                self.catalogue().touch(digest, self.shared.stamp());
                Ok(Some((file, size_bytes)))
            }
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
        self.unlink(digest)
    }

    fn drop_record(&self, key: &Digest, when: When) -> Result<(), StoreError> {
        tracing::warn!(%key, "a damaged record is dropped");
        Counters::add(&self.shared.counters.n_damaged_dropped);
        let released = self.submit(Op::Remove { key: *key, when }, 64)?;
        self.collect(key, released)
    }
}
