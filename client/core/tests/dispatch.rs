//! From handles to what runs for a size.
#![allow(clippy::unwrap_used)]

mod common;

use common::handle;
use piecewised_client::{ClientError, Dispatcher};
use piecewised_graph::Handle;
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
    check(&[handle(Some((1, 4)), &[])], "no segments");
    check(&[handle(Some((1, 4)), &[None])], "a segment of [1, 4] has no range");
    check(&[handle(Some((1, 4)), &[Some((1, 5))])], "outside of its range");
    check(&[handle(Some((1, 4)), &[Some((1, 3)), Some((3, 4))])], "overlap");
    check(&[handle(Some((1, 4)), &[Some((1, 4))]), handle(None, &[None])], "not of one piece");
    let mut beyond = handle(Some((1, 4)), &[Some((1, 4))]);
    beyond.dispatch_argument = Some(2);
    check(&[beyond], "argument 2 decides");
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
