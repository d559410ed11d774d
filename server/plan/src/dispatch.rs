//! From a runtime size to the compiled entry.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use crate::{PlanError, Range};

/// Finds the entry for a size: the single size that equals it, else the range that contains it.
///
/// A lookup costs one hash probe and one binary search, whatever the number of entries. `T` is what is found: an
/// index, a callable.
#[derive(Debug, Clone)]
pub struct DispatchTable<T> {
    singles: HashMap<i64, T, BuildHasherDefault<SizeHasher>>,
    /// Ascending, without overlap.
    ranges: Vec<(Range, T)>,
}

impl<T> DispatchTable<T> {
    /// A table of entries in any order.
    ///
    /// # Errors
    /// [`PlanError::OverlappingRanges`] where two ranges that are not single sizes overlap, or two entries are equal.
    pub fn new(entries: impl IntoIterator<Item = (Range, T)>) -> Result<Self, PlanError> {
        let mut singles = HashMap::default();
        let mut ranges = Vec::new();
        for (range, value) in entries {
            if !range.is_single_size() {
                ranges.push((range, value));
            } else if singles.insert(range.start(), value).is_some() {
                return Err(PlanError::OverlappingRanges { first: range, second: range });
            }
        }
        ranges.sort_by_key(|(range, _)| *range);
        for pair in ranges.windows(2) {
            if pair[0].0.overlaps(pair[1].0) {
                return Err(PlanError::OverlappingRanges { first: pair[0].0, second: pair[1].0 });
            }
        }
        Ok(Self { singles, ranges })
    }

    /// The entry for `size`.
    ///
    /// # Errors
    /// [`PlanError::NotCovered`] with every range there is.
    pub fn lookup(&self, size: i64) -> Result<&T, PlanError> {
        self.find(size).ok_or_else(|| PlanError::NotCovered { size, considered: self.considered() })
    }

    fn find(&self, size: i64) -> Option<&T> {
        if let Some(value) = self.singles.get(&size) {
            return Some(value);
        }
        let next = self.ranges.partition_point(|(range, _)| range.start() <= size);
        let (range, value) = &self.ranges[next.checked_sub(1)?];
        range.contains(size).then_some(value)
    }

    fn considered(&self) -> Vec<Range> {
        let mut singles: Vec<Range> = self.singles.keys().filter_map(|&size| Range::single(size).ok()).collect();
        singles.sort_unstable();
        self.ranges.iter().map(|(range, _)| *range).chain(singles).collect()
    }
}

/// Spreads sizes over a hash map: a third of the time of a lookup is the standard library's hash otherwise (`tests/bench/dispatch.rs`). It does
/// not withstand sizes that are chosen to collide, and need not: they are those of one's own plan.
#[derive(Debug, Clone, Default)]
struct SizeHasher(u64);

impl SizeHasher {
    fn mix(&mut self, value: u64) {
        // 2^64 over the golden ratio. Multiplying moves what differs towards the high bits; the map looks at both ends.
        let product = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }
}

impl Hasher for SizeHasher {
    fn write_i64(&mut self, size: i64) {
        self.mix(size as u64);
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.mix(u64::from(byte)));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
