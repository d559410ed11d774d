//! Collection on request: down to the budget at once, what nothing names, failures that are too old, and what was set aside.
//!
//! What the background does bit by bit, done in one go and counted, for a store that no daemon looks after.

use std::{fs, path::Path};

use serde::Serialize;

use crate::{
    StoreError,
    engine::Engine,
    evict::Extent,
    layout::{Layout, sync_dir},
};

/// How far a collection goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcGoal {
    /// What artifacts may take on the disk; `None`: all that it has.
    pub max_bytes: Option<u64>,
    /// What is to be free of the disk.
    pub reserve_bytes: u64,
    /// Whether what opens set aside is deleted too.
    pub also_set_aside: bool,
}

/// What a collection removed, and what is left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Artifacts evicted for the budget or the disk's reserve.
    pub n_evicted: u64,
    /// Artifacts that neither a key nor a manifest named.
    pub n_unnamed: u64,
    /// What the disk got back of both.
    pub freed_bytes: u64,
    /// Failures that were older than they are remembered.
    pub n_failures: u64,
    /// Folders of what an open could not use.
    pub n_set_aside: u64,
    /// What their files took.
    pub set_aside_bytes: u64,
    /// Artifacts that are left.
    pub n_artifacts: u64,
    /// What they count for in the budget.
    pub disk_bytes: u64,
    /// What of it is pinned, by manifests or by an operator.
    pub pinned_bytes: u64,
    /// Whether that is within the budget.
    pub is_within_budget: bool,
}

impl Engine {
    /// Collects.
    pub(crate) fn gc(&self, goal: GcGoal) -> Result<GcReport, StoreError> {
        let GcGoal { max_bytes, reserve_bytes, also_set_aside } = goal;
        let failures = self.n_failures();
        self.forget_expired()?;
        let (n_unnamed, unnamed_bytes) = self.remove_unnamed()?;
        let n_before = self.catalogue().n_artifacts();
        let mut freed_bytes = unnamed_bytes;
        if let Some(max_bytes) = max_bytes {
            freed_bytes +=
                self.evict(Extent::Partial, || Ok(self.catalogue().disk_bytes().saturating_sub(max_bytes)))?;
        }
        let available = || self.shared.layout.available_bytes();
        freed_bytes += self.evict(Extent::Enough, || Ok(reserve_bytes.saturating_sub(available()?)))?;
        self.settle_evictions()?;
        let (n_set_aside, set_aside_bytes) =
            if also_set_aside { remove_set_aside(&self.shared.layout)? } else { (0, 0) };
        let (n_artifacts, disk_bytes) = {
            let catalogue = self.catalogue();
            (catalogue.n_artifacts(), catalogue.disk_bytes())
        };
        Ok(GcReport {
            n_evicted: n_before.saturating_sub(n_artifacts) as u64,
            n_unnamed,
            freed_bytes,
            n_failures: failures - self.n_failures(),
            n_set_aside,
            set_aside_bytes,
            n_artifacts: n_artifacts as u64,
            disk_bytes,
            pinned_bytes: self.pinned_bytes(),
            is_within_budget: max_bytes.is_none_or(|max_bytes| disk_bytes <= max_bytes),
        })
    }

    /// Removes artifacts that no key and no manifest names; how many, and what they took.
    fn remove_unnamed(&self) -> Result<(u64, u64), StoreError> {
        let unnamed: Vec<_> = {
            let catalogue = self.catalogue();
            let programs = self.shared.programs();
            let all = catalogue.artifacts();
            let found = all.filter(|(digest, artifact)| artifact.keys.is_empty() && !programs.is_pinned(digest));
            found.map(|(digest, artifact)| (*digest, artifact.disk_bytes())).collect()
        };
        let mut bytes = 0;
        for (digest, disk_bytes) in &unnamed {
            let _lock = self.shared.lock(digest);
            self.unlink(digest)?;
            bytes += disk_bytes;
        }
        Ok((unnamed.len() as u64, bytes))
    }
}

/// Deletes what opens set aside; how many folders, and what their files took.
fn remove_set_aside(layout: &Layout) -> Result<(u64, u64), StoreError> {
    let folder = layout.set_aside();
    let (mut n, mut bytes) = (0, 0);
    if !folder.is_dir() {
        return Ok((0, 0));
    }
    for entry in fs::read_dir(&folder).map_err(StoreError::io("list", &folder))? {
        let path = entry.map_err(StoreError::io("list", &folder))?.path();
        bytes += size_of(&path);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(StoreError::io("delete", &path))?;
        n += 1;
    }
    sync_dir(&folder)?;
    Ok((n, bytes))
}

/// What the files below a path take; what cannot be read counts for nothing.
fn size_of(path: &Path) -> u64 {
    let Ok(entry) = fs::symlink_metadata(path) else { return 0 };
    if !entry.is_dir() {
        return entry.len();
    }
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    below.map(|entry| size_of(&entry.path())).sum()
}
