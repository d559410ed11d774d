//! What is left of a finished program: enough to start from without a graph.

use piecewised_plan::Range;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    Digest, Handle, Signature,
    request::{DeviceKind, Toolchain},
};

/// A finished program. `piecewised/v1/program.proto` documents each field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "documented once, at the proto's Manifest")]
pub struct Manifest {
    pub program: ProgramName,
    pub toolchain: Toolchain,
    pub devices: Vec<DeviceKind>,
    pub pieces: Vec<ManifestPiece>,
    pub n_distinct_pieces: u32,
    pub created_unix_ms: u64,
    /// Of the daemon that handed it out; `None` in its store, and where it came from none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

/// One piece of a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "documented once, at the proto's ManifestPiece")]
pub struct ManifestPiece {
    pub index: u32,
    pub entries: Vec<Range>,
    pub handles: Vec<Handle>,
}

impl Manifest {
    /// Of what counts: everything but when it was committed, who signed it, and which run's compile happened to make an artifact.
    pub fn digest(&self) -> Digest {
        let mut manifest = self.clone();
        manifest.created_unix_ms = 0;
        manifest.signature = None;
        for handle in manifest.pieces.iter_mut().flat_map(|piece| &mut piece.handles) {
            handle.signature = None;
        }
        let text = serde_json::to_vec(&manifest).expect("the model has string keys only and no fallible serializer");
        Digest::of(&text)
    }
}

/// The name of a program or of a run: never a path, never empty, safe in logs and URLs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProgramName(String);

/// Longest name, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// A text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{found:?} is not a name for a program: 1 to {MAX_NAME_BYTES} of A-Z, a-z, 0-9, '.', '_' and '-' are, not starting with '.'"
)]
pub struct BadProgramName {
    found: String,
}

impl ProgramName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ProgramName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for ProgramName {
    type Err = BadProgramName;

    fn from_str(text: &str) -> Result<Self, BadProgramName> {
        let is_name = !text.is_empty()
            && text.len() <= MAX_NAME_BYTES
            && !text.starts_with('.')
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if is_name { Ok(Self(text.to_owned())) } else { Err(BadProgramName { found: text.chars().take(80).collect() }) }
    }
}

impl TryFrom<String> for ProgramName {
    type Error = BadProgramName;

    fn try_from(text: String) -> Result<Self, BadProgramName> {
        text.parse()
    }
}

impl From<ProgramName> for String {
    fn from(name: ProgramName) -> Self {
        name.0
    }
}
