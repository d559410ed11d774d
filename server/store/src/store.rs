//! The store as callers see it: async, cheap to clone, and on its feet again when the index fails.

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

use bytes::Bytes;
use piecewised_graph::{Digest, Handle, Manifest, ProgramName};

use crate::{
    ArtifactReader, OpenOutcome, OpenReport, StoreConfig, StoreError, StoreStats,
    counters::Counters,
    engine::{Engine, Shared},
    gate::{Gate, Kind},
    ladder,
    layout::{FORMAT_VERSION, Format, Layout},
    lock::Lock,
    manifests,
};

/// Least time between two attempts to reopen an index that failed.
const REOPEN_EVERY: Duration = Duration::from_secs(1);
/// How long closing waits for sled to let go. It can hang after an I/O error.
const DROP_TIMEOUT: Duration = Duration::from_secs(5);

/// Handles and artifacts of one folder. Clones share it.
///
/// Dropping the last clone without [`Store::close`] loses nothing but the latest counters, and blocks a moment.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    gate: Arc<Gate>,
    shared: Arc<Shared>,
    slot: RwLock<Slot>,
    n_index_reopens: AtomicU64,
    /// Held as long as the index is, and dropped after it.
    lock: Mutex<Option<Lock>>,
}

/// The index in use, if there is one.
#[derive(Debug)]
struct Slot {
    engine: Option<Engine>,
    /// Why there is none.
    failure: String,
    /// Tells an operation that failed whether another one has reopened the index since.
    generation: u64,
    reopened_at: Option<Instant>,
    is_closed: bool,
}

impl Store {
    /// Opens or creates the store at `config.path`. Damage does not fail an open: the report says what it cost.
    ///
    /// # Errors
    /// [`StoreError::Locked`] where another process, or another open in this one, has it; [`StoreError::NotAStore`]
    /// where the folder holds something else; [`StoreError::Io`] and [`StoreError::Index`] where the file system does
    /// not let us have a store there at all.
    pub async fn open(config: StoreConfig) -> Result<(Self, OpenReport), StoreError> {
        let gate = Arc::new(Gate::new(config.gate_permits));
        let inner_gate = gate.clone();
        gate.run(Kind::Write, move || {
            let (inner, report) = Inner::open(config, inner_gate)?;
            Ok((Self { inner: Arc::new(inner) }, report))
        })
        .await
    }

    /// The handle stored under `key`. One that is damaged, or whose artifact is missing, is dropped and absent.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn get(&self, key: &Digest) -> Result<Option<Handle>, StoreError> {
        if self.inner.surely_lacks(|engine| engine.catalogue().key(key).is_none()) {
            Counters::add(&self.inner.shared.counters.n_misses);
            return Ok(None);
        }
        let key = *key;
        self.run(Kind::Read, move |engine| engine.get(&key)).await
    }

    /// Stores a handle and its artifact; both survive a power cut when this returns. Putting the same again is cheap,
    /// another handle under the same key replaces the first, and handles share artifacts of the same digest. Dropping
    /// the future does not undo a put that has begun.
    ///
    /// # Errors
    /// [`StoreError::SizeMismatch`] and [`StoreError::DigestMismatch`] where handle and artifact disagree,
    /// [`StoreError::HandleTooLarge`], [`StoreError::Full`], [`StoreError::Io`], [`StoreError::Index`],
    /// [`StoreError::Closed`].
    pub async fn put(&self, handle: Handle, artifact: Bytes) -> Result<(), StoreError> {
        self.run(Kind::Write, move |engine| engine.put(&handle, &artifact)).await
    }

    /// The artifact of that digest, checked against it: in full the first time in this process and whenever its file
    /// was written to since. One that does not verify is dropped with its handles and is absent.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn open_artifact(&self, digest: &Digest) -> Result<Option<ArtifactReader>, StoreError> {
        if self.inner.surely_lacks(|engine| engine.catalogue().artifact(digest).is_none()) {
            return Ok(None);
        }
        let digest = *digest;
        let found = self.run(Kind::Read, move |engine| engine.open_artifact(&digest)).await?;
        Ok(found.map(|(file, size_bytes)| ArtifactReader::new(digest, file, size_bytes, self.inner.gate.clone())))
    }

    /// Removes a handle, and its artifact if no other handle names it. Returns whether there was one. It is gone for
    /// good when this returns.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn remove(&self, key: &Digest) -> Result<bool, StoreError> {
        let key = *key;
        self.run(Kind::Write, move |engine| engine.remove(&key)).await
    }

    /// Stores a program's manifest under its name, in place of any that is there. Survives a power cut when this returns. Returns whether
    /// it differs from what was there.
    ///
    /// # Errors
    /// [`StoreError::Full`], [`StoreError::Io`], [`StoreError::Closed`].
    pub async fn put_manifest(&self, manifest: Manifest) -> Result<bool, StoreError> {
        let shared = self.inner.shared.clone();
        let work = move || manifests::put(&shared.layout, shared.config.reserve_bytes, &manifest);
        self.inner.gate.run(Kind::Write, work).await
    }

    /// The manifest of a program. One that does not verify is dropped and absent.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Closed`].
    pub async fn get_manifest(&self, program: &ProgramName) -> Result<Option<Manifest>, StoreError> {
        let (shared, program) = (self.inner.shared.clone(), program.clone());
        let work = move || {
            let (manifest, was_dropped) = manifests::get(&shared.layout, &program)?;
            if was_dropped {
                Counters::add(&shared.counters.n_damaged_dropped);
            }
            Ok(manifest)
        };
        self.inner.gate.run(Kind::Read, work).await
    }

    /// Counters and sizes; sizes are 0 while the index is being reopened, and after the close.
    pub fn stats(&self) -> StoreStats {
        self.inner.stats()
    }

    /// Waits for what is under way, makes the counters durable, and gives the folder back. Other clones, and readers,
    /// answer [`StoreError::Closed`] from then on.
    ///
    /// # Errors
    /// [`StoreError::Index`] where the last flush fails. What was acknowledged is durable all the same.
    pub async fn close(self) -> Result<(), StoreError> {
        self.inner.gate.close().await;
        let inner = self.inner.clone();
        match tokio::task::spawn_blocking(move || inner.close()).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Task { reason: error.to_string() }),
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        kind: Kind,
        work: impl Fn(&Engine) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.inner.clone();
        self.inner.gate.run(kind, move || inner.run(work)).await
    }
}

impl Inner {
    fn open(config: StoreConfig, gate: Arc<Gate>) -> Result<(Self, OpenReport), StoreError> {
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
    fn run<T>(&self, work: impl Fn(&Engine) -> Result<T, StoreError>) -> Result<T, StoreError> {
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

    fn close(&self) -> Result<(), StoreError> {
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

    fn stats(&self) -> StoreStats {
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
            stats.n_flushes = engine.n_flushes();
        }
        stats
    }

    /// Whether the catalogue is at hand and says no: an answer that needs no blocking thread.
    fn surely_lacks(&self, lacks: impl FnOnce(&Engine) -> bool) -> bool {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[tokio::test]
    async fn an_index_that_fails_or_panics_is_reopened_under_the_operation() {
        for failure in ["error", "panic"] {
            let dir = tempfile::tempdir().unwrap();
            let (store, _) = Store::open(StoreConfig::new(dir.path())).await.unwrap();
            let has_failed = AtomicBool::new(false);
            let work = move |_: &Engine| match (has_failed.swap(true, Relaxed), failure) {
                (true, _) => Ok(7),
                (false, "panic") => panic!("as sled does"),
                (false, _) => Err(StoreError::Index { reason: "as sled says".into() }),
            };
            assert_eq!(store.run(Kind::Read, work).await.unwrap(), 7);
            assert_eq!(store.stats().n_index_reopens, 1);

            // Not again at once: a second failure is the caller's.
            let error = store.run(Kind::Read, |_| -> Result<(), _> { panic!("again") }).await.unwrap_err();
            assert!(matches!(&error, StoreError::Index { reason } if reason == "again"), "{error}");
            assert_eq!(store.stats().n_index_reopens, 1);
            assert_eq!(store.get(&Digest::of(b"key")).await.unwrap(), None);
            store.close().await.unwrap();
        }
    }
}
