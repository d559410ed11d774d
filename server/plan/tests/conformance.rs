//! The conformance vectors on plans and dispatch tables. What a message says is the wire's runner; what pieces with
//! nothing to dispatch on do is the client's.
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/conformance/vectors.rs"]
mod vectors;

use piecewised_plan::{DispatchTable, Plan, PlanError, Range, extend_for_encoder, ranges_from_endpoints, ranges_up_to};
use vectors::{Given, Pair};

fn plan(given: &Given) -> Result<Plan, PlanError> {
    let mut ranges = match (&given.compile_ranges, &given.compile_range_endpoints) {
        (_, Some(endpoints)) => match given.max_num_batched_tokens.filter(|_| !given.is_encoder) {
            Some(max) => ranges_up_to(endpoints, max)?,
            None => ranges_from_endpoints(endpoints)?,
        },
        (Some(pairs), None) => pairs.iter().copied().map(Range::try_from).collect::<Result<_, _>>()?,
        (None, None) => Vec::new(),
    };
    if given.is_encoder {
        ranges = extend_for_encoder(&ranges, given.max_num_batched_tokens)?;
    }
    Plan::new(&ranges, given.compile_sizes.as_deref().unwrap_or_default())
}

fn pairs(ranges: impl IntoIterator<Item = Range>) -> Vec<Pair> {
    ranges.into_iter().map(Pair::from).collect()
}

#[test]
fn plans() {
    for (case, given) in vectors::plans() {
        let made = plan(&given);
        case.check(match &made {
            Ok(plan) => {
                let order = plan.most_likely_first().into_iter().map(|position| plan.entries()[position]);
                Ok((pairs(plan.entries().iter().copied()), pairs(order)))
            }
            Err(error) => Err((error.reason(), error.to_string())),
        });
    }
}

#[test]
fn lookups() {
    // A table knows no pieces, so a piece with nothing to dispatch on is not its case.
    for case in vectors::dispatches().filter(|case| !case.r#static) {
        let entries = case.entries.iter().map(|&pair| (Range::try_from(pair).unwrap(), pair));
        let table = match DispatchTable::new(entries) {
            Ok(table) => table,
            Err(error) => {
                assert_eq!(Some(error.reason()), case.error.as_deref(), "{}", case.name);
                vectors::check_message(&case.name, &error.to_string(), &case.message_has);
                continue;
            }
        };
        assert_eq!(case.error, None, "{}", case.name);
        for lookup in &case.lookups {
            let found = table.lookup(lookup.size);
            let context = format!("{}: size {}: {found:?}", case.name, lookup.size);
            match &found {
                Ok(entry) => assert_eq!(Some(**entry), lookup.entry, "{context}"),
                Err(error) => {
                    assert_eq!(Some(error.reason()), lookup.error.as_deref(), "{context}");
                    let PlanError::NotCovered { size, considered } = error else { panic!("{context}") };
                    assert_eq!(*size, lookup.size, "{context}");
                    assert_eq!(Some(pairs(considered.iter().copied())), lookup.considered, "{context}");
                }
            }
        }
    }
}
