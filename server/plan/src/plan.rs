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

    /// Refuses a plan with more than `limit` entries.
    ///
    /// # Errors
    /// [`PlanError::TooManyRanges`].
    pub fn check_limit(&self, limit: usize) -> Result<(), PlanError> {
        let n_entries = self.entries.len();
        if n_entries > limit { Err(PlanError::TooManyRanges { n_entries, limit }) } else { Ok(()) }
    }
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
