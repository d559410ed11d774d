//! Bringing an index into line with the artifact files, at every open.
//!
//! The files are what counts: each names its artifact and carries its handles, written before the index. After a close
//! in order, index and files are known to agree if the index's fingerprint is the noted one and the files' names are
//! those of its artifacts. Otherwise (a crash, damage, a rebuild; sled may have lost its latest records without a word)
//! the handles of all files are read: of each key the one with the latest stamp counts, the index is made to say so,
//! what lost is marked as removed in its file, and files that neither a key nor a manifest names are deleted. Artifacts' bytes are not read
//! here; they are verified when they are opened.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::Ordering::Relaxed,
    thread,
};

use piecewised_graph::Digest;

use crate::{
    StoreError,
    blob::{Frame, Tail},
    catalogue::Catalogue,
    commit::MAX_GROUP_RECORDS,
    engine::Shared,
    failures::Remembered,
    index::{Entry, Index, Scan},
    record::{Record, Stored},
};

/// Files read at the same time.
const N_READERS: usize = 4;

/// What index and files agree on.
#[derive(Debug, Default)]
pub(crate) struct Matched {
    pub(crate) catalogue: Catalogue,
    pub(crate) n_taken_over: usize,
    pub(crate) n_dropped: usize,
    /// Keys whose failure went because their artifact, which is newer, was taken over.
    pub(crate) cleared: HashSet<Digest>,
}

pub(crate) fn reconcile(
    shared: &Shared,
    index: &Index,
    scan: &Scan,
    files: Vec<Digest>,
    clean: Option<String>,
) -> Result<Matched, StoreError> {
    for entry in &scan.entries {
        shared.saw_stamp(entry.stamp);
    }
    let named: HashSet<Digest> = scan.entries.iter().map(|entry| entry.digest).collect();
    let files: HashSet<Digest> = files.into_iter().collect();
    if scan.damaged.is_empty() && clean == Some(scan.fingerprint.text()) && named.is_subset(&files) {
        let mut matched = Matched::default();
        for entry in &scan.entries {
            matched.catalogue.insert(entry.key, entry.digest, entry.size_bytes, entry.stamp);
        }
        if files.difference(&named).all(|digest| adopt_pinned(shared, digest, &mut matched.catalogue)) {
            return Ok(matched);
        }
    }
    tracing::info!(n_files = files.len(), "matching the store's index with its artifact files");
    let files = describe_all(shared, &files.into_iter().collect::<Vec<_>>());
    let winners = choose(shared, &scan.entries, &files);
    let mut matched = apply(index, scan, &winners, &files)?;
    tidy(shared, &winners, &files, &mut matched);
    Ok(matched)
}

/// Takes in an artifact that no key names, if a manifest does and its file is there.
fn adopt_pinned(shared: &Shared, digest: &Digest, catalogue: &mut Catalogue) -> bool {
    if !shared.programs().is_pinned(digest) {
        return false;
    }
    match shared.blobs.describe(digest) {
        Ok(Some((size_bytes, _))) => {
            catalogue.adopt(*digest, size_bytes, 0);
            true
        }
        _ => false,
    }
}

/// What each file says of itself; `None`: nothing that can be trusted.
type Files = HashMap<Digest, Option<(u64, Tail)>>;

/// A file that cannot be read at all, but shows no damage, is left out and left alone.
fn describe_all(shared: &Shared, files: &[Digest]) -> Files {
    let describe = |part: &[Digest]| -> Vec<_> {
        let describe = |digest: &Digest| match shared.blobs.describe(digest) {
            Ok(described) => Some((*digest, described)),
            Err(error) => {
                untidy(shared, &error);
                None
            }
        };
        part.iter().filter_map(describe).collect()
    };
    thread::scope(|scope| {
        let parts = files.chunks(files.len().div_ceil(N_READERS).max(1));
        let readers: Vec<_> = parts.map(|part| scope.spawn(move || describe(part))).collect();
        readers.into_iter().flat_map(|reader| reader.join().unwrap_or_default()).collect()
    })
}

fn untidy(shared: &Shared, error: &StoreError) {
    tracing::warn!(%error, "an artifact's file could not be brought into line");
    shared.is_untidy.store(true, Relaxed);
}

/// The latest word on a key.
struct Winner<'a> {
    digest: Digest,
    size_bytes: u64,
    stamp: u64,
    /// `None`: the index's own record, whose frame is damaged.
    json: Option<&'a [u8]>,
}

fn choose<'a>(shared: &Shared, entries: &[Entry], files: &'a Files) -> HashMap<Digest, Winner<'a>> {
    let mut winners: HashMap<Digest, Winner<'a>> = HashMap::new();
    let mut offer = |key: Digest, offered: Winner<'a>| {
        shared.saw_stamp(offered.stamp);
        if winners.get(&key).is_none_or(|winner| winner.stamp < offered.stamp) {
            winners.insert(key, offered);
        }
    };
    for (digest, described) in files {
        let Some((size_bytes, tail)) = described else { continue };
        for (key, Frame { stamp, json, .. }) in &tail.handles {
            let Some(json) = json else { continue };
            if Stored::parse_of(key, digest, *size_bytes, json).is_some() {
                offer(*key, Winner { digest: *digest, size_bytes: *size_bytes, stamp: *stamp, json: Some(json) });
            }
        }
    }
    for &Entry { key, digest, size_bytes, stamp, is_detached } in entries {
        // A clean file without the key says that the handle was removed.
        let is_trusted =
            matches!(files.get(&digest), Some(Some((size, tail))) if *size == size_bytes && !tail.is_clean);
        if is_trusted && !is_detached {
            offer(key, Winner { digest, size_bytes, stamp, json: None });
        }
    }
    winners
}

/// Makes the index say what the files say.
fn apply(
    index: &Index,
    scan: &Scan,
    winners: &HashMap<Digest, Winner<'_>>,
    files: &Files,
) -> Result<Matched, StoreError> {
    let mut batch = Batch::new(index);
    let mut matched = Matched::default();
    let failed: HashMap<&[u8], Remembered> =
        scan.failures.iter().filter_map(|(key, remembered)| Some((key.as_slice(), (*remembered)?))).collect();
    let mut known = HashMap::new();
    for entry in &scan.entries {
        if winners.contains_key(&entry.key) {
            known.insert(entry.key, (entry.digest, entry.stamp));
        } else {
            matched.n_dropped += usize::from(!matches!(files.get(&entry.digest), Some(Some(_))));
            batch.did(index.remove_record(&entry.key.0))?;
        }
    }
    for key in &scan.damaged {
        matched.n_dropped += 1;
        batch.did(index.remove_record(key))?;
    }
    for (key, winner) in winners {
        if let Some(json) = winner.json
            && known.get(key) != Some(&(winner.digest, winner.stamp))
        {
            let record = Record::new(winner.digest, winner.size_bytes, winner.stamp, json).encode(key);
            batch.did(index.put_record(key, &record))?;
            if failed.get(&key.0[..]).is_some_and(|failed| failed.stamp < winner.stamp) {
                batch.did(index.remove_failure(&key.0))?;
                matched.cleared.insert(*key);
            }
            matched.n_taken_over += 1;
        }
        matched.catalogue.insert(*key, winner.digest, winner.size_bytes, winner.stamp);
    }
    batch.flush()?;
    Ok(matched)
}

/// Deletes files that neither a key nor a manifest names, and marks in the others the handles that lost.
fn tidy(shared: &Shared, winners: &HashMap<Digest, Winner<'_>>, files: &Files, matched: &mut Matched) {
    let note = |result: Result<(), StoreError>| result.unwrap_or_else(|error| untidy(shared, &error));
    for (digest, described) in files {
        let is_named = matched.catalogue.artifact(digest).is_some();
        if !is_named && !adopt_pinned(shared, digest, &mut matched.catalogue) {
            matched.n_dropped += usize::from(described.is_none());
            note(shared.blobs.unlink(digest));
            continue;
        }
        let Some((size_bytes, tail)) = described else { continue };
        for key in tail.handles.keys().filter(|key| winners.get(key).is_none_or(|winner| winner.digest != *digest)) {
            let removed = Frame { key: *key, stamp: shared.stamp(), json: None };
            note(shared.blobs.append(digest, *size_bytes, &removed).map(drop));
        }
    }
}

/// Changes of the index, flushed as often as the index needs it.
pub(crate) struct Batch<'a> {
    index: &'a Index,
    n_records: usize,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(index: &'a Index) -> Self {
        Self { index, n_records: 0 }
    }

    pub(crate) fn did(&mut self, change: Result<(), StoreError>) -> Result<(), StoreError> {
        change?;
        self.n_records += 1;
        if self.n_records >= MAX_GROUP_RECORDS { self.flush() } else { Ok(()) }
    }

    pub(crate) fn flush(&mut self) -> Result<(), StoreError> {
        if self.n_records > 0 {
            self.n_records = 0;
            self.index.flush()?;
        }
        Ok(())
    }
}
