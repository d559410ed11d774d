//! Reading a verified artifact by offset.
//!
//! The digest was checked when the reader was made; a reader keeps its artifact readable when the store drops it in the
//! meantime, evictions included. Bytes that change on disk after the check are not noticed here, only a file that got shorter: who fetches
//! an artifact checks the digest of what arrived.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use bytes::Bytes;
use piecewised_graph::Digest;

use crate::{
    StoreError,
    blob::HEADER_LEN,
    gate::{Gate, Kind},
};

/// The most that one read returns.
const MAX_READ_BYTES: usize = 8 << 20;

/// One artifact, verified. Clones share the open file.
#[derive(Debug, Clone)]
pub struct ArtifactReader {
    digest: Digest,
    size_bytes: u64,
    source: Source,
    gate: Arc<Gate>,
}

#[derive(Debug, Clone)]
enum Source {
    File(Arc<File>),
    /// It is not on the disk yet.
    Memory(Bytes),
}

impl ArtifactReader {
    pub(crate) fn new(digest: Digest, file: File, size_bytes: u64, gate: Arc<Gate>) -> Self {
        Self { digest, size_bytes, source: Source::File(Arc::new(file)), gate }
    }

    pub(crate) fn held(digest: Digest, artifact: Bytes, gate: Arc<Gate>) -> Self {
        Self { digest, size_bytes: artifact.len() as u64, source: Source::Memory(artifact), gate }
    }

    /// The artifact's digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The artifact's length.
    pub fn total_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The bytes from `offset`: `max_len` of them or up to the end, but at most 8 MiB; empty only at or past the end,
    /// or for a `max_len` of 0.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Damaged`] where the file got shorter; [`StoreError::Closed`] after
    /// [`Store::close`](crate::Store::close).
    pub async fn read_at(&self, offset: u64, max_len: usize) -> Result<Bytes, StoreError> {
        let rest = usize::try_from(self.total_bytes().saturating_sub(offset)).unwrap_or(usize::MAX);
        let n = rest.min(max_len).min(MAX_READ_BYTES);
        if n == 0 {
            return Ok(Bytes::new());
        }
        match &self.source {
            Source::File(file) => {
                let (file, digest) = (file.clone(), self.digest);
                self.gate.run(Kind::Read, move || read(&file, &digest, offset, n)).await
            }
            Source::Memory(_) if self.gate.is_closed() => Err(StoreError::Closed),
            Source::Memory(artifact) => {
                let at = usize::try_from(offset).expect("below the length of what is in memory");
                Ok(artifact.slice(at..at + n))
            }
        }
    }
}

fn read(file: &File, digest: &Digest, offset: u64, n: usize) -> Result<Bytes, StoreError> {
    let mut bytes = vec![0; n];
    match file.read_exact_at(&mut bytes, HEADER_LEN as u64 + offset) {
        Ok(()) => Ok(bytes.into()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(StoreError::Damaged { digest: *digest }),
        Err(error) => Err(StoreError::io("read artifact", digest.to_string())(error)),
    }
}
