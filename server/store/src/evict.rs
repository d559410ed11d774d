//! Evictions: which artifacts go when there is too much, and how.
//!
//! Those used least recently go first; those that a manifest names, and those of pinned keys, never do. Uses are counted in memory and reach the index
//! in batches, now and then and at the close, so that a restart knows them; a crash forgets the latest.
//!
//! An eviction removes the records, durably, and then the files. Readers that have a file open keep it. The folders of deleted
//! files are not synced at once: what a crash half way, or a power cut, brings back is valid, and the next open takes it over.
//! But nothing may come back after a removal was acknowledged, so a removal waits for evictions and syncs what they left.

use std::{collections::HashSet, sync::atomic::Ordering::Relaxed};

use piecewised_graph::Digest;

use crate::{
    StoreError,
    catalogue::Catalogue,
    engine::{Engine, Op, Shared},
    index::Index,
    layout::sync_dir,
    reconcile::Batch,
};

/// Artifacts evicted with one flush, and handles removed with one change.
const ARTIFACTS_AT_ONCE: usize = 32;
const HANDLES_AT_ONCE: usize = 64;
/// What each removed handle counts for in a group of changes.
const HANDLE_BYTES: usize = 1 << 10;
/// Uses written with one flush.
const USES_AT_ONCE: usize = 64;

/// How far an eviction goes that cannot reach its goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// As far as it gets.
    Partial,
    /// Nowhere: nothing is given up in vain.
    Enough,
}

/// Gives the artifacts the uses that the index knows, and drops those of artifacts that are gone.
pub(crate) fn load(
    shared: &Shared,
    index: &Index,
    found: Vec<(Vec<u8>, Option<u64>)>,
    catalogue: &mut Catalogue,
) -> Result<(), StoreError> {
    let now = shared.stamp();
    let mut batch = Batch::new(index);
    for (bytes, accessed) in found {
        let is_known = Digest::from_slice(&bytes).ok().zip(accessed).is_some_and(|(digest, accessed)| {
            // Not from the future: it is not checked otherwise, and would pin its artifact.
            catalogue.restore_access(&digest, accessed.min(now))
        });
        if !is_known {
            batch.did(index.remove_accessed(&bytes))?;
        }
    }
    batch.flush()
}

struct Candidate {
    digest: Digest,
    accessed: u64,
    disk_bytes: u64,
}

impl Engine {
    /// Makes room for a write of so many bytes: in the budget, and on the disk.
    ///
    /// # Errors
    /// [`StoreError::Full`] where evictions cannot make enough, or the disk does not give back what they freed.
    pub(crate) fn make_room(&self, needed_bytes: u64) -> Result<(), StoreError> {
        let (layout, config) = (&self.shared.layout, &self.shared.config);
        if let Some(max_bytes) = config.max_bytes.filter(|max_bytes| needed_bytes <= *max_bytes) {
            self.evict(Extent::Partial, || {
                Ok((self.catalogue().disk_bytes() + needed_bytes).saturating_sub(max_bytes))
            })?;
        }
        loop {
            let Err(full) = layout.ensure_room(needed_bytes, config.reserve_bytes) else { return Ok(()) };
            let before = layout.available_bytes()?;
            let wanted_bytes = needed_bytes.saturating_add(config.reserve_bytes);
            let freed = self.evict(Extent::Enough, || Ok(wanted_bytes.saturating_sub(layout.available_bytes()?)))?;
            if freed == 0 || !self.came_back(before, freed)? {
                return Err(full);
            }
        }
    }

    /// Brings the artifacts back under the budget. In the background.
    pub(crate) fn trim_to_budget(&self) -> Result<(), StoreError> {
        if let Some(max_bytes) = self.shared.config.max_bytes {
            let goal = max_bytes - max_bytes / 10;
            self.evict(Extent::Partial, || Ok(self.catalogue().disk_bytes().saturating_sub(goal)))?;
            self.warn_of_pins();
        }
        Ok(())
    }

    /// Brings the disk's free space back over the reserve. In the background. Returns whether that helped: otherwise it
    /// should not be tried again soon.
    pub(crate) fn trim_to_reserve(&self) -> Result<bool, StoreError> {
        let (layout, reserve_bytes) = (&self.shared.layout, self.shared.config.reserve_bytes);
        let goal = reserve_bytes + reserve_bytes / 4;
        let before = layout.available_bytes()?;
        let freed = self.evict(Extent::Enough, || Ok(goal.saturating_sub(layout.available_bytes()?)))?;
        Ok(freed > 0 && self.came_back(before, freed)?)
    }

    /// Whether there is so much that the background has to do something.
    pub(crate) fn is_over_budget(&self) -> bool {
        let max_bytes = self.shared.config.max_bytes;
        max_bytes.is_some_and(|max_bytes| self.catalogue().disk_bytes() > max_bytes - max_bytes / 20)
    }

    /// Whether the disk has at least half of what was freed: otherwise somebody reads it, or takes it at once.
    fn came_back(&self, before: u64, freed: u64) -> Result<bool, StoreError> {
        Ok(self.shared.layout.available_bytes()?.saturating_sub(before) >= freed / 2)
    }

    /// What the artifacts that manifests name, and those of pinned keys, take.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        let catalogue = self.catalogue();
        let programs = self.shared.programs();
        let pins = self.shared.pins();
        let mut pinned: HashSet<Digest> = programs.pinned().copied().collect();
        pinned.extend(pins.keys().filter_map(|key| catalogue.key(key)));
        pinned.iter().filter_map(|digest| catalogue.artifact(digest)).map(|artifact| artifact.disk_bytes()).sum()
    }

    /// Says once, until it is no longer so, that there is more pinned than the budget.
    pub(crate) fn warn_of_pins(&self) {
        let Some(max_bytes) = self.shared.config.max_bytes else { return };
        let pinned_bytes = self.pinned_bytes();
        let is_over = pinned_bytes > max_bytes;
        if is_over && !self.shared.warned_of_pins.load(Relaxed) {
            tracing::error!(
                pinned_bytes,
                max_bytes,
                "stored manifests and pins name more than the store may take, and what they name is not evicted: remove \
                 manifests, unpin keys, or give the store more"
            );
        }
        self.shared.warned_of_pins.store(is_over, Relaxed);
    }

    /// Evicts what was used least recently until `shortfall`, asked once nobody else evicts, is made up for. Returns the
    /// disk space of what went.
    pub(crate) fn evict(
        &self,
        extent: Extent,
        shortfall: impl Fn() -> Result<u64, StoreError>,
    ) -> Result<u64, StoreError> {
        if !self.shared.config.may_evict || shortfall()? == 0 {
            return Ok(0);
        }
        let mut turn = self.shared.eviction_turn();
        let goal = shortfall()?;
        let mut sum = 0;
        let mut chosen = self.candidates();
        let n_chosen = chosen.iter().take_while(|candidate| {
            let is_needed = sum < goal;
            sum += if is_needed { candidate.disk_bytes } else { 0 };
            is_needed
        });
        let n_chosen = n_chosen.count();
        chosen.truncate(n_chosen);
        if extent == Extent::Enough && sum < goal {
            return Ok(0);
        }
        let mut freed = 0;
        for some in chosen.chunks(ARTIFACTS_AT_ONCE) {
            if self.shared.is_closing.load(Relaxed) {
                break;
            }
            turn.extend(some.iter().map(|candidate| candidate.digest.0[0]));
            freed += self.evict_some(some)?;
        }
        Ok(freed)
    }

    /// Waits for evictions under way, and makes sure that nothing evicted so far comes back.
    pub(crate) fn settle_evictions(&self) -> Result<(), StoreError> {
        let mut unsynced = self.shared.eviction_turn();
        while let Some(first_byte) = unsynced.first().copied() {
            sync_dir(&self.shared.layout.shard(first_byte))?;
            unsynced.remove(&first_byte);
        }
        Ok(())
    }

    /// All that may be evicted, what nothing names first, then by last use.
    fn candidates(&self) -> Vec<Candidate> {
        let catalogue = self.catalogue();
        let programs = self.shared.programs();
        let pins = self.shared.pins();
        let mut candidates: Vec<_> = catalogue
            .artifacts()
            .filter(|(digest, artifact)| !programs.is_pinned(digest) && !pins.has_any(&artifact.keys))
            .map(|(digest, artifact)| Candidate {
                digest: *digest,
                accessed: artifact.accessed,
                disk_bytes: artifact.disk_bytes(),
            })
            .collect();
        candidates.sort_unstable_by_key(|candidate| (candidate.accessed, candidate.digest));
        candidates
    }

    fn evict_some(&self, candidates: &[Candidate]) -> Result<u64, StoreError> {
        let _locks = self.shared.lock_all(candidates.iter().map(|candidate| &candidate.digest));
        let mut going = Vec::new();
        let mut handles = Vec::new();
        {
            let catalogue = self.catalogue();
            let programs = self.shared.programs();
            let pins = self.shared.pins();
            for Candidate { digest, accessed, disk_bytes } in candidates {
                // Used or pinned since: not now.
                if let Some(artifact) = catalogue.artifact(digest)
                    && artifact.accessed == *accessed
                    && !programs.is_pinned(digest)
                    && !pins.has_any(&artifact.keys)
                {
                    handles.extend(artifact.keys.iter().map(|key| (*key, *digest)));
                    going.push((*digest, artifact.size_bytes, *disk_bytes));
                }
            }
        }
        for handles in handles.chunks(HANDLES_AT_ONCE) {
            self.submit(Op::Evict { handles: handles.to_vec() }, handles.len() * HANDLE_BYTES)?;
        }
        let mut freed = 0;
        for (digest, size_bytes, disk_bytes) in going {
            if let Err(error) = self.shared.blobs.unlink_lazily(&digest) {
                tracing::warn!(%digest, %error, "cannot delete an evicted artifact; the next start will");
                self.shared.is_untidy.store(true, Relaxed);
                continue;
            }
            self.catalogue().forget(&digest);
            self.shared.counters.add_evicted(size_bytes);
            freed += disk_bytes;
        }
        tracing::debug!(n = candidates.len(), freed_bytes = freed, "evicted artifacts");
        Ok(freed)
    }

    /// Writes into the index the uses that are more than `apart` stamps later than what it knows.
    pub(crate) fn save_uses(&self, apart: u64) -> Result<(), StoreError> {
        loop {
            let (uses, stale) = {
                let mut catalogue = self.catalogue();
                (catalogue.unsaved(apart, USES_AT_ONCE), catalogue.take_stale(USES_AT_ONCE))
            };
            if uses.is_empty() && stale.is_empty() {
                return Ok(());
            }
            uses.iter().try_for_each(|(digest, accessed)| self.index.put_accessed(digest, *accessed))?;
            stale.iter().try_for_each(|digest| self.index.remove_accessed(&digest.0))?;
            self.index.flush()?;
            self.catalogue().saved(&uses);
        }
    }
}
