//! The conformance vectors on the server's plan: what becomes of the message that a client sends.
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/conformance/vectors.rs"]
mod vectors;

use piecewised_plan::Plan;
use piecewised_proto::v1;
use piecewised_wire::{plan_from_proto, plan_to_proto};
use vectors::{Given, Pair};

fn message(given: Given) -> v1::Plan {
    use v1::plan::Ranges;
    let ranges = match (given.compile_ranges, given.compile_range_endpoints) {
        (_, Some(endpoints)) => Some(Ranges::CompileRangeEndpoints(v1::Endpoints { endpoints })),
        (Some(pairs), None) => {
            let ranges = pairs.into_iter().map(|(start, end)| v1::Range { start, end }).collect();
            Some(Ranges::CompileRanges(v1::Ranges { ranges }))
        }
        (None, None) => None,
    };
    v1::Plan {
        ranges,
        compile_sizes: given.compile_sizes.unwrap_or_default(),
        is_encoder: given.is_encoder,
        max_num_batched_tokens: given.max_num_batched_tokens,
    }
}

fn entries(plan: &Plan) -> Vec<Pair> {
    plan.entries().iter().copied().map(Pair::from).collect()
}

#[test]
fn plans() {
    for (case, given) in vectors::plans() {
        let made = plan_from_proto(message(given));
        case.check(match &made {
            Ok(plan) => {
                let order = plan.most_likely_first().into_iter().map(|position| plan.entries()[position]);
                Ok((entries(plan), order.map(Pair::from).collect()))
            }
            Err(error) => Err((error.reason(), error.to_string())),
        });
    }
}

#[test]
fn a_plan_that_was_read_is_sent_on_as_it_is() {
    for (case, given) in vectors::plans() {
        let Ok(plan) = plan_from_proto(message(given)) else { continue };
        let again = plan_from_proto(plan_to_proto(&plan)).unwrap();
        assert_eq!(entries(&again), entries(&plan), "{}", case.name);
    }
}
