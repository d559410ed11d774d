//! A range of runtime sizes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::PlanError;

/// Sizes from `start` to `end`, both inclusive; `1 <= start <= end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(i64, i64)", into = "(i64, i64)")]
pub struct Range {
    start: i64,
    end: i64,
}

impl Range {
    /// The range `[start, end]`.
    ///
    /// # Errors
    /// [`PlanError::BadRange`] where `start < 1` or `start > end`.
    pub fn new(start: i64, end: i64) -> Result<Self, PlanError> {
        if start < 1 || start > end { Err(PlanError::BadRange { start, end }) } else { Ok(Self { start, end }) }
    }

    /// The single size `[size, size]`.
    ///
    /// # Errors
    /// [`PlanError::BadSize`] where `size < 1`.
    pub fn single(size: i64) -> Result<Self, PlanError> {
        Self::new(size, size).map_err(|_| PlanError::BadSize { size })
    }

    /// Smallest size, inclusive.
    pub fn start(self) -> i64 {
        self.start
    }

    /// Largest size, inclusive.
    pub fn end(self) -> i64 {
        self.end
    }

    /// Whether it holds one size only.
    pub fn is_single_size(self) -> bool {
        self.start == self.end
    }

    /// Whether `size` lies in it.
    pub fn contains(self, size: i64) -> bool {
        (self.start..=self.end).contains(&size)
    }

    /// Whether every size of `other` lies in it.
    pub fn covers(self, other: Range) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether any size lies in both.
    pub fn overlaps(self, other: Range) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// The sizes that lie in both; `None`: no size does.
    pub fn intersection(self, other: Range) -> Option<Range> {
        self.overlaps(other).then(|| Self { start: self.start.max(other.start), end: self.end.min(other.end) })
    }

    /// The smallest range that covers both, with the sizes between them.
    #[must_use]
    pub fn hull(self, other: Range) -> Range {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.start, self.end)
    }
}

impl TryFrom<(i64, i64)> for Range {
    type Error = PlanError;

    fn try_from((start, end): (i64, i64)) -> Result<Self, PlanError> {
        Self::new(start, end)
    }
}

impl From<Range> for (i64, i64) {
    fn from(range: Range) -> Self {
        (range.start, range.end)
    }
}
