//! Ranges and plans.

use piecewised_plan::{Plan, PlanError, Range, extend_for_encoder, ranges_from_endpoints, ranges_up_to};
use piecewised_proto::v1;

/// The range of a message.
///
/// # Errors
/// [`PlanError::BadRange`].
pub fn range_from_proto(range: v1::Range) -> Result<Range, PlanError> {
    Range::new(range.start, range.end)
}

/// The message of a range.
pub fn range_to_proto(range: Range) -> v1::Range {
    v1::Range { start: range.start(), end: range.end() }
}

/// The plan of a message.
///
/// # Errors
/// What [`Plan::new`] and [`ranges_from_endpoints`] refuse.
pub fn plan_from_proto(plan: v1::Plan) -> Result<Plan, PlanError> {
    use v1::plan::Ranges;
    let mut ranges = match plan.ranges {
        None => Vec::new(),
        Some(Ranges::CompileRangeEndpoints(list)) => match plan.max_num_batched_tokens.filter(|_| !plan.is_encoder) {
            Some(max) => ranges_up_to(&list.endpoints, max)?,
            None => ranges_from_endpoints(&list.endpoints)?,
        },
        Some(Ranges::CompileRanges(list)) => list.ranges.into_iter().map(range_from_proto).collect::<Result<_, _>>()?,
    };
    if plan.is_encoder {
        ranges = extend_for_encoder(&ranges, plan.max_num_batched_tokens)?;
    }
    Plan::new(&ranges, &plan.compile_sizes)
}

/// The message of a plan, such that [`plan_from_proto`] gives its entries in the same order: events name them by position.
pub fn plan_to_proto(plan: &Plan) -> v1::Plan {
    let entries = plan.entries();
    // The longest part that can be given as ranges; what follows lies below something in it, so it can only be sizes.
    let n_ranges = 1 + entries.windows(2).take_while(|pair| pair[0].end() < pair[1].start()).count();
    let (ranges, sizes) = entries.split_at(n_ranges.min(entries.len()));
    let ranges = v1::Ranges { ranges: ranges.iter().copied().map(range_to_proto).collect() };
    v1::Plan {
        ranges: Some(v1::plan::Ranges::CompileRanges(ranges)),
        compile_sizes: sizes.iter().copied().map(Range::start).collect(),
        // Extended already.
        is_encoder: false,
        max_num_batched_tokens: None,
    }
}
