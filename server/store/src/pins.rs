//! Keys that an operator pinned: what is stored under them is not evicted, whatever artifact that is.
//!
//! All of them in one note, written whole, so that they outlive a lost index. A pin is the key's and not the artifact's: it holds for what is stored under
//! the key later, too. Whoever removes a key on purpose takes its pin back.

use std::{collections::BTreeSet, fs};

use piecewised_graph::Digest;

use crate::{
    StoreError,
    counters::Counters,
    engine::{Engine, Shared},
    notes::{self, Note},
};

/// The pinned keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pins(BTreeSet<Digest>);

impl Pins {
    pub(crate) fn has(&self, key: &Digest) -> bool {
        self.0.contains(key)
    }

    pub(crate) fn has_any(&self, keys: &[Digest]) -> bool {
        keys.iter().any(|key| self.has(key))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Digest> {
        self.0.iter()
    }
}

/// Reads what is pinned. A note that does not verify pins nothing, and is said.
pub(crate) fn load(shared: &Shared) -> Result<(), StoreError> {
    let text = notes::read(&shared.layout, Note::Pins)?;
    let found = text.and_then(|text| serde_json::from_str(&text).ok());
    if found.is_none() && fs::exists(shared.layout.note(Note::Pins)).unwrap_or(true) {
        tracing::warn!("the note of pinned keys did not verify: nothing is pinned but by manifests");
        Counters::add(&shared.counters.n_damaged_dropped);
    }
    *shared.pins() = Pins(found.unwrap_or_default());
    Ok(())
}

impl Engine {
    /// Pins those of the keys under which something is stored; returns how many were not pinned before.
    pub(crate) fn pin_keys(&self, keys: &[Digest]) -> Result<u64, StoreError> {
        self.change_pins(|| {
            for key in keys {
                let Some(digest) = self.catalogue().key(key) else { continue };
                // So that no eviction is half way through with it.
                let _lock = self.shared.lock(&digest);
                if self.catalogue().key(key).is_some() {
                    self.shared.pins().0.insert(*key);
                }
            }
        })
        .inspect(|_| self.warn_of_pins())
    }

    /// Takes pins back; returns how many there were.
    pub(crate) fn unpin_keys(&self, keys: &[Digest]) -> Result<u64, StoreError> {
        self.change_pins(|| self.shared.pins().0.retain(|key| !keys.contains(key)))
    }

    /// Changes the pins, durably or not at all; returns by how many.
    fn change_pins(&self, change: impl FnOnce()) -> Result<u64, StoreError> {
        let _turn = self.shared.manifest_turn();
        let before = self.shared.pins().clone();
        change();
        let after = self.shared.pins().clone();
        if after == before {
            return Ok(0);
        }
        let text = serde_json::to_string(&after.0)
            .map_err(|error| StoreError::Task { reason: format!("the pins have no JSON form: {error}") })?;
        if let Err(error) = notes::write(&self.shared.layout, Note::Pins, &text) {
            *self.shared.pins() = before;
            return Err(error);
        }
        Ok(after.0.len().abs_diff(before.0.len()) as u64)
    }
}
