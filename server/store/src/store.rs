//! The store as callers see it: async, cheap to clone, and on its feet again when the index fails.

use std::sync::Arc;

use bytes::Bytes;
use piecewised_graph::{Digest, Handle, Manifest, ProgramName};

use crate::{
    ArtifactReader, FailureRecord, OpenReport, StoreConfig, StoreError, StoreStats,
    counters::Counters,
    engine::Engine,
    gate::{Gate, Kind},
    inner::Inner,
    manifests,
};

/// Handles and artifacts of one folder. Clones share it.
///
/// Dropping the last clone without [`Store::close`] loses nothing but the latest counters, and blocks a moment.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
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

    /// Why `key` failed, if that is remembered. That it is not is known without blocking.
    ///
    /// # Errors
    /// [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn get_failure(&self, key: &Digest) -> Result<Option<FailureRecord>, StoreError> {
        if self.inner.surely_lacks(|engine| !engine.has_failure(key)) {
            return Ok(None);
        }
        let key = *key;
        self.run(Kind::Read, move |engine| engine.get_failure(&key)).await
    }

    /// Forgets the failure of one key, or all; returns how many there were. They are gone for good when this returns.
    ///
    /// # Errors
    /// [`StoreError::Index`], [`StoreError::Closed`].
    pub async fn forget_failures(&self, key: Option<Digest>) -> Result<u64, StoreError> {
        self.run(Kind::Write, move |engine| engine.forget_failures(key)).await
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
