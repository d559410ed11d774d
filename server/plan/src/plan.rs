//! What a piece is compiled for.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{PlanError, Range};

/// The entries of a piece: ranges ascending, then single sizes ascending. Never empty; ranges do not overlap; a single
/// size may lie in a range, which it then beats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    entries: Vec<Range>,
}

impl Plan {
    /// A plan from ranges and single sizes, both in any order.
    ///
    /// # Errors
    /// [`PlanError::EmptyPlan`], [`PlanError::OverlappingRanges`], [`PlanError::BadSize`].
    pub fn new(ranges: &[Range], sizes: &[i64]) -> Result<Self, PlanError> {
        let mut entries = ranges.to_vec();
        entries.sort_unstable();
        entries.dedup();
        for pair in entries.windows(2) {
            if pair[0].overlaps(pair[1]) {
                return Err(PlanError::OverlappingRanges { first: pair[0], second: pair[1] });
            }
        }
        let singles: BTreeSet<Range> = sizes.iter().map(|&size| Range::single(size)).collect::<Result<_, _>>()?;
        let extra: Vec<Range> = singles.into_iter().filter(|single| !entries.contains(single)).collect();
        entries.extend(extra);
        if entries.is_empty() {
            return Err(PlanError::EmptyPlan);
        }
        Ok(Self { entries })
    }

    /// The entries: ranges ascending, then single sizes ascending.
    pub fn entries(&self) -> &[Range] {
        &self.entries
    }

    /// The positions of the entries in the order in which a serving engine needs them first: the highest range (a memory profile runs
    /// the largest batch), then single sizes from the largest down (CUDA graphs are captured so), then the other ranges from the highest
    /// down.
    pub fn most_likely_first(&self) -> Vec<usize> {
        let mut positions: Vec<usize> = (0..self.entries.len()).collect();
        let highest = self.entries.iter().filter(|range| !range.is_single_size()).max().copied();
        positions.sort_by_key(|&position| {
            let range = self.entries[position];
            let class = if Some(range) == highest {
                0
            } else if range.is_single_size() {
                1
            } else {
                2
            };
            (class, std::cmp::Reverse(range))
        });
        positions
    }

    /// The range around all ranges of the plan, for one compile that serves each of them; `None`: it has single sizes only. Single sizes
    /// do not count: they have code of their own.
    pub fn hull(&self) -> Option<Range> {
        self.entries.iter().copied().filter(|entry| !entry.is_single_size()).reduce(Range::hull)
    }

    /// Refuses a plan with more than `limit` entries.
    ///
    /// # Errors
    /// [`PlanError::TooManyRanges`].
    pub fn check_limit(&self, limit: usize) -> Result<(), PlanError> {
        let n_entries = self.entries.len();
        if n_entries > limit { Err(PlanError::TooManyRanges { n_entries, limit }) } else { Ok(()) }
    }
}

/// The largest size of an encoder: its inputs may be longer than any batch of tokens.
pub const LARGEST_ENCODER_SIZE: i64 = i32::MAX as i64;

/// The ranges of an encoder: the highest one must end at `max_num_batched_tokens` and is extended to [`LARGEST_ENCODER_SIZE`].
///
/// # Errors
/// [`PlanError::BadEncoderPlan`] with both numbers.
pub fn extend_for_encoder(ranges: &[Range], max_num_batched_tokens: Option<i64>) -> Result<Vec<Range>, PlanError> {
    let mut ranges = ranges.to_vec();
    ranges.sort_unstable();
    let end = ranges.last().map_or(0, |range| range.end());
    match ranges.last_mut() {
        Some(last) if Some(end) == max_num_batched_tokens => {
            *last = Range::new(last.start(), LARGEST_ENCODER_SIZE.max(end))?;
            Ok(ranges)
        }
        _ => Err(PlanError::BadEncoderPlan { end, max_num_batched_tokens }),
    }
}

/// The ranges between endpoints as [`ranges_from_endpoints`] gives them, the last of which ends at `max_num_batched_tokens`: it is an endpoint
/// whether it is among them or not.
///
/// # Errors
/// [`PlanError::BadEndpoint`] as there, and [`PlanError::EndpointAboveBatch`] where an endpoint lies above it.
pub fn ranges_up_to(endpoints: &[i64], max_num_batched_tokens: i64) -> Result<Vec<Range>, PlanError> {
    if let Some(&endpoint) = endpoints.iter().find(|&&endpoint| endpoint > max_num_batched_tokens) {
        return Err(PlanError::EndpointAboveBatch { endpoint, max_num_batched_tokens });
    }
    ranges_from_endpoints(&[endpoints, &[max_num_batched_tokens]].concat())
}

/// The ranges between endpoints: sorted and de-duplicated, `e0 < e1 < ...` give `[1, e0], [e0 + 1, e1], ...`
///
/// # Errors
/// [`PlanError::BadEndpoint`] where an endpoint is below 1.
pub fn ranges_from_endpoints(endpoints: &[i64]) -> Result<Vec<Range>, PlanError> {
    let sorted: BTreeSet<i64> = endpoints.iter().copied().collect();
    let mut start = 1;
    sorted
        .into_iter()
        .map(|endpoint| {
            let range = Range::new(start, endpoint).map_err(|_| PlanError::BadEndpoint { endpoint })?;
            // Only the last endpoint can be i64::MAX, and then nothing follows that would use `start`.
            start = endpoint.saturating_add(1);
            Ok(range)
        })
        .collect()
}
