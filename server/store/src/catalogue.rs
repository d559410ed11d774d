//! What the store holds, in memory: which artifact each key names, which keys each artifact serves, and when it was last
//! wanted.
//!
//! It changes only after the change is durable, so what it names may be acknowledged. An artifact whose last key went
//! stays until its file went too, or as long as a manifest names it. Handles themselves stay in the index, but for those that were
//! just read ([`Recent`]); this is some 200 bytes per key.

use std::collections::HashMap;

use piecewised_graph::Digest;

use crate::{blob::HEADER_LEN, recent::Recent};

/// What a file system gives out space in.
const BLOCK_BYTES: u64 = 4096;

#[derive(Debug, Clone)]
pub(crate) struct Artifact {
    pub(crate) size_bytes: u64,
    /// The keys that name it. None: a manifest does, or its file is about to go.
    pub(crate) keys: Vec<Digest>,
    /// The stamp of its last use.
    pub(crate) accessed: u64,
    /// The last use that the index knows; 0: none.
    saved: u64,
}

impl Artifact {
    /// The disk space that it is taken to need.
    pub(crate) fn disk_bytes(&self) -> u64 {
        disk_bytes(self.size_bytes, self.keys.len())
    }
}

/// What an artifact counts for: whole blocks for its bytes, and one for each handle. Known without asking the file system
/// for each file, and seldom less than what it really takes.
pub(crate) fn disk_bytes(size_bytes: u64, n_keys: usize) -> u64 {
    (size_bytes + HEADER_LEN as u64).next_multiple_of(BLOCK_BYTES) + n_keys as u64 * BLOCK_BYTES
}

#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    keys: HashMap<Digest, Digest>,
    artifacts: HashMap<Digest, Artifact>,
    artifact_bytes: u64,
    disk_bytes: u64,
    /// Artifacts that went, whose last use is still in the index.
    stale: Vec<Digest>,
    pub(crate) recent: Recent,
}

impl Catalogue {
    /// The artifact that `key` names.
    pub(crate) fn key(&self, key: &Digest) -> Option<Digest> {
        self.keys.get(key).copied()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Digest> {
        self.keys.keys()
    }

    pub(crate) fn artifact(&self, digest: &Digest) -> Option<&Artifact> {
        self.artifacts.get(digest)
    }

    pub(crate) fn artifacts(&self) -> impl Iterator<Item = (&Digest, &Artifact)> {
        self.artifacts.iter()
    }

    /// Lets `key` name an artifact, which counts as used at `stamp`; returns the one that it named before, if that was
    /// another.
    pub(crate) fn insert(&mut self, key: Digest, digest: Digest, size_bytes: u64, stamp: u64) -> Option<Digest> {
        self.recent.forget(&key);
        if self.key(&key) == Some(digest) {
            self.touch(&digest, stamp);
            return None;
        }
        let before = self.remove(&key);
        self.keys.insert(key, digest);
        self.adopt(digest, size_bytes, stamp);
        if let Some(artifact) = self.artifacts.get_mut(&digest) {
            artifact.keys.push(key);
            self.disk_bytes += BLOCK_BYTES;
        }
        before
    }

    /// Takes an artifact in, whoever names it.
    pub(crate) fn adopt(&mut self, digest: Digest, size_bytes: u64, stamp: u64) {
        self.artifacts.entry(digest).or_insert_with(|| {
            self.artifact_bytes += size_bytes;
            self.disk_bytes += disk_bytes(size_bytes, 0);
            Artifact { size_bytes, keys: Vec::new(), accessed: 0, saved: 0 }
        });
        self.touch(&digest, stamp);
    }

    /// Forgets `key`; returns the artifact that it named, which stays until [`Catalogue::forget`].
    pub(crate) fn remove(&mut self, key: &Digest) -> Option<Digest> {
        self.recent.forget(key);
        let digest = self.keys.remove(key)?;
        if let Some(artifact) = self.artifacts.get_mut(&digest) {
            artifact.keys.retain(|found| found != key);
            self.disk_bytes -= BLOCK_BYTES;
        }
        Some(digest)
    }

    /// Forgets an artifact that no key names.
    pub(crate) fn forget(&mut self, digest: &Digest) {
        if self.artifacts.get(digest).is_some_and(|artifact| artifact.keys.is_empty())
            && let Some(artifact) = self.artifacts.remove(digest)
        {
            self.artifact_bytes -= artifact.size_bytes;
            self.disk_bytes -= artifact.disk_bytes();
            if artifact.saved > 0 {
                self.stale.push(*digest);
            }
        }
    }

    pub(crate) fn touch(&mut self, digest: &Digest, stamp: u64) {
        if let Some(artifact) = self.artifacts.get_mut(digest) {
            artifact.accessed = artifact.accessed.max(stamp);
        }
    }

    /// Sets the last use to what the index knows. `false`: there is no such artifact.
    pub(crate) fn restore_access(&mut self, digest: &Digest, accessed: u64) -> bool {
        match self.artifacts.get_mut(digest) {
            Some(artifact) => {
                artifact.accessed = artifact.accessed.max(accessed);
                artifact.saved = accessed;
                true
            }
            None => false,
        }
    }

    /// Up to `n` uses that the index does not know and that are more than `apart` stamps later than what it knows.
    pub(crate) fn unsaved(&self, apart: u64, n: usize) -> Vec<(Digest, u64)> {
        let is_due = |artifact: &Artifact| artifact.accessed > artifact.saved.saturating_add(apart);
        let due = self.artifacts.iter().filter(|(_, artifact)| is_due(artifact));
        due.map(|(digest, artifact)| (*digest, artifact.accessed)).take(n).collect()
    }

    pub(crate) fn saved(&mut self, uses: &[(Digest, u64)]) {
        for (digest, accessed) in uses {
            match self.artifacts.get_mut(digest) {
                Some(artifact) => artifact.saved = *accessed,
                None => self.stale.push(*digest),
            }
        }
    }

    /// Up to `n` artifacts that are gone and whose last use the index still knows.
    pub(crate) fn take_stale(&mut self, n: usize) -> Vec<Digest> {
        let at = self.stale.len().saturating_sub(n);
        let taken = self.stale.split_off(at);
        taken.into_iter().filter(|digest| !self.artifacts.contains_key(digest)).collect()
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

    pub(crate) fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }
}
