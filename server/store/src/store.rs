//! The store as callers see it: async, cheap to clone, and on its feet again when the index fails.

use std::{
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use piecewised_graph::{Digest, Handle, Manifest, ProgramName, Snapshot, SnapshotName};

use crate::{
    ArtifactReader, ExportReport, FailureRecord, GcGoal, GcReport, ImportReport, Listed, ManifestInfo, OpenReport,
    StoreConfig, StoreError, StoreRoom, StoreStats, Stored,
    counters::Counters,
    engine::Engine,
    gate::{Gate, Kind},
    inner::Inner,
    keeper::Keeper,
    manifests::{self, Found},
    notes::{self, Note},
    record,
};

/// Handles and artifacts of one folder. Clones share it.
///
/// Dropping the last clone without [`Store::close`] loses nothing but the latest counters, and blocks a moment.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
    /// After `inner`: the last clone waits for it to let go.
    keeper: Arc<Keeper>,
}

impl Store {
    /// Opens or creates the store at `config.path`. Damage does not fail an open: the report says what it cost.
    ///
    /// # Errors
    /// [`StoreError::Locked`] where another process, or another open in this one, has it; [`StoreError::NotAStore`]
    /// where the folder holds something else; [`StoreError::Absent`] where none was to be made; [`StoreError::Io`] where the
    /// file system does not let us have a folder there at all. A full disk is no error: see [`OpenOutcome::Unavailable`](crate::OpenOutcome::Unavailable).
    pub async fn open(config: StoreConfig) -> Result<(Self, OpenReport), StoreError> {
        let gate = Arc::new(Gate::new(config.gate_permits));
        let inner_gate = gate.clone();
        gate.run(Kind::Write, move || {
            let (inner, report) = Inner::open(config, inner_gate)?;
            let inner = Arc::new(inner);
            let keeper = Arc::new(Keeper::start(inner.clone())?);
            Ok((Self { inner, keeper }, report))
        })
        .await
    }

    /// The handle stored under `key`. One that is damaged, or whose artifact is missing, is dropped and absent. Where the disk
    /// fails it is absent too: compiling again is better than not answering.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn get(&self, key: &Digest) -> Result<Option<Handle>, StoreError> {
        let held = self.inner.shared.held().get(key);
        if held.is_some() {
            Counters::add(&self.inner.shared.counters.n_hits);
            return Ok(held);
        }
        if let Some(handle) = self.inner.if_open(|engine| engine.recent(key)) {
            return Ok(Some(handle));
        }
        if self.inner.is_open_and(|engine| engine.catalogue().key(key).is_none()) {
            Counters::add(&self.inner.shared.counters.n_misses);
            return Ok(None);
        }
        let key = *key;
        match self.run(Kind::Read, move |engine| engine.get(&key)).await {
            Err(error) if error.is_the_disks() => {
                tracing::warn!(%key, %error, "a lookup failed and counts as a miss");
                Counters::add(&self.inner.shared.counters.n_misses);
                Ok(None)
            }
            Ok(Some(record::Stored::Handle(handle))) => Ok(Some(*handle)),
            Ok(_) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores a snapshot in place of any of its name. Survives a power cut when this returns; it may be evicted later, as an artifact may.
    ///
    /// # Errors
    /// [`StoreError::Full`], also after evictions, [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn put_snapshot(&self, name: SnapshotName, bytes: Bytes) -> Result<Snapshot, StoreError> {
        let inner = self.inner.clone();
        let work = move || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let snapshot = Snapshot {
                key: name.key(),
                snapshot: name,
                digest: Digest::of(&bytes),
                size_bytes: bytes.len() as u64,
                created_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            };
            inner.put_snapshot(&snapshot, &bytes)?;
            Ok(snapshot)
        };
        self.inner.gate.run(Kind::Write, work).await
    }

    /// The snapshot of that name with its bytes, verified as an artifact's are. One that does not verify is dropped and absent.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn open_snapshot(&self, name: &SnapshotName) -> Result<Option<(Snapshot, ArtifactReader)>, StoreError> {
        let key = name.key();
        let Some(record::Stored::Snapshot(snapshot)) = self.run(Kind::Read, move |engine| engine.get(&key)).await?
        else {
            return Ok(None);
        };
        Ok(self.open_artifact(&snapshot.digest).await?.map(|reader| (snapshot, reader)))
    }

    /// Stores a handle and its artifact. Putting the same again is cheap, another handle under the same key replaces the
    /// first, and handles share artifacts of the same digest. Clears the key's failure. Dropping the future does not undo a
    /// put that has begun.
    ///
    /// [`Stored::Durable`]: both survive a power cut. [`Stored::Held`]: the disk is full, also after evictions, or fails; both
    /// are served from memory until they can be written.
    ///
    /// # Errors
    /// [`StoreError::SizeMismatch`] and [`StoreError::DigestMismatch`] where handle and artifact disagree,
    /// [`StoreError::HandleTooLarge`], [`StoreError::Closed`]. [`StoreError::Full`], [`StoreError::Io`] and
    /// [`StoreError::Index`] where it can neither be written nor held.
    pub async fn put(&self, handle: Handle, artifact: Bytes) -> Result<Stored, StoreError> {
        let inner = self.inner.clone();
        self.inner.gate.run(Kind::Write, move || inner.put(handle, artifact)).await
    }

    /// The artifact of that digest, checked against it: in full the first time in this process and whenever its file
    /// was written to since. One that does not verify is dropped with its handles and is absent.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn open_artifact(&self, digest: &Digest) -> Result<Option<ArtifactReader>, StoreError> {
        let held = self.inner.shared.held().artifact(digest);
        if let Some(artifact) = held {
            return Ok(Some(ArtifactReader::held(*digest, artifact, self.inner.gate.clone())));
        }
        if self.inner.is_open_and(|engine| engine.catalogue().artifact(digest).is_none()) {
            return Ok(None);
        }
        let digest = *digest;
        let found = self.run(Kind::Read, move |engine| engine.open_artifact(&digest)).await?;
        Ok(found.map(|(file, size_bytes)| ArtifactReader::new(digest, file, size_bytes, self.inner.gate.clone())))
    }

    /// Removes a handle, and its artifact if no other handle and no manifest names it. Returns whether there was one. It is gone for
    /// good when this returns.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn remove(&self, key: &Digest) -> Result<bool, StoreError> {
        let key = *key;
        let was_held = self.inner.shared.held().remove(&key);
        Ok(self.run(Kind::Write, move |engine| engine.remove(&key)).await? || was_held)
    }

    /// Stores a program's manifest under its name, in place of any that is there. Survives a power cut when this returns. Returns whether
    /// it differs from what was there. Artifacts that it names are not evicted, nor dropped because their key gets another one, as long
    /// as it is there.
    ///
    /// # Errors
    /// [`StoreError::Full`], [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn put_manifest(&self, manifest: Manifest) -> Result<bool, StoreError> {
        self.run(Kind::Write, move |engine| engine.put_manifest(&manifest)).await
    }

    /// Pins those of the keys under which something is stored: it is not evicted until they are unpinned, nor is what comes under them later. Survives a
    /// power cut when this returns. Returns how many were not pinned before.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`]; then nothing is pinned that was not.
    pub async fn pin(&self, keys: Vec<Digest>) -> Result<u64, StoreError> {
        self.run(Kind::Write, move |engine| engine.pin_keys(&keys)).await
    }

    /// Takes pins back, also of keys under which nothing is stored now. Returns how many there were.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`]; then all that was pinned still is.
    pub async fn unpin(&self, keys: Vec<Digest>) -> Result<u64, StoreError> {
        self.run(Kind::Write, move |engine| engine.unpin_keys(&keys)).await
    }

    /// Evicts down to a budget, which need not be the configuration's, and removes what nothing names and failures that are too old. Takes as long as it
    /// takes. Where the store may not evict, nothing is.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`]: what was removed by then is.
    pub async fn gc(&self, goal: GcGoal) -> Result<GcReport, StoreError> {
        self.run(Kind::Write, move |engine| engine.gc(goal)).await
    }

    /// The manifest of a program. One that does not verify is dropped and absent.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn get_manifest(&self, program: &ProgramName) -> Result<Option<Manifest>, StoreError> {
        let (shared, name) = (self.inner.shared.clone(), program.clone());
        match self.inner.gate.run(Kind::Read, move || manifests::read(&shared.layout, &name)).await? {
            Found::Whole(manifest) => Ok(Some(*manifest)),
            Found::Absent => Ok(None),
            Found::Damaged => {
                let name = program.clone();
                self.run(Kind::Write, move |engine| engine.drop_manifest(&name)).await?;
                Ok(None)
            }
        }
    }

    /// The manifests there are, by name. From memory.
    pub fn list_manifests(&self) -> Vec<ManifestInfo> {
        self.inner.shared.programs().list()
    }

    /// Removes a program's manifest. Its artifacts may be evicted from then on; those that no handle and no other manifest
    /// names go at once. Returns whether there was one.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn remove_manifest(&self, program: &ProgramName) -> Result<bool, StoreError> {
        let program = program.clone();
        self.run(Kind::Write, move |engine| engine.remove_manifest(&program)).await
    }

    /// What was noted by this store's daemon or the one before. One that does not verify is absent.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Closed`].
    pub async fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        let shared = self.inner.shared.clone();
        self.inner.gate.run(Kind::Read, move || notes::read(&shared.layout, note)).await
    }

    /// Notes something for the next daemon, in place of what is there.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Closed`].
    pub async fn put_note(&self, note: Note, text: String) -> Result<(), StoreError> {
        let shared = self.inner.shared.clone();
        self.inner.gate.run(Kind::Write, move || notes::write(&shared.layout, note, &text)).await
    }

    /// Remembers why `key` failed, until that is older than [`StoreConfig::failure_ttl`], forgotten, or an artifact is
    /// stored under the key. Survives a power cut when this returns. In place of any that is there; where there are more
    /// than [`StoreConfig::max_failures`], the oldest are forgotten. Too long a message loses its middle.
    ///
    /// # Errors
    /// [`StoreError::Full`], [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn put_failure(&self, key: &Digest, record: FailureRecord) -> Result<(), StoreError> {
        if self.inner.shared.config.failure_ttl.is_zero() {
            return Ok(());
        }
        let key = *key;
        self.run(Kind::Write, move |engine| engine.put_failure(&key, &record)).await
    }

    /// Why `key` failed, if that is remembered. That it is not is known without blocking. Where the disk fails, nothing is
    /// remembered.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn get_failure(&self, key: &Digest) -> Result<Option<FailureRecord>, StoreError> {
        if self.inner.is_open_and(|engine| !engine.has_failure(key)) {
            return Ok(None);
        }
        let key = *key;
        match self.run(Kind::Read, move |engine| engine.get_failure(&key)).await {
            Err(error) if error.is_the_disks() => Ok(None),
            found => found,
        }
    }

    /// Forgets the failure of one key, or all; returns how many there were. They are gone for good when this returns.
    ///
    /// # Errors
    /// [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn forget_failures(&self, key: Option<Digest>) -> Result<u64, StoreError> {
        self.run(Kind::Write, move |engine| engine.forget_failures(key)).await
    }

    /// Up to `limit` of what is stored under keys behind `after`, by key. What is held in memory only is not among it. Nothing counts as used.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn list(&self, after: Option<Digest>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.run(Kind::Read, move |engine| engine.list(after, limit)).await
    }

    /// What is stored under a key. What is held in memory only is not found, and nothing counts as used.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn peek(&self, key: &Digest) -> Result<Option<Listed>, StoreError> {
        let key = *key;
        self.run(Kind::Read, move |engine| engine.peek(&key)).await
    }

    /// What is stored under the keys that begin with these hexadecimal digits, up to `limit`, by key.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn list_by_prefix(&self, digits: &str, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let digits = digits.to_owned();
        self.run(Kind::Read, move |engine| engine.list_by_prefix(&digits, limit)).await
    }

    /// Up to `limit` of the failures that are remembered, of keys behind `after`, by key.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn list_failures(
        &self,
        after: Option<Digest>,
        limit: usize,
    ) -> Result<Vec<(Digest, FailureRecord)>, StoreError> {
        self.run(Kind::Read, move |engine| engine.list_failures(after, limit)).await
    }

    /// Writes the programs of these names with all that they name, or everything where none is named, into one file, in
    /// place of any that is there. The same content makes the same file. It takes as long as it takes to read all of it, and
    /// one of the store's writers.
    ///
    /// # Errors
    /// [`StoreError::Archive`] where there is no such program, or an artifact changed meanwhile; [`StoreError::Io`],
    /// [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn export(&self, path: &Path, programs: Vec<ProgramName>) -> Result<ExportReport, StoreError> {
        let path = path.to_owned();
        self.run(Kind::Write, move |engine| engine.export(&path, &programs)).await
    }

    /// Takes in what an export holds and the store does not have. Each entry is verified; what is damaged or missing is left
    /// out and in the report. Nothing is evicted for it.
    ///
    /// # Errors
    /// [`StoreError::Archive`] where the file is no export, or so damaged that nothing can be taken; [`StoreError::Full`],
    /// [`StoreError::Io`], [`StoreError::Index`], [`StoreError::Closed`]: what was taken by then stays.
    pub async fn import(&self, path: &Path) -> Result<ImportReport, StoreError> {
        let path = path.to_owned();
        self.run(Kind::Write, move |engine| engine.import(&path)).await
    }

    /// What artifacts may take on the disk; `None`: all that it has.
    pub fn max_bytes(&self) -> Option<u64> {
        self.inner.shared.config.max_bytes
    }

    /// Counters and sizes; sizes are 0 while the index is being reopened, and after the close.
    pub fn stats(&self) -> StoreStats {
        self.inner.stats()
    }

    /// What artifacts may still take, as the disk is now.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Closed`].
    pub async fn room(&self) -> Result<StoreRoom, StoreError> {
        self.run(Kind::Read, |engine| {
            let config = &engine.shared.config;
            let available_bytes = engine.shared.layout.available_bytes()?;
            Ok(StoreRoom { max_bytes: config.max_bytes, reserve_bytes: config.reserve_bytes, available_bytes })
        })
        .await
    }

    /// Waits for what is under way, tries once more to write what is held, makes counters and last uses durable, and gives
    /// the folder back. Other clones, and readers,
    /// answer [`StoreError::Closed`] from then on.
    ///
    /// # Errors
    /// [`StoreError::Index`] where the last flush fails. What was acknowledged is durable all the same.
    pub async fn close(self) -> Result<(), StoreError> {
        self.inner.gate.close().await;
        let (inner, keeper) = (self.inner.clone(), self.keeper.clone());
        let work = move || {
            keeper.stop();
            inner.close()
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Task { reason: error.to_string() }),
        }
    }

    pub(crate) async fn keys(&self) -> Result<Vec<Digest>, StoreError> {
        self.run(Kind::Read, |engine| Ok(engine.catalogue().keys().copied().collect())).await
    }

    pub(crate) async fn artifacts(&self) -> Result<Vec<Digest>, StoreError> {
        self.run(Kind::Read, |engine| Ok(engine.catalogue().artifacts().map(|(digest, _)| *digest).collect())).await
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

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
