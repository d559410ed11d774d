//! What clones of a store share: the index in use, and what is done when it fails.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    OpenOutcome, OpenReport, StoreConfig, StoreError, StoreStats,
    engine::{Engine, Shared},
    gate::Gate,
    ladder,
    layout::{FORMAT_VERSION, Format, Layout},
    lock::Lock,
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
        layout.claim_root()?;
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
        let (engine, climb) = ladder::open(&shared, clean)?;
        shared.counters.start_from(climb.totals);
        shared.counters.add_dropped(climb.n_dropped);
        let (outcome, set_aside) = match foreign {
            Some((found, path)) => (OpenOutcome::ForeignFormat { found }, Some(path)),
            None => (climb.outcome, climb.set_aside),
        };
        let report = {
            let catalogue = engine.catalogue();
            OpenReport {
                outcome,
                n_handles: catalogue.n_handles(),
                n_artifacts: catalogue.n_artifacts(),
                artifact_bytes: catalogue.artifact_bytes(),
                set_aside,
                n_taken_over: climb.n_taken_over,
                n_dropped: climb.n_dropped,
                failures: climb.failures,
                elapsed: started.elapsed(),
            }
        };
        let slot =
            Slot { engine: Some(engine), failure: String::new(), generation: 0, reopened_at: None, is_closed: false };
        let inner = Self {
            gate,
            shared,
            slot: RwLock::new(slot),
            n_index_reopens: AtomicU64::new(0),
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
        self.n_index_reopens.fetch_add(1, Relaxed);
        slot.engine = Some(engine);
        slot.generation += 1;
        Ok(())
    }

    pub(crate) fn close(&self) -> Result<(), StoreError> {
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
        let [n_hits, n_misses, n_puts, n_damaged_dropped] = self.shared.counters.totals();
        let mut stats = StoreStats {
            n_hits,
            n_misses,
            n_puts,
            n_damaged_dropped,
            n_index_reopens: self.n_index_reopens.load(Relaxed),
            n_verified: self.shared.blobs.n_verified(),
            ..StoreStats::default()
        };
        if let Some(slot) = self.try_slot()
            && let Some(engine) = &slot.engine
        {
            let catalogue = engine.catalogue();
            stats.n_handles = catalogue.n_handles() as u64;
            stats.n_artifacts = catalogue.n_artifacts() as u64;
            stats.artifact_bytes = catalogue.artifact_bytes();
            stats.n_failures = engine.n_failures();
            stats.n_flushes = engine.n_flushes();
        }
        stats
    }

    /// Whether the catalogue is at hand and says no: an answer that needs no blocking thread.
    pub(crate) fn surely_lacks(&self, lacks: impl FnOnce(&Engine) -> bool) -> bool {
        self.try_slot().is_some_and(|slot| slot.engine.as_ref().is_some_and(lacks))
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
