//! Ranges and plans.

use piecewised_plan::{Plan, PlanError, Range, ranges_from_endpoints};
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
    let ranges = match plan.ranges {
        None => Vec::new(),
        Some(Ranges::CompileRangeEndpoints(list)) => ranges_from_endpoints(&list.endpoints)?,
        Some(Ranges::CompileRanges(list)) => list.ranges.into_iter().map(range_from_proto).collect::<Result<_, _>>()?,
    };
    Plan::new(&ranges, &plan.compile_sizes)
}

/// The message of a plan: its ranges one by one and its single sizes.
pub fn plan_to_proto(plan: &Plan) -> v1::Plan {
    let (singles, ranges): (Vec<Range>, Vec<Range>) = plan.entries().iter().partition(|range| range.is_single_size());
    v1::Plan {
        ranges: (!ranges.is_empty()).then(|| {
            v1::plan::Ranges::CompileRanges(v1::Ranges { ranges: ranges.into_iter().map(range_to_proto).collect() })
        }),
        compile_sizes: singles.into_iter().map(Range::start).collect(),
    }
}
