//! Opening an index whatever state it is in, and bringing it into line with the artifact files.
//!
//! The steps, each tried when the one before failed: the index as it is; without its snapshots; a new one, the old set
//! aside. sled can panic or hang on damage, so each attempt runs on a thread of its own, under `catch_unwind` and a
//! time limit, and reads the whole index. Then files and records are matched: a file that the index does not know is
//! taken over with the handles that it carries, a record whose artifact is missing is dropped. A new index is filled
//! the same way. Artifacts that lay in the index itself are lost with it; they are small and are compiled again.

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use piecewised_graph::Digest;

use crate::{
    MAX_INDEX_VALUE_BYTES, OpenOutcome, StoreConfig, StoreError,
    blob::Frame,
    blobs::Blobs,
    catalogue::Catalogue,
    commit::MAX_GROUP_RECORDS,
    counters::Counters,
    engine::{Engine, Shared},
    index::{Index, Scan},
    layout::Layout,
    record::{Place, Record, parse_handle},
    store::panic_text,
};

/// How long an index that was just given up may hold on to its files.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// What opening an index took.
#[derive(Debug)]
pub(crate) struct Climb {
    pub(crate) outcome: OpenOutcome,
    pub(crate) set_aside: Option<PathBuf>,
    pub(crate) failures: Vec<String>,
    pub(crate) n_taken_over: usize,
    pub(crate) n_dropped: usize,
    pub(crate) totals: [u64; 4],
}

/// Opens the index and matches it with the artifact files.
pub(crate) fn open(shared: &Arc<Shared>) -> Result<(Engine, Climb), StoreError> {
    let (index, scan, mut climb) = climb(&shared.layout, &shared.config)?;
    let files = match shared.blobs.list() {
        Ok(files) => files,
        Err(error) => {
            climb.failures.push(error.to_string());
            climb.set_aside = Some(shared.layout.set_aside_artifacts()?);
            Vec::new()
        }
    };
    let catalogue = reconcile(&index, scan, &shared.blobs, files, &mut climb)?;
    if climb.outcome == OpenOutcome::Fresh && climb.n_taken_over > 0 {
        climb.outcome = OpenOutcome::Rebuilt;
    }
    Ok((Engine::new(shared.clone(), index, catalogue), climb))
}

fn climb(layout: &Layout, config: &StoreConfig) -> Result<(Index, Scan, Climb), StoreError> {
    let is_fresh = !layout.index().exists();
    let mut climb = Climb {
        outcome: if is_fresh { OpenOutcome::Fresh } else { OpenOutcome::Existing },
        set_aside: None,
        failures: Vec::new(),
        n_taken_over: 0,
        n_dropped: 0,
        totals: [0; 4],
    };
    let attempt = |climb: &mut Climb| match attempt(layout.index(), config) {
        Ok((index, scan)) => {
            climb.totals = scan.totals;
            Some((index, scan))
        }
        Err(reason) => {
            tracing::warn!(reason, "the store's index does not open");
            climb.failures.push(reason);
            None
        }
    };

    if let Some((index, scan)) = attempt(&mut climb) {
        return Ok((index, scan, climb));
    }
    if !is_fresh {
        if let Ok(Some(path)) = layout.set_aside_snapshots() {
            climb.outcome = OpenOutcome::WithoutSnapshot;
            climb.set_aside = Some(path);
            if let Some((index, scan)) = attempt(&mut climb) {
                return Ok((index, scan, climb));
            }
        }
        climb.outcome = OpenOutcome::Rebuilt;
        climb.set_aside = Some(layout.set_aside_index()?);
        if let Some((index, scan)) = attempt(&mut climb) {
            return Ok((index, scan, climb));
        }
    }
    Err(StoreError::Index { reason: climb.failures.join("; ") })
}

/// Opens and reads an index on a thread of its own. A thread that hangs is left behind.
fn attempt(path: PathBuf, config: &StoreConfig) -> Result<(Index, Scan), String> {
    let (sender, receiver) = mpsc::channel();
    let (timeout, config) = (config.open_timeout, config.clone());
    let work = move || {
        let open = AssertUnwindSafe(|| open_and_scan(&path, &config));
        let result = match catch_unwind(open) {
            Ok(Ok(opened)) => Ok(opened),
            Ok(Err(StoreError::Index { reason })) => Err(reason),
            Ok(Err(error)) => Err(error.to_string()),
            Err(panic) => Err(panic_text(&*panic)),
        };
        // Nobody waits any more: the index is dropped here.
        let _ = sender.send(result);
    };
    thread::Builder::new().name("store-open".into()).spawn(work).map_err(|error| error.to_string())?;
    receiver.recv_timeout(timeout).unwrap_or_else(|_| Err(format!("it did not open within {timeout:?}")))
}

fn open_and_scan(path: &std::path::Path, config: &StoreConfig) -> Result<(Index, Scan), StoreError> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        match Index::open(path, config) {
            // Ours alone to hold, so it is an earlier attempt of this process that has not let go yet.
            Err(StoreError::Index { reason }) if reason.contains("acquire lock") && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(20));
            }
            result => {
                let index = result?;
                let scan = index.scan()?;
                return Ok((index, scan));
            }
        }
    }
}

/// Makes index and files agree; returns what both hold.
fn reconcile(
    index: &Index,
    scan: Scan,
    blobs: &Blobs,
    files: Vec<Digest>,
    climb: &mut Climb,
) -> Result<Catalogue, StoreError> {
    let mut batch = Batch { index, n_records: 0 };
    let mut catalogue = Catalogue::default();
    let files: HashSet<Digest> = files.into_iter().collect();
    let in_index: HashSet<Digest> = scan.artifacts.iter().copied().collect();

    for (key, digest, size_bytes, place) in scan.handles {
        let artifacts = if place == Place::File { &files } else { &in_index };
        if artifacts.contains(&digest) {
            catalogue.insert(key, digest, size_bytes, place);
        } else {
            batch.did(index.remove_record(&key.0))?;
            climb.n_dropped += 1;
        }
    }
    for key in &scan.damaged_handles {
        batch.did(index.remove_record(key))?;
        climb.n_dropped += 1;
    }
    for digest in &scan.damaged_artifacts {
        batch.did(index.remove_artifact(digest))?;
    }
    for digest in &scan.artifacts {
        if !catalogue.artifact(digest).is_some_and(|artifact| artifact.lies_in(Place::Index)) {
            batch.did(index.remove_artifact(&digest.0))?;
        }
    }

    let unknown = files.iter().filter(|digest| !catalogue.artifact(digest).is_some_and(|a| a.lies_in(Place::File)));
    let (found, useless) = read_files(blobs, unknown, &catalogue)?;
    for (key, (digest, size_bytes, frame)) in found {
        let json = frame.json.as_deref().filter(|json| json.len() <= MAX_INDEX_VALUE_BYTES);
        let record = Record { digest, size_bytes, place: Place::File, json }.encode(&key);
        batch.did(index.put_record(&key, &record))?;
        catalogue.insert(key, digest, size_bytes, Place::File);
        climb.n_taken_over += 1;
    }
    batch.flush()?;
    for digest in useless {
        climb.n_dropped += usize::from(catalogue.artifact(&digest).is_none());
        blobs.unlink(&digest)?;
    }
    Ok(catalogue)
}

type Found = HashMap<Digest, (Digest, u64, Frame)>;

/// The handles that files carry and the catalogue lacks, the latest of each key, and the files with none of them.
fn read_files<'a>(
    blobs: &Blobs,
    files: impl Iterator<Item = &'a Digest>,
    catalogue: &Catalogue,
) -> Result<(Found, Vec<Digest>), StoreError> {
    let (mut found, mut all) = (Found::new(), Vec::new());
    for digest in files {
        all.push(*digest);
        let Some((size_bytes, tail)) = blobs.describe(digest)? else { continue };
        for (key, frame) in tail.handles {
            let is_handle =
                frame.json.as_ref().is_some_and(|json| parse_handle(&key, digest, size_bytes, json).is_some());
            let is_newer = found.get(&key).is_none_or(|(_, _, other)| other.stamp < frame.stamp);
            if is_handle && is_newer && catalogue.key(&key).is_none() {
                found.insert(key, (*digest, size_bytes, frame));
            }
        }
    }
    let used: HashSet<Digest> = found.values().map(|(digest, ..)| *digest).collect();
    all.retain(|digest| !used.contains(digest));
    Ok((found, all))
}

/// Changes of the index, flushed as often as the index needs it.
struct Batch<'a> {
    index: &'a Index,
    n_records: usize,
}

impl Batch<'_> {
    fn did(&mut self, change: Result<(), StoreError>) -> Result<(), StoreError> {
        change?;
        self.n_records += 1;
        if self.n_records >= MAX_GROUP_RECORDS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        if self.n_records > 0 {
            self.n_records = 0;
            self.index.flush()?;
        }
        Ok(())
    }
}

/// Counts what an open dropped, and goes on from the totals that it found.
pub(crate) fn count(counters: &Counters, climb: &Climb) {
    counters.start_from(climb.totals);
    for _ in 0..climb.n_dropped {
        Counters::add(&counters.n_damaged_dropped);
    }
}
