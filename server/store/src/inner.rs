//! What clones of a store share: the index in use, and what is done when it fails.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use piecewised_graph::{Handle, Snapshot};

use crate::{
    OpenOutcome, OpenReport, StoreConfig, StoreError, StoreStats, Stored,
    engine::{Engine, Shared},
    gate::Gate,
    keeper::Signal,
    ladder::{self, Climb},
    layout::{FORMAT_VERSION, Format, Layout},
    lock::Lock,
    manifests, pins,
    put::Prepared,
};

/// Least time between two attempts to reopen an index that failed.
const REOPEN_EVERY: Duration = Duration::from_secs(1);
/// How long closing waits for sled to let go. It can hang after an I/O error.
const DROP_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) gate: Arc<Gate>,
    pub(crate) shared: Arc<Shared>,
    slot: RwLock<Slot>,
    n_index_reopens: AtomicU64,
    /// The lifetime counters go on from what the index had.
    has_totals: AtomicBool,
    /// Wakes what keeps house in the background.
    pub(crate) signal: Signal,
    /// Held as long as the index is, and dropped after it.
    lock: Mutex<Option<Lock>>,
}

/// The index in use, if there is one.
#[derive(Debug)]
pub(crate) struct Slot {
    engine: Option<Engine>,
    /// Why there is none.
    failure: String,
    /// Tells an operation that failed whether another one has reopened the index since.
    generation: u64,
    reopened_at: Option<Instant>,
    is_closed: bool,
}

impl Inner {
    pub(crate) fn open(config: StoreConfig, gate: Arc<Gate>) -> Result<(Self, OpenReport), StoreError> {
        let started = Instant::now();
        let layout = Layout::new(&config.path);
        layout.claim_root(config.create)?;
        let lock = Lock::take(&layout)?;
        let format = layout.read_format()?;
        let clean = layout.take_clean()?;
        let foreign = match format {
            Format::Version(found) if found != FORMAT_VERSION => Some((found, layout.set_aside_format(found)?)),
            _ => None,
        };
        layout.empty_tmp();
        layout.make_dirs()?;
        if format != Format::Version(FORMAT_VERSION) {
            layout.write_format()?;
        }

        let shared = Arc::new(Shared::new(config, layout));
        manifests::load(&shared)?;
        pins::load(&shared)?;
        let (engine, climb) = match ladder::open(&shared, clean) {
            Ok((engine, climb)) => (Some(engine), climb),
            // The folder is ours and there; the disk may come to its senses, and workers can be served meanwhile.
            Err(error) if error.is_the_disks() => {
                tracing::error!(%error, "the store's index cannot be opened for now; artifacts are held in memory");
                (None, Climb { failures: vec![error.to_string()], ..Climb::default() })
            }
            Err(error) => return Err(error),
        };
        shared.counters.add_dropped(climb.n_dropped);
        let failure = climb.failures.join("; ");
        if engine.is_some() {
            shared.counters.start_from(climb.totals);
        }
        let (outcome, set_aside) = match foreign {
            Some((found, path)) => (OpenOutcome::ForeignFormat { found }, Some(path)),
            None => (climb.outcome, climb.set_aside),
        };
        let (n_handles, n_artifacts, artifact_bytes) = engine.as_ref().map_or((0, 0, 0), |engine| {
            let catalogue = engine.catalogue();
            (catalogue.n_handles(), catalogue.n_artifacts(), catalogue.artifact_bytes())
        });
        let report = OpenReport {
            outcome,
            n_handles,
            n_artifacts,
            artifact_bytes,
            set_aside,
            n_taken_over: climb.n_taken_over,
            n_dropped: climb.n_dropped,
            failures: climb.failures,
            elapsed: started.elapsed(),
        };
        let has_totals = AtomicBool::new(engine.is_some());
        let slot = Slot { engine, failure, generation: 0, reopened_at: None, is_closed: false };
        let inner = Self {
            gate,
            shared,
            slot: RwLock::new(slot),
            n_index_reopens: AtomicU64::new(0),
            has_totals,
            signal: Signal::default(),
            lock: Mutex::new(Some(lock)),
        };
        Ok((inner, report))
    }

    /// Runs an operation; if the index fails under it, reopens the index and runs it once more.
    pub(crate) fn run<T>(&self, work: impl Fn(&Engine) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut retried = false;
        loop {
            let (failed, reason) = {
                let slot = self.slot();
                if slot.is_closed {
                    return Err(StoreError::Closed);
                }
                let reason = match &slot.engine {
                    None => slot.failure.clone(),
                    Some(engine) => match catch_unwind(AssertUnwindSafe(|| work(engine))) {
                        Ok(Err(StoreError::Index { reason } | StoreError::IndexRefused { reason })) => reason,
                        Ok(result) => return result,
                        Err(panic) => panic_text(&*panic),
                    },
                };
                (slot.generation, reason)
            };
            if retried {
                return Err(StoreError::Index { reason });
            }
            retried = true;
            self.reopen(failed, &reason)?;
        }
    }

    /// Makes an artifact durable, or else holds it.
    pub(crate) fn put(&self, handle: Handle, artifact: Bytes) -> Result<Stored, StoreError> {
        let prepared = Prepared::new(&handle, &artifact)?;
        let result = self.run(|engine| engine.put(&prepared, &artifact));
        self.note(&result);
        match result {
            Ok(()) => {
                if self.is_open_and(Engine::is_over_budget) {
                    self.signal.wake();
                }
                Ok(Stored::Durable)
            }
            Err(error) if error.is_the_disks() => {
                let (stamp, limit) = (self.shared.stamp(), self.shared.config.max_held_bytes);
                if !self.shared.held().insert(handle, artifact, stamp, limit) {
                    return Err(error);
                }
                tracing::warn!(key = %prepared.key, %error, "an artifact cannot be written and is held in memory");
                self.signal.wake();
                Ok(Stored::Held)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a snapshot durable. It is not held: who made it can make it again, and need not wait for that.
    pub(crate) fn put_snapshot(&self, snapshot: &Snapshot, bytes: &Bytes) -> Result<(), StoreError> {
        let prepared = Prepared::snapshot(snapshot)?;
        let result = self.run(|engine| engine.put(&prepared, bytes));
        self.note(&result);
        if result.is_ok() && self.is_open_and(Engine::is_over_budget) {
            self.signal.wake();
        }
        result
    }

    /// Writes what is held, oldest first, until something fails. Returns whether nothing is left.
    pub(crate) fn store_held(&self) -> Result<bool, StoreError> {
        let mut after = 0;
        loop {
            let next = self.shared.held().next(after);
            let Some(item) = next else { return Ok(self.shared.held().len() == 0) };
            after = item.stamp;
            let prepared = Prepared::unchecked(&item.handle)?;
            let result = self.run(|engine| engine.put_held(&prepared, &item.artifact, item.stamp));
            self.note(&result);
            result?;
            tracing::info!(key = %prepared.key, "an artifact that was held in memory is durable now");
        }
    }

    /// Remembers how the last write went.
    fn note(&self, result: &Result<(), StoreError>) {
        let is_full = matches!(result, Err(StoreError::Full { .. }));
        let is_failing = matches!(result, Err(error) if error.is_the_disks()) && !is_full;
        if is_full && !self.shared.is_full.swap(true, Relaxed) {
            tracing::error!("the store's disk is full; artifacts are held in memory until there is room");
        }
        if is_failing && !self.shared.is_failing.swap(true, Relaxed) {
            tracing::error!("the store's disk fails; artifacts are held in memory until it works again");
        }
        if result.is_ok() {
            self.shared.is_full.store(false, Relaxed);
            self.shared.is_failing.store(false, Relaxed);
        }
    }

    fn reopen(&self, failed: u64, reason: &str) -> Result<(), StoreError> {
        let mut slot = self.slot_mut();
        if slot.generation != failed {
            return Ok(());
        }
        if slot.reopened_at.is_some_and(|at| at.elapsed() < REOPEN_EVERY) {
            return Err(StoreError::Index { reason: reason.to_owned() });
        }
        tracing::error!(reason, "the store's index failed; reopening it");
        slot.reopened_at = Some(Instant::now());
        if let Some(engine) = slot.engine.take() {
            drop_apart(engine);
        }
        let (engine, climb) = ladder::open(&self.shared, None).inspect_err(|error| slot.failure = error.to_string())?;
        tracing::warn!(outcome = ?climb.outcome, n_taken_over = climb.n_taken_over, "the store's index is open again");
        self.shared.counters.add_dropped(climb.n_dropped);
        if !self.has_totals.swap(true, Relaxed) {
            self.shared.counters.start_from(climb.totals);
        }
        self.n_index_reopens.fetch_add(1, Relaxed);
        slot.engine = Some(engine);
        slot.generation += 1;
        Ok(())
    }

    pub(crate) fn close(&self) -> Result<(), StoreError> {
        if let Err(error) = self.store_held() {
            tracing::warn!(%error, "what is held in memory cannot be written");
        }
        let n_lost = self.shared.held().clear();
        if n_lost > 0 {
            tracing::error!(n_lost, "artifacts that could not be written end with this process");
        }
        let mut slot = self.slot_mut();
        slot.is_closed = true;
        let Some(engine) = slot.engine.take() else { return Ok(()) };
        let finished = catch_unwind(AssertUnwindSafe(|| engine.finish()))
            .unwrap_or_else(|panic| Err(StoreError::Index { reason: panic_text(&*panic) }));
        let is_released = drop_apart(engine);
        let closed = finished.and_then(|fingerprint| match is_released && !self.shared.is_untidy.load(Relaxed) {
            true => self.shared.layout.write_clean(&fingerprint.text()),
            false => Ok(()),
        });
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        closed
    }

    pub(crate) fn stats(&self) -> StoreStats {
        let [n_hits, n_misses, n_puts, n_damaged_dropped, n_evicted, evicted_bytes] = self.shared.counters.totals();
        let (n_held, held_bytes, n_held_dropped) = {
            let held = self.shared.held();
            (held.len() as u64, held.n_bytes(), held.n_dropped())
        };
        let mut stats = StoreStats {
            n_hits,
            n_misses,
            n_puts,
            n_damaged_dropped,
            n_evicted,
            evicted_bytes,
            is_full: self.shared.is_full.load(Relaxed),
            is_failing: self.shared.is_failing.load(Relaxed),
            n_held,
            held_bytes,
            n_held_dropped,
            n_manifests: self.shared.programs().len() as u64,
            n_index_reopens: self.n_index_reopens.load(Relaxed),
            n_verified: self.shared.blobs.n_verified(),
            ..StoreStats::default()
        };
        if let Some(slot) = self.try_slot()
            && let Some(engine) = &slot.engine
        {
            stats.pinned_bytes = engine.pinned_bytes();
            let catalogue = engine.catalogue();
            stats.disk_bytes = catalogue.disk_bytes();
            stats.n_handles = catalogue.n_handles() as u64;
            stats.n_artifacts = catalogue.n_artifacts() as u64;
            stats.artifact_bytes = catalogue.artifact_bytes();
            drop(catalogue);
            stats.n_failures = engine.n_failures();
            stats.n_flushes = engine.n_flushes();
        }
        stats
    }

    /// Whether the index is open and at hand, and this can be said of it: an answer that needs no blocking thread.
    pub(crate) fn is_open_and(&self, holds: impl FnOnce(&Engine) -> bool) -> bool {
        self.if_open(|engine| holds(engine).then_some(())).is_some()
    }

    /// What the index gives, if it is open and at hand.
    pub(crate) fn if_open<T>(&self, ask: impl FnOnce(&Engine) -> Option<T>) -> Option<T> {
        self.try_slot().and_then(|slot| slot.engine.as_ref().and_then(ask))
    }

    fn try_slot(&self) -> Option<RwLockReadGuard<'_, Slot>> {
        match self.slot.try_read() {
            Ok(slot) => Some(slot),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn slot(&self) -> RwLockReadGuard<'_, Slot> {
        self.slot.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot_mut(&self) -> RwLockWriteGuard<'_, Slot> {
        self.slot.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops an engine on a thread of its own, and waits a while: sled's drop waits for its threads, and these may be dead.
/// Returns whether it is gone.
fn drop_apart(engine: Engine) -> bool {
    let (sender, receiver) = mpsc::channel();
    let work = move || {
        let dropped = catch_unwind(AssertUnwindSafe(move || drop(engine)));
        let _ = sender.send(dropped.is_ok());
    };
    let started = thread::Builder::new().name("store-close".into()).spawn(work);
    let is_released = started.is_ok() && receiver.recv_timeout(DROP_TIMEOUT) == Ok(true);
    if !is_released {
        tracing::warn!("the store's index did not close cleanly");
    }
    is_released
}

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}
