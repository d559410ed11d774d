//! What the store holds, in memory: which artifact each key names, and which keys each artifact serves.
//!
//! It changes only after the change is durable, so what it names may be acknowledged. Handles themselves stay in the
//! index; this is some 250 bytes per key.

use std::collections::{HashMap, hash_map::Entry};

use piecewised_graph::Digest;

use crate::record::Place;

#[derive(Debug, Clone)]
pub(crate) struct Artifact {
    pub(crate) size_bytes: u64,
    /// The keys that name it, and where each takes it from: the threshold may have changed between two puts.
    pub(crate) keys: Vec<(Digest, Place)>,
}

impl Artifact {
    pub(crate) fn lies_in(&self, place: Place) -> bool {
        self.keys.iter().any(|(_, found)| *found == place)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    keys: HashMap<Digest, (Digest, Place)>,
    artifacts: HashMap<Digest, Artifact>,
    artifact_bytes: u64,
}

impl Catalogue {
    /// The artifact that `key` names, and where it lies.
    pub(crate) fn key(&self, key: &Digest) -> Option<(Digest, Place)> {
        self.keys.get(key).copied()
    }

    pub(crate) fn artifact(&self, digest: &Digest) -> Option<&Artifact> {
        self.artifacts.get(digest)
    }

    /// Lets `key` name an artifact; returns what it named before, if that was something else.
    pub(crate) fn insert(
        &mut self,
        key: Digest,
        digest: Digest,
        size_bytes: u64,
        place: Place,
    ) -> Option<(Digest, Place)> {
        if self.key(&key) == Some((digest, place)) {
            return None;
        }
        let before = self.remove(&key);
        self.keys.insert(key, (digest, place));
        let artifact = self.artifacts.entry(digest).or_insert_with(|| {
            self.artifact_bytes += size_bytes;
            Artifact { size_bytes, keys: Vec::new() }
        });
        artifact.keys.push((key, place));
        before
    }

    /// Forgets `key`; returns what it named.
    pub(crate) fn remove(&mut self, key: &Digest) -> Option<(Digest, Place)> {
        let (digest, place) = self.keys.remove(key)?;
        if let Entry::Occupied(mut entry) = self.artifacts.entry(digest) {
            entry.get_mut().keys.retain(|(found, _)| found != key);
            if entry.get().keys.is_empty() {
                self.artifact_bytes -= entry.remove().size_bytes;
            }
        }
        Some((digest, place))
    }

    pub(crate) fn n_handles(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn n_artifacts(&self) -> usize {
        self.artifacts.len()
    }

    pub(crate) fn artifact_bytes(&self) -> u64 {
        self.artifact_bytes
    }
}
