//! What can be wrong with a plan or a lookup.

use thiserror::Error;

use crate::Range;

/// A plan that breaks a rule, or a size that no entry takes. The messages are complete sentences for the caller.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Neither ranges nor sizes.
    #[error("the plan is empty: give at least one compile range or compile size")]
    EmptyPlan,
    /// Inverted, or starting below 1.
    #[error("[{start}, {end}] is not a range: it needs 1 <= start <= end (both inclusive)")]
    BadRange {
        /// As given.
        start: i64,
        /// As given.
        end: i64,
    },
    /// Two ranges share sizes.
    #[error("ranges {first} and {second} overlap: a size must belong to one range only")]
    OverlappingRanges {
        /// The lower one.
        first: Range,
        /// The higher one.
        second: Range,
    },
    /// A size below 1.
    #[error("compile size {size} is not possible: sizes start at 1")]
    BadSize {
        /// As given.
        size: i64,
    },
    /// An endpoint below 1.
    #[error("range endpoint {endpoint} is not possible: endpoints are the inclusive ends of ranges and start at 1")]
    BadEndpoint {
        /// As given.
        endpoint: i64,
    },
    /// An endpoint beyond the largest batch.
    #[error(
        "range endpoint {endpoint} is above max_num_batched_tokens, which is {max_num_batched_tokens}: no batch has such a size"
    )]
    EndpointAboveBatch {
        /// As given.
        endpoint: i64,
        /// As given.
        max_num_batched_tokens: i64,
    },
    /// An encoder's plan that was made for another number of tokens.
    #[error(
        "an encoder's highest range must end at max_num_batched_tokens, which is {}; it ends at {end}",
        .max_num_batched_tokens.map_or_else(|| "not given".to_owned(), |n| n.to_string())
    )]
    BadEncoderPlan {
        /// Where the highest range ends; 0: there is no range.
        end: i64,
        /// As given.
        max_num_batched_tokens: Option<i64>,
    },
    /// More entries than allowed.
    #[error("the plan has {n_entries} entries (ranges and sizes), the limit is {limit}")]
    TooManyRanges {
        /// After expansion.
        n_entries: usize,
        /// The limit.
        limit: usize,
    },
    /// A size outside every entry.
    #[error("size {size} is outside every compiled range: {}", list(.considered))]
    NotCovered {
        /// The size asked for.
        size: i64,
        /// What there is.
        considered: Vec<Range>,
    },
}

fn list(ranges: &[Range]) -> String {
    if ranges.is_empty() {
        return "there is none".into();
    }
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl PlanError {
    /// The stable name of this error in `google.rpc.ErrorInfo`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::EmptyPlan => "EMPTY_PLAN",
            Self::BadRange { .. } => "BAD_RANGE",
            Self::OverlappingRanges { .. } => "OVERLAPPING_RANGES",
            Self::BadSize { .. } => "BAD_SIZE",
            Self::BadEndpoint { .. } | Self::EndpointAboveBatch { .. } => "BAD_ENDPOINT",
            Self::BadEncoderPlan { .. } => "BAD_ENCODER_PLAN",
            Self::TooManyRanges { .. } => "TOO_MANY_RANGES",
            Self::NotCovered { .. } => "SIZE_NOT_COVERED",
        }
    }
}
