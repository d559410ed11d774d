//! Reading a verified artifact by offset.

use bytes::Bytes;
use crate::StoreError;

/// One artifact.
#[derive(Debug, Clone)]
pub struct ArtifactReader {
    bytes: Bytes,
}

impl ArtifactReader {
    pub(crate) fn new(bytes: Bytes) -> Self { Self { bytes } }
    /// Its length.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
    /// Up to `max_len` bytes from `offset`; empty past the end.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Damaged`].
    pub async fn read_at(&self, offset: u64, max_len: usize) -> Result<Bytes, StoreError> {
        let start = (offset as usize).min(self.bytes.len());
        Ok(self.bytes.slice(start..(start + max_len).min(self.bytes.len())))
    }
}
