//! Opening an index whatever state it is in.
//!
//! The steps, each tried when the one before failed: the index as it is; without its snapshots; a new one, the old set
//! aside. sled can panic or hang on damage, so each attempt runs on a thread of its own, under `catch_unwind` and a
//! time limit, and reads the whole index. A disk that is full or not ours is no damage, and ends the climb with an
//! error. Whatever opened is then matched with the artifact files (see [`crate::reconcile`]), which fill a new index.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::{
    OpenOutcome, StoreConfig, StoreError,
    counters::Totals,
    engine::{Engine, Shared},
    evict, failures,
    index::{Index, Scan},
    inner::panic_text,
    layout::Layout,
    reconcile::reconcile,
};

/// How long an index that was just given up may hold on to its files.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);
/// sled extends its log by 512 KiB at a time.
const LEAST_ROOM_BYTES: u64 = 1 << 20;

/// What opening an index took.
#[derive(Debug, Default)]
pub(crate) struct Climb {
    pub(crate) outcome: OpenOutcome,
    pub(crate) set_aside: Option<PathBuf>,
    pub(crate) failures: Vec<String>,
    pub(crate) n_taken_over: usize,
    pub(crate) n_dropped: usize,
    /// The lifetime counters that the index had.
    pub(crate) totals: Totals,
}

/// Opens the index and matches it with the artifact files. `clean` is the note of the last close.
pub(crate) fn open(shared: &Arc<Shared>, clean: Option<String>) -> Result<(Engine, Climb), StoreError> {
    let (index, scan, mut climb) = climb(&shared.layout, &shared.config)?;
    climb.totals = scan.totals;
    let files = match shared.blobs.list() {
        Ok(files) => files,
        Err(error) => {
            climb.failures.push(error.to_string());
            climb.set_aside = Some(shared.layout.set_aside_artifacts()?);
            Vec::new()
        }
    };
    let mut matched = reconcile(shared, &index, &scan, files, clean)?;
    let failures = failures::load(shared, &index, scan.failures, &matched.cleared)?;
    evict::load(shared, &index, scan.accessed, &mut matched.catalogue)?;
    climb.n_taken_over = matched.n_taken_over;
    climb.n_dropped = matched.n_dropped;
    if climb.outcome == OpenOutcome::Fresh && climb.n_taken_over > 0 {
        climb.outcome = OpenOutcome::Rebuilt;
    }
    Ok((Engine::new(shared.clone(), index, matched.catalogue, failures), climb))
}

fn climb(layout: &Layout, config: &StoreConfig) -> Result<(Index, Scan, Climb), StoreError> {
    let is_fresh = !layout.index().exists();
    let mut climb = Climb {
        outcome: if is_fresh { OpenOutcome::Fresh } else { OpenOutcome::Existing },
        set_aside: None,
        failures: Vec::new(),
        n_taken_over: 0,
        n_dropped: 0,
        totals: Totals::default(),
    };
    if let Some((index, scan)) = step(layout, config, &mut climb)? {
        return Ok((index, scan, climb));
    }
    if !is_fresh {
        if let Ok(Some(path)) = layout.set_aside_snapshots() {
            climb.outcome = OpenOutcome::WithoutSnapshot;
            climb.set_aside = Some(path);
            if let Some((index, scan)) = step(layout, config, &mut climb)? {
                return Ok((index, scan, climb));
            }
        }
        climb.outcome = OpenOutcome::Rebuilt;
        climb.set_aside = Some(layout.set_aside_index()?);
        if let Some((index, scan)) = step(layout, config, &mut climb)? {
            return Ok((index, scan, climb));
        }
    }
    Err(StoreError::Index { reason: climb.failures.join("; ") })
}

/// One attempt. `None`: the index is damaged, and the next step may be taken.
fn step(layout: &Layout, config: &StoreConfig, climb: &mut Climb) -> Result<Option<(Index, Scan)>, StoreError> {
    match attempt(layout.index(), config) {
        Ok(opened) => Ok(Some(opened)),
        Err(StoreError::Index { reason }) => {
            layout.ensure_room(LEAST_ROOM_BYTES, 0)?;
            tracing::warn!(reason, "the store's index does not open");
            climb.failures.push(reason);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Opens and reads an index on a thread of its own. A thread that hangs is left behind.
pub(crate) fn attempt(path: PathBuf, config: &StoreConfig) -> Result<(Index, Scan), StoreError> {
    let (sender, receiver) = mpsc::channel();
    let (timeout, config) = (config.open_timeout, config.clone());
    let work = move || {
        let result = catch_unwind(AssertUnwindSafe(|| open_and_scan(&path, &config)))
            .unwrap_or_else(|panic| Err(StoreError::Index { reason: panic_text(&*panic) }));
        // Nobody waits any more: the index is dropped here.
        let _ = sender.send(result);
    };
    let failed = |reason| Err(StoreError::Index { reason });
    match thread::Builder::new().name("store-open".into()).spawn(work) {
        Ok(_) => receiver
            .recv_timeout(timeout)
            .unwrap_or_else(|_| failed(format!("the index did not open within {timeout:?}"))),
        Err(error) => Err(StoreError::IndexRefused { reason: error.to_string() }),
    }
}

fn open_and_scan(path: &Path, config: &StoreConfig) -> Result<(Index, Scan), StoreError> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        match Index::open(path, config) {
            // The store's own lock is ours, so it is an earlier attempt of this process that has not let go yet.
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
