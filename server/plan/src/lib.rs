//! Ranges, plans and dispatch tables. Pure: no I/O, and neither tokio nor tonic.
//!
//! * a range is `[start, end]`, both inclusive, from 1 up; a single size is `[n, n]`;
//! * a plan has ranges that do not overlap, and single sizes that may lie in them;
//! * an exact size beats the range that contains it; a size outside every entry is an error.

mod dispatch;
mod error;
mod hint;
mod plan;
mod range;

pub use dispatch::DispatchTable;
pub use error::PlanError;
pub use hint::{default_hint, generic_hint};
pub use plan::{LARGEST_ENCODER_SIZE, Plan, extend_for_encoder, ranges_from_endpoints, ranges_up_to};
pub use range::Range;

#[cfg(test)]
mod tests;
