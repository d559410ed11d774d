//! What can go wrong in the store.
//!
//! Damage is not among it: a record or artifact that does not verify is dropped, counted and reported as absent.

use std::{io, path::PathBuf};

use piecewised_graph::Digest;
use thiserror::Error;

/// Why a store operation failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the store open.
    #[error("the store at {} is in use by {owner}; end that process first, or name another folder", path.display())]
    Locked {
        /// The store's folder.
        path: PathBuf,
        /// What the owner wrote about itself: its pid, since when it has the store, and its command line.
        owner: String,
    },
    /// The folder holds something, and it is not a store.
    #[error("{} is not empty and not a piecewised store (it holds {found:?}); name an empty or new folder", path.display())]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// One name found there.
        found: String,
    },
    /// There is no store, and none was to be made.
    #[error("there is no store at {}", path.display())]
    Absent {
        /// The folder.
        path: PathBuf,
    },
    /// A file is no export that can be read, or an export cannot be made.
    #[error("cannot use {}: {reason}", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The artifact's bytes are not those that the handle names.
    #[error("the artifact's digest is {found}, its handle says {expected}")]
    DigestMismatch {
        /// From the handle.
        expected: Digest,
        /// Of the bytes.
        found: Digest,
    },
    /// The artifact's length is not the one that the handle says.
    #[error("the artifact has {found} bytes, its handle says {expected}")]
    SizeMismatch {
        /// From the handle.
        expected: u64,
        /// Of the bytes.
        found: u64,
    },
    /// The handle's JSON form is too long to be stored.
    #[error("the handle of {key} takes {n_bytes} bytes, the limit is {limit}")]
    HandleTooLarge {
        /// Its key.
        key: Digest,
        /// Length of the JSON form.
        n_bytes: usize,
        /// The most that is stored.
        limit: usize,
    },
    /// The disk, or its quota, has no room for the artifact. Nothing stored is affected; reads go on.
    #[error("no room for {needed_bytes} bytes at {}: {available_bytes} free, of which {reserve_bytes} are kept back", path.display())]
    Full {
        /// The store's folder.
        path: PathBuf,
        /// What the write needed.
        needed_bytes: u64,
        /// What the file system has left for us.
        available_bytes: u64,
        /// What the store leaves free.
        reserve_bytes: u64,
    },
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// "open", "write", ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The index failed, and could not be reopened or rebuilt at once. Later calls try again.
    #[error("the store's index failed: {reason}")]
    Index {
        /// In the index's words.
        reason: String,
    },
    /// The file system refused the index a file operation: it is full, read-only or not ours. The index is as it was.
    #[error("the store's index cannot be used: {reason}")]
    IndexRefused {
        /// In the index's words.
        reason: String,
    },
    /// An artifact changed on disk while it was read.
    #[error("artifact {digest} changed on disk while it was read")]
    Damaged {
        /// The artifact.
        digest: Digest,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// A store task ended without a result: a defect.
    #[error("a store task failed: {reason}")]
    Task {
        /// The panic's message.
        reason: String,
    },
}

impl StoreError {
    /// Whether the disk is at fault: what was to be written may be written later.
    pub(crate) fn is_the_disks(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Io { .. } | Self::Index { .. } | Self::IndexRefused { .. })
    }

    pub(crate) fn archive(path: impl Into<PathBuf>, reason: String) -> Self {
        Self::Archive { path: path.into(), reason }
    }

    /// An [`StoreError::Io`], in the order in which `map_err` closures read well.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
