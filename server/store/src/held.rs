//! Artifacts that could not be written, because the disk is full or fails: held in memory, and served, until they can be.
//!
//! Bounded: what was used least recently goes, and is compiled again when it is asked for.

use std::collections::HashMap;

use bytes::Bytes;
use piecewised_graph::{Digest, Handle};

/// What a handle counts for.
const HANDLE_BYTES: u64 = 4096;

#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) handle: Handle,
    pub(crate) artifact: Bytes,
    /// Since when: the stamp that its handle gets once it is written.
    pub(crate) stamp: u64,
    used: u64,
}

impl Item {
    fn n_bytes(&self) -> u64 {
        self.artifact.len() as u64 + HANDLE_BYTES
    }
}

#[derive(Debug, Default)]
pub(crate) struct Held {
    items: HashMap<Digest, Item>,
    n_bytes: u64,
    /// Counts uses.
    clock: u64,
    n_dropped: u64,
}

impl Held {
    /// Takes an artifact in, in place of what is held under its key, and lets others go for it. `false`: it is larger than
    /// all that may be held.
    pub(crate) fn insert(&mut self, handle: Handle, artifact: Bytes, stamp: u64, limit: u64) -> bool {
        self.clock += 1;
        let item = Item { handle, artifact, stamp, used: self.clock };
        if item.n_bytes() > limit {
            return false;
        }
        let key = item.handle.key;
        self.remove(&key);
        while self.n_bytes + item.n_bytes() > limit {
            let oldest = self.items.iter().min_by_key(|(_, item)| item.used);
            let Some(key) = oldest.map(|(key, _)| *key) else { break };
            tracing::warn!(%key, "an artifact that could not be written is given up for another; it will be compiled again");
            self.remove(&key);
            self.n_dropped += 1;
        }
        self.n_bytes += item.n_bytes();
        self.items.insert(key, item);
        true
    }

    pub(crate) fn get(&mut self, key: &Digest) -> Option<Handle> {
        self.clock += 1;
        let item = self.items.get_mut(key)?;
        item.used = self.clock;
        Some(item.handle.clone())
    }

    /// The bytes of an artifact.
    pub(crate) fn artifact(&mut self, digest: &Digest) -> Option<Bytes> {
        self.clock += 1;
        let item = self.items.values_mut().find(|item| item.handle.digest == *digest)?;
        item.used = self.clock;
        Some(item.artifact.clone())
    }

    /// Whether something is held under `key` since that stamp.
    pub(crate) fn has(&self, key: &Digest, stamp: u64) -> bool {
        self.items.get(key).is_some_and(|item| item.stamp == stamp)
    }

    /// Returns whether something was held under `key`.
    pub(crate) fn remove(&mut self, key: &Digest) -> bool {
        let removed = self.items.remove(key);
        self.n_bytes -= removed.as_ref().map_or(0, Item::n_bytes);
        removed.is_some()
    }

    /// The one that is held longest, of those held since a later stamp than this.
    pub(crate) fn next(&self, after: u64) -> Option<Item> {
        self.items.values().filter(|item| item.stamp > after).min_by_key(|item| item.stamp).cloned()
    }

    /// Gives everything up; returns how many there were.
    pub(crate) fn clear(&mut self) -> usize {
        let n = self.items.len();
        self.items.clear();
        self.n_bytes = 0;
        n
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    pub(crate) fn n_dropped(&self) -> u64 {
        self.n_dropped
    }
}
