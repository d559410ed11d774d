//! The manifests there are, in memory, and the artifacts that they pin.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use piecewised_graph::{Digest, ProgramName};

/// What is known of a stored manifest without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestInfo {
    /// Its program.
    pub program: ProgramName,
    /// Pieces of the program.
    pub n_pieces: usize,
    /// Artifacts that it names, each counted once.
    pub n_artifacts: usize,
    /// When it was committed first: Unix time in milliseconds.
    pub created_unix_ms: u64,
}

#[derive(Debug)]
struct Program {
    info: ManifestInfo,
    artifacts: BTreeSet<Digest>,
}

/// All of a store's programs. Pins are counted apart from them, because a manifest's artifacts are pinned before it is
/// written and until the one in its place is.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    by_name: BTreeMap<ProgramName, Program>,
    pins: HashMap<Digest, usize>,
}

impl Programs {
    pub(crate) fn is_pinned(&self, artifact: &Digest) -> bool {
        self.pins.contains_key(artifact)
    }

    pub(crate) fn pin(&mut self, artifact: Digest) {
        *self.pins.entry(artifact).or_default() += 1;
    }

    /// Returns whether it is still pinned, by another manifest.
    pub(crate) fn unpin(&mut self, artifact: &Digest) -> bool {
        match self.pins.get_mut(artifact) {
            Some(n) if *n > 1 => {
                *n -= 1;
                true
            }
            _ => {
                self.pins.remove(artifact);
                false
            }
        }
    }

    pub(crate) fn pinned(&self) -> impl Iterator<Item = &Digest> {
        self.pins.keys()
    }

    /// Enters a manifest whose artifacts are pinned; returns what the one in its place had pinned.
    pub(crate) fn insert(&mut self, info: ManifestInfo, artifacts: BTreeSet<Digest>) -> BTreeSet<Digest> {
        let before = self.by_name.insert(info.program.clone(), Program { info, artifacts });
        before.map(|program| program.artifacts).unwrap_or_default()
    }

    /// Takes a manifest out; returns what it had pinned, and still does.
    pub(crate) fn remove(&mut self, program: &ProgramName) -> Option<BTreeSet<Digest>> {
        self.by_name.remove(program).map(|program| program.artifacts)
    }

    pub(crate) fn list(&self) -> Vec<ManifestInfo> {
        self.by_name.values().map(|program| program.info.clone()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }
}
