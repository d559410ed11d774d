//! Temporary: the API over memory.

use std::{collections::HashMap, sync::{Arc, Mutex}, time::Duration};
use bytes::Bytes;
use piecewised_graph::{Digest, Handle};
use crate::{ArtifactReader, OpenOutcome, OpenReport, StoreConfig, StoreError, StoreStats};

/// The store. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    map: Arc<Mutex<HashMap<Digest, (Handle, Bytes)>>>,
}

#[allow(missing_docs, clippy::missing_errors_doc, clippy::unwrap_used)]
impl Store {
    pub async fn open(_config: StoreConfig) -> Result<(Self, OpenReport), StoreError> {
        Ok((Self { map: Arc::default() }, OpenReport { outcome: OpenOutcome::Fresh, n_handles: 0, n_artifacts: 0, artifact_bytes: 0, set_aside: None, n_taken_over: 0, n_dropped: 0, failures: vec![], elapsed: Duration::ZERO }))
    }
    pub async fn get(&self, key: &Digest) -> Result<Option<Handle>, StoreError> {
        Ok(self.map.lock().unwrap().get(key).map(|e| e.0.clone()))
    }
    pub async fn put(&self, handle: Handle, artifact: Bytes) -> Result<(), StoreError> {
        self.map.lock().unwrap().insert(handle.key, (handle, artifact)); Ok(())
    }
    pub async fn open_artifact(&self, digest: &Digest) -> Result<Option<ArtifactReader>, StoreError> {
        Ok(self.map.lock().unwrap().values().find(|e| e.0.digest == *digest).map(|e| ArtifactReader::new(e.1.clone())))
    }
    pub async fn remove(&self, key: &Digest) -> Result<bool, StoreError> {
        Ok(self.map.lock().unwrap().remove(key).is_some())
    }
    pub fn stats(&self) -> StoreStats { StoreStats::default() }
    pub async fn close(self) -> Result<(), StoreError> { Ok(()) }
}
