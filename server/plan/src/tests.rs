//! Each rule of the crate's header, and what breaks it.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn r(start: i64, end: i64) -> Range {
    Range::new(start, end).unwrap()
}

#[test]
fn endpoints_are_sorted_and_deduplicated() {
    assert_eq!(ranges_from_endpoints(&[128, 16, 512, 16]).unwrap(), [r(1, 16), r(17, 128), r(129, 512)]);
    assert_eq!(ranges_from_endpoints(&[1, 2]).unwrap(), [r(1, 1), r(2, 2)]);
    assert_eq!(ranges_from_endpoints(&[i64::MAX]).unwrap(), [r(1, i64::MAX)]);
    assert_eq!(ranges_from_endpoints(&[]).unwrap(), []);
    assert_eq!(ranges_from_endpoints(&[8, 0]), Err(PlanError::BadEndpoint { endpoint: 0 }));
}

#[test]
fn sizes_add_single_entries_unless_they_are_ranges_already() {
    let plan = Plan::new(&[r(17, 128), r(1, 16), r(200, 200)], &[4, 200, 1, 4]).unwrap();
    assert_eq!(plan.entries(), [r(1, 16), r(17, 128), r(200, 200), r(1, 1), r(4, 4)]);
}

#[test]
fn what_is_no_plan_is_refused_by_name() {
    let check = |ranges: &[Range], sizes: &[i64], reason: &str| {
        assert_eq!(Plan::new(ranges, sizes).unwrap_err().reason(), reason);
    };
    check(&[], &[], "EMPTY_PLAN");
    check(&[r(1, 16), r(16, 20)], &[], "OVERLAPPING_RANGES");
    check(&[r(1, 100), r(5, 6)], &[], "OVERLAPPING_RANGES");
    check(&[r(1, 16)], &[0], "BAD_SIZE");
    check(&[], &[-3], "BAD_SIZE");
    assert_eq!(Range::new(5, 4).unwrap_err().reason(), "BAD_RANGE");
    assert_eq!(Range::new(0, 4).unwrap_err().reason(), "BAD_RANGE");
    let plan = Plan::new(&[], &[1, 2, 3]).unwrap();
    assert_eq!(plan.check_limit(2).unwrap_err().reason(), "TOO_MANY_RANGES");
}

#[test]
fn an_exact_size_beats_its_range_and_a_gap_is_an_error_that_lists_the_ranges() {
    let plan = Plan::new(&[r(1, 16), r(32, 64)], &[4]).unwrap();
    let table = DispatchTable::new(plan.entries().iter().copied().enumerate().map(|(i, range)| (range, i))).unwrap();
    for (size, index) in [(1, 0), (3, 0), (4, 2), (5, 0), (16, 0), (32, 1), (64, 1)] {
        assert_eq!(table.lookup(size), Ok(&index), "size {size}");
    }
    for size in [0, -1, 17, 31, 65, i64::MAX, i64::MIN] {
        let message = table.lookup(size).unwrap_err().to_string();
        assert_eq!(message, format!("size {size} is outside every compiled range: [1, 16], [32, 64], [4, 4]"));
    }
}

#[test]
fn a_table_refuses_entries_that_compete() {
    assert!(DispatchTable::new([(r(1, 4), 0), (r(4, 9), 1)]).is_err());
    assert!(DispatchTable::new([(r(4, 4), 0), (r(4, 4), 1)]).is_err());
}

#[test]
fn the_hull_is_around_the_ranges_and_not_around_single_sizes() {
    let hull = |ranges: &[Range], sizes: &[i64]| Plan::new(ranges, sizes).unwrap().hull();
    assert_eq!(hull(&[r(129, 512), r(17, 64)], &[4, 1000]), Some(r(17, 512)));
    assert_eq!(hull(&[r(1, 16), r(700, 700)], &[]), Some(r(1, 16)));
    assert_eq!(hull(&[r(7, 7)], &[1, 2]), None);
    assert_eq!((r(1, 16).intersection(r(16, 20)), r(1, 16).intersection(r(17, 20))), (Some(r(16, 16)), None));
}

#[test]
fn the_generic_hint_is_the_top_kept_inside_the_range() {
    let hint = |start, end| generic_hint(r(start, end));
    assert_eq!([hint(1, 512), hint(1, i64::MAX), hint(100_000, 200_000)], [512, 65_536, 100_000]);
}

#[test]
fn the_default_hint_is_the_geometric_middle_kept_inside_the_range() {
    let hint = |start, end| default_hint(r(start, end));
    assert_eq!([hint(1, 16), hint(17, 128), hint(129, 512), hint(513, i64::MAX)], [4, 64, 256, 8192]);
    assert_eq!([hint(5, 6), hint(7, 7), hint(100_000, 200_000)], [5, 7, 100_000]);
    assert_eq!(hint(i64::MAX - 1, i64::MAX), i64::MAX - 1);
}

#[test]
fn an_encoders_last_range_is_extended_if_it_ends_at_the_batch_limit() {
    assert_eq!(extend_for_encoder(&[r(9, 64), r(1, 8)], Some(64)).unwrap(), [r(1, 8), r(9, i64::from(i32::MAX))]);
    let error = extend_for_encoder(&[r(1, 8), r(9, 64)], Some(128)).unwrap_err();
    assert_eq!(error.reason(), "BAD_ENCODER_PLAN");
    assert!(error.to_string().contains("128") && error.to_string().contains("64"), "{error}");
    assert!(extend_for_encoder(&[r(1, 8)], None).is_err());
    assert!(extend_for_encoder(&[], Some(8)).is_err());
}

#[test]
fn what_an_engine_needs_first_comes_first() {
    let plan = Plan::new(&[r(1, 16), r(17, 128), r(129, 512)], &[1, 4]).unwrap();
    let order: Vec<Range> = plan.most_likely_first().into_iter().map(|position| plan.entries()[position]).collect();
    assert_eq!(order, [r(129, 512), r(4, 4), r(1, 1), r(17, 128), r(1, 16)]);
}

proptest! {
    #[test]
    fn a_default_hint_lies_in_its_range(start in 1i64.., length in 0i64..) {
        let range = r(start, start.saturating_add(length));
        prop_assert!(range.contains(default_hint(range)));
    }

    /// The table agrees with the rule written out naively.
    #[test]
    fn lookup_is_the_rule(endpoints in prop::collection::vec(1i64..80, 0..6), sizes in prop::collection::vec(1i64..90, 0..6), size in -2i64..100) {
        let ranges = ranges_from_endpoints(&endpoints).unwrap();
        if let Ok(plan) = Plan::new(&ranges, &sizes) {
            let table = DispatchTable::new(plan.entries().iter().map(|&range| (range, range))).unwrap();
            let exact = plan.entries().iter().find(|range| range.is_single_size() && range.contains(size));
            let naive = exact.or_else(|| plan.entries().iter().find(|range| range.contains(size)));
            prop_assert_eq!(table.lookup(size).ok(), naive);
        }
    }

    /// Ranges from endpoints leave no gap and no overlap from 1 to the last endpoint.
    #[test]
    fn endpoints_tile(endpoints in prop::collection::vec(1i64..1000, 1..20)) {
        let ranges = ranges_from_endpoints(&endpoints).unwrap();
        prop_assert_eq!(ranges[0].start(), 1);
        prop_assert_eq!(Some(ranges[ranges.len() - 1].end()), endpoints.iter().copied().max());
        for pair in ranges.windows(2) {
            prop_assert_eq!(pair[0].end() + 1, pair[1].start());
        }
    }
}
