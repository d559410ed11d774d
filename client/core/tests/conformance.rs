//! The conformance vectors on the client's dispatcher, made from handles: of one segment each, and of several with guards.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../../tests/conformance/vectors.rs"]
mod vectors;

use common::handle;
use piecewised_client::Dispatcher;
use piecewised_graph::{GuardSymbol, Handle};
use vectors::{DispatchCase, SegmentsCase};

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

fn handles_with_guards(case: &SegmentsCase) -> Vec<Handle> {
    let symbols: Vec<GuardSymbol> =
        case.guard_symbols.iter().map(|symbol| serde_json::from_value(symbol.clone()).unwrap()).collect();
    let made = case.entries.iter().map(|entry| {
        let mut made = handle(Some(entry.range), &entry.segments.iter().map(|s| Some(s.range)).collect::<Vec<_>>());
        made.n_arguments = 3;
        made.guard_symbols = symbols.clone();
        for (segment, vector) in made.segments.iter_mut().zip(&entry.segments) {
            segment.guards = vector.guards.iter().map(|guard| serde_json::from_value(guard.clone()).unwrap()).collect();
        }
        made
    });
    made.collect()
}

#[test]
fn segments_and_guards() {
    for case in vectors::segments() {
        let handles = handles_with_guards(&case);
        let dispatcher = match Dispatcher::new(&handles) {
            Ok(dispatcher) => dispatcher,
            Err(error) => {
                assert_eq!(Some(error.reason()), case.error.as_deref(), "{}: {error}", case.name);
                vectors::check_message(&case.name, &error.to_string(), &case.message_has);
                continue;
            }
        };
        assert_eq!(case.error, None, "{}", case.name);
        // The values that a dispatcher asks for, by the names that the case gives them.
        let name_of = |argument, dimension| {
            let symbols = &handles[0].guard_symbols;
            symbols.iter().find(|s| (s.argument, s.dimension) == (argument, dimension)).unwrap().name.as_str()
        };
        let names: Vec<&str> = dispatcher.places().iter().map(|p| name_of(p.argument, p.dimension)).collect();
        for lookup in &case.lookups {
            let values: Vec<i64> = names.iter().map(|name| lookup.values[*name]).collect();
            let found = dispatcher.lookup_with(lookup.size, &values);
            let context = format!("{}: size {} {:?}: {found:?}", case.name, lookup.size, lookup.values);
            match found {
                Ok(target) => {
                    let target = &dispatcher.targets()[target];
                    assert_eq!(Some(target.handle), lookup.entry, "{context}");
                    assert_eq!(Some(&target.entry), lookup.segment.map(|at| format!("r{at}")).as_ref(), "{context}");
                }
                Err(error) => {
                    assert_eq!(Some(error.reason()), lookup.error.as_deref(), "{context}");
                    vectors::check_message(&context, &error.to_string(), &lookup.message_has);
                }
            }
        }
    }
}
