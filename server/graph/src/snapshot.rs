//! Snapshots: what a frontend wants kept beside artifacts, such as an engine's own record of a whole compile. Opaque here.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Digest, frontend::is_word};

/// Longest name, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// Names a snapshot: whose, which, and for which toolchain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotName {
    /// The frontend's name.
    pub frontend: String,
    /// The frontend's own name for it.
    pub name: String,
    /// The toolchain's fingerprint.
    pub toolchain: String,
}

/// A snapshot's name that is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the snapshot's name is not usable: {0}")]
pub struct BadSnapshotName(String);

impl SnapshotName {
    /// A name.
    ///
    /// # Errors
    /// [`BadSnapshotName`] where a part is empty, too long or holds characters that it may not.
    pub fn new(frontend: String, name: String, toolchain: String) -> Result<Self, BadSnapshotName> {
        if !is_word(&frontend, b"._") {
            return Err(BadSnapshotName("its frontend is 1 to 128 of A-Z, a-z, 0-9, '.' and '_'".into()));
        }
        if !(1..=MAX_NAME_BYTES).contains(&name.len()) || name.chars().any(char::is_control) {
            let problem = format!("its name has 1 to {MAX_NAME_BYTES} bytes and no control characters");
            return Err(BadSnapshotName(problem));
        }
        if !is_word(&toolchain, b"") {
            return Err(BadSnapshotName("its toolchain is a fingerprint, as in Toolchain.fingerprint".into()));
        }
        Ok(Self { frontend, name, toolchain })
    }

    /// Under which it is stored; never an artifact's key.
    pub fn key(&self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("piecewised snapshot v1");
        let Self { frontend, name, toolchain } = self;
        for part in [frontend, name, toolchain] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Digest(hasher.finalize().into())
    }
}

/// A stored snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// What it is called.
    pub snapshot: SnapshotName,
    /// Of the name.
    pub key: Digest,
    /// Of its bytes.
    pub digest: Digest,
    /// How many there are.
    pub size_bytes: u64,
    /// When it was put: milliseconds since 1970.
    pub created_unix_ms: u64,
}
