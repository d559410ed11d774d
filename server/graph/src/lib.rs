//! The FX graph: model, validation, canonical form, key; and the handle that names a finished artifact.
//!
//! Pure: no I/O, and neither tokio nor tonic. The way through it: [`validate`] a [`model::Graph`], [`canonicalise`] it,
//! derive one [`KeyParts::key`] per range. What is left to decide at a call, a dispatcher [`evaluate`]s.

mod allow;
mod canonical;
mod difference;
mod digest;
mod display;
mod error;
mod evaluate;
mod explain;
mod frontend;
mod guards;
mod handle;
mod key;
mod manifest;
pub mod model;
pub mod request;
mod signature;
mod snapshot;
mod validate;

pub use allow::AllowList;
pub use canonical::{CanonicalGraph, canonicalise};
pub use difference::{Difference, first_difference};
pub use digest::{BadDigest, Digest};
pub use error::GraphError;
pub use evaluate::{EvaluateError, MAX_EXPRESSION_DEPTH, Value, evaluate, holds};
pub use explain::{ComparedComponent, Distance, KeyComponents, KeyInWords, KeyRecord};
pub use frontend::{BadFrontend, Frontend, MAX_IDENTITY_BYTES};
pub use guards::{BadSegments, check_segments, unproven};
pub use handle::{
    Candidate, CheckedSize, GuardSymbol, Handle, Latency, PhaseTiming, Segment, Timings, TuningReport, Verification,
    VerificationChecker, VerificationOutcome,
};
pub use key::{KeyParts, options_for_key};
pub use manifest::{BadProgramName, Manifest, ManifestPiece, ProgramName};
pub use signature::{BadPublicKey, PublicKey, Signature};
pub use snapshot::{BadSnapshotName, Snapshot, SnapshotName};
pub use validate::{Limits, Trust, validate};

/// Version of the canonical form and of keys. A change of either makes every stored artifact unreachable, on purpose.
pub const KEY_VERSION: u32 = 2;

#[cfg(test)]
mod tests;
