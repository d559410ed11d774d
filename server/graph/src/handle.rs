//! What names a finished artifact and says what it is.

use piecewised_plan::Range;
use serde::{Deserialize, Serialize};

use crate::{
    Digest,
    request::{ArtifactFormat, DeviceKind, Toolchain},
};

/// Names one finished artifact. `piecewised/v1/artifact.proto` documents each field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "documented once, at the proto's Handle")]
pub struct Handle {
    pub key: Digest,
    pub graph_digest: Digest,
    /// `None`: the graph has no symbolic input.
    pub range: Option<Range>,
    /// Of the artifact's bytes.
    pub digest: Digest,
    pub size_bytes: u64,
    pub format: ArtifactFormat,
    pub toolchain: Toolchain,
    pub device: DeviceKind,
    pub segments: Vec<Segment>,
    pub dispatch_argument: Option<u32>,
    pub hint: Option<i64>,
    pub returns_tuple: bool,
    pub n_arguments: u32,
    pub timings: Timings,
    pub created_unix_ms: u64,
}

/// A part of an artifact and the sizes it was proven for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// `None`: the graph has no symbolic input.
    pub range: Option<Range>,
    /// The part's name within the container.
    pub entry: String,
}

/// Where a compile's time went.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Timings {
    /// Wall seconds in the executor.
    pub total_s: f64,
    /// CPU seconds of the executor and its compiler processes.
    pub cpu_s: f64,
    /// In the order in which they ran.
    pub phases: Vec<PhaseTiming>,
}

/// Wall seconds of one phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseTiming {
    /// "rebuild", "compile", "prove", "pack".
    pub phase: String,
    /// Wall time.
    pub seconds: f64,
}
