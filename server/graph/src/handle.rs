//! What names a finished artifact and says what it is.

use piecewised_plan::Range;
use serde::{Deserialize, Serialize};

use crate::{
    Digest, KeyRecord, Signature,
    model::SymExpr,
    request::{ArtifactFormat, DeviceKind, Toolchain, Tuning},
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
    #[serde(default)]
    pub guard_symbols: Vec<GuardSymbol>,
    #[serde(default)]
    pub verification: Verification,
    #[serde(default)]
    pub tuning: TuningReport,
    #[serde(default)]
    pub latencies: Vec<Latency>,
    /// For explaining misses; kept in the store and told to nobody. Empty: made by a version that kept none, or it came from a daemon.
    #[serde(default, skip_serializing_if = "KeyRecord::is_empty")]
    pub key_record: KeyRecord,
    /// Of the daemon that handed it out; `None` in its store, and where it came from none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

impl Handle {
    /// The handle of the same artifact for one entry of a plan, where the compile was for more than that (all ranges of a plan at once).
    /// Its range is the entry's, its segments are what of them lies there; what says how the artifact was made (key, hint, timings,
    /// verification, latencies) stays the compile's. `None`: the code was proven for no size of the entry.
    ///
    /// Without a symbolic input there is nothing to clip. What is kept for explaining misses stays behind: it is nothing for callers and manifests.
    #[must_use]
    pub fn clipped(&self, entry: Option<Range>) -> Option<Self> {
        let delivered = Self { key_record: KeyRecord::default(), ..self.clone() };
        let (Some(_), Some(entry)) = (self.range, entry) else { return Some(delivered) };
        let inside = |segment: &Segment| {
            let range = segment.range?.intersection(entry)?;
            Some(Segment { range: Some(range), ..segment.clone() })
        };
        let segments: Vec<Segment> = self.segments.iter().filter_map(inside).collect();
        (!segments.is_empty()).then_some(Self { range: Some(entry), segments, ..delivered })
    }
}

/// A part of an artifact and the sizes it was proven for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// `None`: the graph has no symbolic input.
    pub range: Option<Range>,
    /// The part's name within the container.
    pub entry: String,
    /// What else must be true of a call; empty: nothing.
    #[serde(default)]
    pub guards: Vec<SymExpr>,
}

/// Gives a value to a symbol that guards name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardSymbol {
    /// As in [`SymExpr::Symbol`].
    pub name: String,
    /// Position among the graph's placeholders.
    pub argument: u32,
    /// The dimension of the tensor there; `None`: the argument is the integer itself.
    pub dimension: Option<u32>,
}

/// What came of running the artifact against eager. `piecewised/v1/artifact.proto` documents each field.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "documented once, at the proto's Verification")]
pub struct Verification {
    pub outcome: VerificationOutcome,
    pub sizes: Vec<CheckedSize>,
    pub note: String,
    pub seconds: f64,
    #[serde(default)]
    pub checker: VerificationChecker,
}

/// Who ran the artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "documented once, at the proto's Verification.Checker")]
pub enum VerificationChecker {
    #[default]
    None,
    Executor,
    Runner,
}

/// How the check ended; a failed one leaves no handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "documented once, at the proto's Verification.Outcome")]
pub enum VerificationOutcome {
    #[default]
    NotDone,
    Passed,
    NotComparable,
}

/// One comparison with eager.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "documented once, at the proto's CheckedSize")]
pub struct CheckedSize {
    pub size: Option<i64>,
    pub entry: String,
    pub max_absolute_error: f64,
    pub max_relative_error: f64,
    pub tolerance: f64,
}

/// How long a call took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// `None`: no symbolic input.
    pub size: Option<i64>,
    /// Median, in microseconds.
    pub median_us: f64,
}

/// Which candidates were compiled and how long each took. `piecewised/v1/artifact.proto` documents each field.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "documented once, at the proto's TuningReport")]
pub struct TuningReport {
    pub mode: Tuning,
    pub candidates: Vec<Candidate>,
    pub seconds: f64,
    pub note: String,
}

/// One way to compile the range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "documented once, at the proto's Candidate")]
pub struct Candidate {
    pub name: String,
    pub hint: Option<i64>,
    pub compile_s: f64,
    pub latencies: Vec<Latency>,
    pub entries: Vec<String>,
    pub failure: String,
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
    /// "rebuild", "compile", "settle", "prove", "pack", "tune", "verify".
    pub phase: String,
    /// Wall time.
    pub seconds: f64,
}
