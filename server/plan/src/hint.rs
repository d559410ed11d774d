//! The size that heuristics and autotuning think of for a range, where the caller names none.

use crate::Range;

/// Sizes above this do not move a hint: a range that is open for practical purposes would otherwise be compiled for sizes
/// that nobody runs.
const LARGEST_HINTED: i64 = 65_536;

/// The power of two nearest to the geometric middle of the range, kept inside it.
///
/// Geometric, because the sizes that a range sees spread over its orders of magnitude (a decode batch doubles, it does
/// not grow by one), and code tuned for one end loses more at the other the more doublings lie between. A power of
/// two, because kernels' tile sizes are. A range that starts above 65,536 has its start as hint.
pub fn default_hint(range: Range) -> i64 {
    if range.is_single_size() {
        return range.start();
    }
    let end = range.end().min(LARGEST_HINTED.max(range.start()));
    let doublings = ((range.start() as f64).log2() + (end as f64).log2()) / 2.0;
    // At most 2^62, so that the power fits.
    let power = 1i64 << (doublings.round() as u32).min(62);
    power.clamp(range.start(), end)
}

/// The hint of one compile that is to serve every range of a plan, `hull` being the range around them: its top, but not above 65,536
/// unless all of it lies there.
///
/// It is the size that torch itself would have seen: an engine that compiles once traces with its largest batch first (the memory
/// profile). Whoever asks for one compile asks for that behaviour, and a middle would be another code than what it is compared with.
pub fn generic_hint(hull: Range) -> i64 {
    hull.end().min(LARGEST_HINTED.max(hull.start()))
}
