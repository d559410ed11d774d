//! Expressions as text, and the rules of segments.

use piecewised_plan::Range;

use super::sym;
use crate::{
    GuardSymbol, MAX_EXPRESSION_DEPTH, Segment, check_segments,
    model::{Real, SymExpr, SymFunction as S},
    unproven,
};

fn call(function: S, operands: &[SymExpr]) -> SymExpr {
    SymExpr::Call(function, operands.to_vec())
}

fn multiple_of_8() -> SymExpr {
    call(S::Eq, &[call(S::Mod, &[sym("s0"), SymExpr::Int(8)]), SymExpr::Int(0)])
}

#[test]
fn expressions_read_as_python_writes_them() {
    let (s0, s1) = (sym("s0"), sym("s1"));
    for (expr, text) in [
        (multiple_of_8(), "s0 % 8 == 0"),
        (call(S::Mul, &[call(S::Add, &[s0.clone(), SymExpr::Int(-1)]), SymExpr::Int(2)]), "(s0 + -1) * 2"),
        (call(S::Add, &[call(S::Mul, &[s0.clone(), SymExpr::Int(2)]), s1.clone()]), "s0 * 2 + s1"),
        (call(S::FloorDiv, &[s0.clone(), call(S::FloorDiv, &[s1.clone(), SymExpr::Int(2)])]), "s0 // (s1 // 2)"),
        (
            call(S::And, &[multiple_of_8(), call(S::Not, &[call(S::Lt, &[s0.clone(), s1.clone()])])]),
            "s0 % 8 == 0 and not s0 < s1",
        ),
        (call(S::Eq, &[call(S::Eq, &[s0.clone(), s1.clone()]), SymExpr::Bool(true)]), "(s0 == s1) == True"),
        (call(S::Max, &[s0.clone(), s1.clone(), SymExpr::Real(Real(0.5))]), "max(s0, s1, 0.5)"),
        (call(S::Pow, &[SymExpr::Int(-2), s0.clone()]), "(-2) ** s0"),
        (call(S::Where, &[multiple_of_8(), s0.clone(), s1.clone()]), "where(s0 % 8 == 0, s0, s1)"),
        (SymExpr::Call(S::Add, vec![s0.clone()]), "add(s0)"),
        (
            call(S::Or, &[call(S::And, &[multiple_of_8(), SymExpr::Bool(false)]), SymExpr::Bool(true)]),
            "s0 % 8 == 0 and False or True",
        ),
    ] {
        assert_eq!(expr.to_string(), text);
    }
    let deep = (0..100).fold(s0, |inner, _| call(S::Abs, &[inner]));
    assert!(deep.to_string().contains("..."));
}

fn segment(range: Option<(i64, i64)>, guards: &[SymExpr]) -> Segment {
    Segment {
        range: range.map(|(start, end)| Range::new(start, end).unwrap()),
        entry: "e".into(),
        guards: guards.to_vec(),
    }
}

#[test]
fn what_is_not_proven_is_said() {
    let whole = Some(Range::new(1, 64).unwrap());
    let guard = [multiple_of_8()];
    let check = |segments: &[Segment]| unproven(whole, segments);
    assert_eq!(unproven(None, &[segment(None, &[])]), None);
    assert_eq!(check(&[segment(Some((1, 64)), &[])]), None);
    assert_eq!(check(&[segment(Some((8, 64)), &guard), segment(Some((1, 1)), &[]), segment(Some((2, 64)), &[])]), None);
    assert_eq!(check(&[segment(Some((1, 64)), &guard)]).unwrap(), "[1, 64] where s0 % 8 == 0");
    assert_eq!(
        check(&[segment(Some((8, 40)), &guard), segment(Some((2, 3)), &[])]).unwrap(),
        "[8, 40] where s0 % 8 == 0; [1, 1] not at all; [4, 7] not at all; [41, 64] not at all"
    );
    assert_eq!(check(&[segment(Some((8, 8)), &[])]).unwrap(), "[1, 7] not at all; [9, 64] not at all");
    let largest = Some(Range::new(1, i64::MAX).unwrap());
    assert_eq!(unproven(largest, &[segment(Some((1, i64::MAX)), &[])]), None);
}

#[test]
fn segments_can_be_dispatched_on_or_are_refused() {
    let symbols = [GuardSymbol { name: "s0".into(), argument: 0, dimension: None }];
    let guard = [multiple_of_8()];
    let whole = Some(Range::new(1, 16).unwrap());
    let check = |segments: &[Segment], range| check_segments(segments, &symbols, range).map_err(|e| e.to_string());

    assert_eq!(check(&[segment(None, &[])], None), Ok(()));
    assert_eq!(check(&[segment(Some((2, 16)), &[]), segment(Some((1, 1)), &[])], whole), Ok(()));
    assert_eq!(check(&[segment(Some((1, 16)), &guard), segment(Some((1, 16)), &guard)], whole), Ok(()));
    assert_eq!(check(&[segment(Some((1, 16)), &guard), segment(Some((2, 16)), &[])], whole), Ok(()));

    let deep = (0..=MAX_EXPRESSION_DEPTH).fold(SymExpr::Int(1), |inner, _| call(S::Abs, &[inner]));
    for (segments, range, problem) in [
        (vec![], whole, "no segment"),
        (vec![], None, "no segment"),
        (vec![segment(Some((1, 17)), &[])], whole, "[1, 17] lies outside of its range [1, 16]"),
        (
            vec![segment(Some((1, 8)), &[]), segment(Some((8, 16)), &[])],
            whole,
            "overlapping segments [1, 8] and [8, 16]",
        ),
        (vec![segment(Some((1, 16)), &[]), segment(Some((1, 16)), &guard)], whole, "the first of which has no guards"),
        (vec![segment(None, &[])], whole, "without a range in [1, 16]"),
        (vec![segment(Some((1, 1)), &[])], None, "[1, 1] where there is no range"),
        (vec![segment(None, &[]), segment(None, &[])], None, "2 segments where there is no range"),
        (vec![segment(None, &guard)], None, "without a range has guards"),
        (
            vec![segment(Some((1, 1)), &[call(S::Gt, &[sym("m"), SymExpr::Int(1)])])],
            whole,
            "names m, which nothing gives",
        ),
        (vec![segment(Some((1, 1)), &[call(S::Gt, &[sym("s0")])])], whole, "Gt of 1 operands"),
        (vec![segment(Some((1, 1)), &[deep])], whole, "deep"),
    ] {
        let found = check(&segments, range).unwrap_err();
        assert!(found.contains(problem), "{found}");
    }
    let twice = [symbols[0].clone(), symbols[0].clone()];
    assert!(check_segments(&[segment(Some((1, 16)), &guard)], &twice, whole).is_err());
}
