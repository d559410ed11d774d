//! From handles to what runs for a size.
#![allow(clippy::unwrap_used)]

mod common;

use common::handle;
use piecewised_client::{ClientError, Dispatcher, ValuePlace};
use piecewised_graph::{
    GuardSymbol, Handle,
    model::{SymExpr, SymFunction},
};
use proptest::prelude::*;

fn target(dispatcher: &Dispatcher, size: i64) -> (usize, &str) {
    let target = &dispatcher.targets()[dispatcher.lookup(size).unwrap()];
    (target.handle, &target.entry)
}

#[test]
fn segments_of_a_range_share_its_handle() {
    let handles = [handle(Some((1, 16)), &[Some((1, 1)), Some((2, 16))]), handle(Some((17, 128)), &[Some((17, 128))])];
    let dispatcher = Dispatcher::new(&handles).unwrap();
    assert_eq!(dispatcher.argument(), Some(0));
    assert_eq!(target(&dispatcher, 1), (0, "r0"));
    assert_eq!(target(&dispatcher, 2), (0, "r1"));
    assert_eq!(target(&dispatcher, 16), (0, "r1"));
    assert_eq!(target(&dispatcher, 128), (1, "r0"));
}

#[test]
fn a_single_size_of_the_plan_beats_the_segment_for_the_same_size() {
    let handles = [
        handle(Some((1, 16)), &[Some((1, 1)), Some((2, 16))]),
        handle(Some((1, 1)), &[Some((1, 1))]),
        handle(Some((4, 4)), &[Some((4, 4))]),
    ];
    let dispatcher = Dispatcher::new(&handles).unwrap();
    assert_eq!(target(&dispatcher, 1), (1, "r0"));
    assert_eq!(target(&dispatcher, 4), (2, "r0"));
    assert_eq!(target(&dispatcher, 5), (0, "r1"));
}

#[test]
fn a_size_in_no_segment_is_not_covered_although_its_range_is_there() {
    let dispatcher = Dispatcher::new(&[handle(Some((1, 16)), &[Some((2, 16))])]).unwrap();
    for size in [1, 0, 17] {
        let error = dispatcher.lookup(size).unwrap_err();
        assert_eq!(error.reason(), "SIZE_NOT_COVERED");
        assert_eq!(error.to_string(), format!("size {size} is outside every compiled range: [2, 16]"));
    }
}

#[test]
fn a_static_piece_has_one_target_for_every_call() {
    let dispatcher = Dispatcher::new(&[handle(None, &[None])]).unwrap();
    assert_eq!(dispatcher.argument(), None);
    assert_eq!(dispatcher.lookup(-5).unwrap(), 0);
}

#[test]
fn handles_that_contradict_each_other_are_refused() {
    let check = |handles: &[Handle], expected: &str| {
        let error = Dispatcher::new(handles).unwrap_err();
        assert!(matches!(error, ClientError::BadHandles { .. }));
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(&[], "there is none");
    check(&[handle(None, &[None]), handle(None, &[None])], "exactly one");
    check(&[handle(None, &[None, None])], "exactly one segment");
    check(&[handle(Some((1, 4)), &[])], "there is no segment");
    check(&[handle(Some((1, 4)), &[None])], "a segment without a range in [1, 4]");
    check(&[handle(Some((1, 4)), &[Some((1, 5))])], "outside of its range");
    check(&[handle(Some((1, 4)), &[Some((1, 3)), Some((3, 4))])], "overlap");
    check(&[handle(Some((1, 4)), &[Some((1, 4))]), handle(None, &[None])], "not of one piece");
    let mut beyond = handle(Some((1, 4)), &[Some((1, 4))]);
    beyond.dispatch_argument = Some(2);
    check(&[beyond], "argument 2 decides");
    check(&[guarded((1, 4), &[((1, 4), &[less("s0", "m")])], &[])], "names s0, which nothing gives");
    check(
        &[guarded((1, 4), &[((1, 4), &[less("s0", "s0")])], &[("s0", 2, None)])],
        "s0 is argument 2, but there are only 2",
    );
    let mut still = handle(None, &[None]);
    still.segments[0].guards = vec![multiple_of_8()];
    check(&[still], "has no guards");
}

fn call(function: SymFunction, operands: [SymExpr; 2]) -> SymExpr {
    SymExpr::Call(function, operands.into())
}

fn symbol(name: &str) -> SymExpr {
    SymExpr::Symbol(name.into())
}

fn multiple_of_8() -> SymExpr {
    call(SymFunction::Eq, [call(SymFunction::Mod, [symbol("s0"), SymExpr::Int(8)]), SymExpr::Int(0)])
}

fn less(a: &str, b: &str) -> SymExpr {
    call(SymFunction::Lt, [symbol(a), symbol(b)])
}

/// A handle whose segments, r0, r1, ..., have guards, and what gives their symbols values.
fn guarded(range: (i64, i64), segments: &[((i64, i64), &[SymExpr])], symbols: &[(&str, u32, Option<u32>)]) -> Handle {
    let mut made = handle(Some(range), &segments.iter().map(|(range, _)| Some(*range)).collect::<Vec<_>>());
    for (segment, (_, guards)) in made.segments.iter_mut().zip(segments) {
        segment.guards = guards.to_vec();
    }
    let symbol = |(name, argument, dimension): &(&str, u32, Option<u32>)| GuardSymbol {
        name: (*name).into(),
        argument: *argument,
        dimension: *dimension,
    };
    made.guard_symbols = symbols.iter().map(symbol).collect();
    made
}

#[test]
fn the_first_segment_whose_guards_hold_serves() {
    let segments: &[((i64, i64), &[SymExpr])] = &[((8, 64), &[multiple_of_8()]), ((1, 1), &[]), ((9, 40), &[])];
    let handles = [
        guarded((1, 64), segments, &[("s0", 0, None)]),
        handle(Some((24, 24)), &[Some((24, 24))]),
        handle(Some((65, 128)), &[Some((65, 128))]),
    ];
    let dispatcher = Dispatcher::new(&handles).unwrap();
    assert!(dispatcher.places().is_empty());
    for (size, expected) in [
        (1, (0, "r1")),
        (8, (0, "r0")),
        (9, (0, "r2")),
        (16, (0, "r0")),
        (24, (1, "r0")),
        (64, (0, "r0")),
        (65, (2, "r0")),
    ] {
        assert_eq!(target(&dispatcher, size), expected, "{size}");
        assert!(!dispatcher.depends_on_values(size));
    }
    let check = |size, reason, text: &str| {
        let error = dispatcher.lookup(size).unwrap_err();
        assert_eq!((error.reason(), error.to_string().as_str()), (reason, text));
        assert!(error.is_callers_mistake());
    };
    check(
        63,
        "GUARD_FAILED",
        "nothing that was compiled for [1, 64] is valid for a call of size 63 (s0 = 63): [8, 64]: s0 % 8 == 0 is false",
    );
    check(
        7,
        "SIZE_NOT_COVERED",
        "size 7 is in no proven part of [1, 64]: there is [8, 64] where s0 % 8 == 0, [1, 1], [9, 40]",
    );
    check(129, "SIZE_NOT_COVERED", "size 129 is outside every compiled range: [1, 64], [65, 128], [24, 24]");
}

#[test]
fn guards_see_the_values_of_the_call() {
    let handles = [
        guarded(
            (1, 16),
            &[((1, 16), &[less("s0", "s1")]), ((1, 16), &[less("s1", "s0")])],
            &[("s0", 0, None), ("s1", 1, Some(2))],
        ),
        guarded((17, 32), &[((17, 32), &[multiple_of_8()])], &[("s0", 0, None)]),
    ];
    let dispatcher = Dispatcher::new(&handles).unwrap();
    assert_eq!(dispatcher.places(), [ValuePlace { argument: 1, dimension: Some(2) }]);
    assert!(dispatcher.depends_on_values(5) && !dispatcher.depends_on_values(24) && !dispatcher.depends_on_values(99));
    assert_eq!(dispatcher.lookup_with(5, &[6]).unwrap(), 0);
    assert_eq!(dispatcher.lookup_with(5, &[4]).unwrap(), 1);
    let error = dispatcher.lookup_with(5, &[5]).unwrap_err();
    assert_eq!(error.reason(), "GUARD_FAILED");
    assert!(error.to_string().contains("size 5 (s0 = 5, s1 = 5)"), "{error}");
    assert!(error.to_string().contains("s1 < s0 is false"), "{error}");
    // Without the value there is nothing that holds.
    let error = dispatcher.lookup(5).unwrap_err();
    assert!(error.to_string().contains("s0 < s1 can't be decided: s1 has no value"), "{error}");
}

proptest! {
    /// The rule, written out: the single size of the plan, else the segment of the range around it.
    #[test]
    fn lookup_is_the_rule(
        first_ends in 1i64..20,
        second_starts in 21i64..25,
        hole in prop::option::of(1i64..20),
        singles in prop::collection::btree_set(1i64..40, 0..5),
        size in -1i64..45,
    ) {
        let parts: Vec<(i64, i64)> = match hole {
            Some(hole) if hole <= first_ends => [(1, hole - 1), (hole + 1, first_ends)].into_iter().filter(|(s, e)| s <= e).collect(),
            _ => vec![(1, first_ends)],
        };
        prop_assume!(!parts.is_empty());
        let mut plan = vec![
            ((1, first_ends), parts),
            ((second_starts, 30), vec![(second_starts, 30)]),
        ];
        plan.extend(singles.iter().filter(|&&n| first_ends > 1 || n > 1).map(|&n| ((n, n), vec![(n, n)])));
        let handles: Vec<Handle> = plan.iter().map(|(range, parts)| {
            handle(Some(*range), &parts.iter().map(|part| Some(*part)).collect::<Vec<_>>())
        }).collect();
        let dispatcher = Dispatcher::new(&handles).unwrap();
        let inside = |(start, end): &(i64, i64)| (*start..=*end).contains(&size);
        let exact = plan.iter().position(|(range, _)| *range == (size, size));
        let expected = exact.or_else(|| plan.iter().position(|(_, parts)| parts.iter().any(inside)));
        let found = dispatcher.lookup(size).ok().map(|index| dispatcher.targets()[index].handle);
        prop_assert_eq!(found, expected);
    }
}
