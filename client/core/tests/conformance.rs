//! The conformance vectors on the client's dispatcher, made from handles of one segment each. What several segments
//! of a range add to the rules is in dispatch.rs.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../../tests/conformance/vectors.rs"]
mod vectors;

use common::handle;
use piecewised_client::Dispatcher;
use piecewised_graph::Handle;
use vectors::DispatchCase;

fn handles(case: &DispatchCase) -> Vec<Handle> {
    // The handle of a piece with nothing to dispatch on has no range: its entry's bounds do not count.
    case.entries.iter().map(|&pair| (!case.r#static).then_some(pair)).map(|range| handle(range, &[range])).collect()
}

#[test]
fn lookups() {
    for case in vectors::dispatches() {
        let dispatcher = match Dispatcher::new(&handles(&case)) {
            Ok(dispatcher) => dispatcher,
            Err(error) => {
                assert!(case.error.is_some(), "{}: {error}", case.name);
                assert_eq!(error.reason(), "BAD_HANDLES", "{}", case.name);
                vectors::check_message(&case.name, &error.to_string(), &case.message_has);
                continue;
            }
        };
        assert_eq!(case.error, None, "{}", case.name);
        assert_eq!(dispatcher.argument(), (!case.r#static).then_some(0), "{}", case.name);
        for lookup in &case.lookups {
            let found = dispatcher.lookup(lookup.size);
            let context = format!("{}: size {}: {found:?}", case.name, lookup.size);
            match &found {
                Ok(target) => {
                    let target = &dispatcher.targets()[*target];
                    assert_eq!(Some(case.entries[target.handle]), lookup.entry, "{context}");
                }
                Err(error) => {
                    assert_eq!(Some(error.reason()), lookup.error.as_deref(), "{context}");
                    let considered = lookup.considered.as_ref().unwrap();
                    let list: Vec<String> = considered.iter().map(|(start, end)| format!("[{start}, {end}]")).collect();
                    let list = format!("size {} is outside every compiled range: {}", lookup.size, list.join(", "));
                    assert_eq!(error.to_string(), list, "{context}");
                }
            }
        }
    }
}
