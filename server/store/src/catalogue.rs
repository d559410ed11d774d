//! What the store holds, in memory: which artifact each key names, and which keys each artifact serves.
//!
//! It changes only after the change is durable, so what it names may be acknowledged. Handles themselves stay in the
//! index; this is some 200 bytes per key.

use std::collections::{HashMap, hash_map::Entry};

use piecewised_graph::Digest;

#[derive(Debug, Clone)]
pub(crate) struct Artifact {
    pub(crate) size_bytes: u64,
    /// The keys that name it, at least one.
    pub(crate) keys: Vec<Digest>,
}

#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    keys: HashMap<Digest, Digest>,
    artifacts: HashMap<Digest, Artifact>,
    artifact_bytes: u64,
}

impl Catalogue {
    /// The artifact that `key` names.
    pub(crate) fn key(&self, key: &Digest) -> Option<Digest> {
        self.keys.get(key).copied()
    }

    pub(crate) fn artifact(&self, digest: &Digest) -> Option<&Artifact> {
        self.artifacts.get(digest)
    }

    /// Lets `key` name an artifact; returns the one that it named before, if that was another.
    pub(crate) fn insert(&mut self, key: Digest, digest: Digest, size_bytes: u64) -> Option<Digest> {
        if self.key(&key) == Some(digest) {
            return None;
        }
        let before = self.remove(&key);
        self.keys.insert(key, digest);
        let artifact = self.artifacts.entry(digest).or_insert_with(|| {
            self.artifact_bytes += size_bytes;
            Artifact { size_bytes, keys: Vec::new() }
        });
        artifact.keys.push(key);
        before
    }

    /// Forgets `key`; returns the artifact that it named.
    pub(crate) fn remove(&mut self, key: &Digest) -> Option<Digest> {
        let digest = self.keys.remove(key)?;
        if let Entry::Occupied(mut entry) = self.artifacts.entry(digest) {
            entry.get_mut().keys.retain(|found| found != key);
            if entry.get().keys.is_empty() {
                self.artifact_bytes -= entry.remove().size_bytes;
            }
        }
        Some(digest)
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
