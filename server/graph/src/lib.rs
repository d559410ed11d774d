//! The FX graph: model, validation, canonical form, key; and the handle that names a finished artifact.
//!
//! Pure: no I/O, and neither tokio nor tonic.

mod digest;
mod handle;
pub mod model;
pub mod request;

pub use digest::{BadDigest, Digest};
pub use handle::{Handle, PhaseTiming, Segment, Timings};

/// Version of the canonical form and of keys. A change of either makes every stored artifact unreachable, on purpose.
pub const KEY_VERSION: u32 = 1;
