//! The meaning of every function, by table. The comparison with torch's own interpreter is tests/python/test_evaluate.py.

use proptest::prelude::*;

use crate::{
    EvaluateError, MAX_EXPRESSION_DEPTH, Value, evaluate, holds,
    model::{Real, SymExpr, SymFunction as S},
};

fn int(value: i64) -> SymExpr {
    SymExpr::Int(value)
}

fn real(value: f64) -> SymExpr {
    SymExpr::Real(Real(value))
}

fn bool(value: bool) -> SymExpr {
    SymExpr::Bool(value)
}

fn value(expr: &SymExpr) -> Result<Value, EvaluateError> {
    evaluate(expr, &|name| (name == "s0").then_some(3))
}

fn of(function: S, operands: &[SymExpr]) -> Result<Value, EvaluateError> {
    value(&SymExpr::Call(function, operands.to_vec()))
}

const MIN: i64 = i64::MIN;
const MAX: i64 = i64::MAX;

#[test]
fn integers() {
    for (function, operands, expected) in [
        (S::Add, vec![1, 2, 3], 6),
        (S::Add, vec![5], 5),
        (S::Mul, vec![2, -3, 4], -24),
        (S::FloorDiv, vec![7, 2], 3),
        (S::FloorDiv, vec![-7, 2], -4),
        (S::FloorDiv, vec![7, -2], -4),
        (S::FloorDiv, vec![-7, -2], 3),
        (S::FloorDiv, vec![-8, 2], -4),
        (S::FloorDiv, vec![MIN, 1], MIN),
        (S::CleanDiv, vec![8, 2], 4),
        (S::CeilDiv, vec![7, 2], 4),
        (S::CeilDiv, vec![8, 2], 4),
        (S::CeilDiv, vec![-7, 2], -3),
        (S::CeilDiv, vec![7, -2], -3),
        (S::CeilDiv, vec![MIN, 2], MIN / 2),
        (S::Mod, vec![7, 4], 3),
        (S::PythonMod, vec![-7, 4], 1),
        (S::PythonMod, vec![7, -4], -1),
        (S::PythonMod, vec![-8, 4], 0),
        (S::PythonMod, vec![MIN, -1], 0),
        (S::ModularIndexing, vec![37, 4, 5], 4),
        (S::ModularIndexing, vec![-1, 4, 5], 4),
        (S::Max, vec![1, 5, 3], 5),
        (S::Min, vec![4, 5, 3], 3),
        (S::Abs, vec![-4], 4),
        (S::PowByNatural, vec![-2, 3], -8),
        (S::PowByNatural, vec![0, 0], 1),
        (S::PowByNatural, vec![-1, MAX], -1),
        (S::Pow, vec![3, 2], 9),
        (S::TruncToInt, vec![4], 4),
        (S::Identity, vec![4], 4),
    ] {
        let exprs: Vec<_> = operands.iter().copied().map(int).collect();
        assert_eq!(of(function, &exprs), Ok(Value::Int(expected)), "{function:?} {operands:?}");
    }
    assert_eq!(value(&SymExpr::Symbol("s0".into())), Ok(Value::Int(3)));
    assert_eq!(of(S::Where, &[bool(false), int(1), int(2)]), Ok(Value::Int(2)));
}

#[test]
fn floats() {
    let float = |function, operands: &[SymExpr], expected: f64| {
        assert_eq!(of(function, operands), Ok(Value::Float(expected)), "{function:?} {operands:?}");
    };
    float(S::ToFloat, &[int(3)], 3.0);
    float(S::Add, &[int(1), real(0.5)], 1.5);
    float(S::Mul, &[real(0.5), int(3)], 1.5);
    float(S::Max, &[int(3), real(2.5)], 3.0);
    float(S::Min, &[int(3), real(2.5)], 2.5);
    float(S::Abs, &[real(-0.5)], 0.5);
    float(S::IntTrueDiv, &[int(7), int(2)], 3.5);
    float(S::IntTrueDiv, &[int(-7), int(2)], -3.5);
    float(S::IntTrueDiv, &[int(0), int(5)], 0.0);
    float(S::FloatTrueDiv, &[real(1.0), real(4.0)], 0.25);
    float(S::FloatPow, &[real(2.0), real(-1.0)], 0.5);
    float(S::Pow, &[real(2.0), int(3)], 8.0);
    float(S::Sqrt, &[real(2.25)], 1.5);
    float(S::Sqrt, &[int(4)], 2.0);
    // Each operand alone would be rounded: Python's 9223372036854775807 / 9007199254740993 is not the quotient of the floats.
    float(S::IntTrueDiv, &[int(MAX), int((1 << 53) + 1)], 1_023.999_999_999_999_9);
    float(S::IntTrueDiv, &[int(MIN), int(MIN)], 1.0);
    float(S::IntTrueDiv, &[int(1), int(MAX)], 1.0842021724855044e-19);
    let to_int = |function, from: f64, expected: i64| {
        assert_eq!(of(function, &[real(from)]), Ok(Value::Int(expected)), "{function:?} {from}");
    };
    to_int(S::TruncToInt, -2.7, -2);
    to_int(S::FloorToInt, -2.2, -3);
    to_int(S::CeilToInt, 2.2, 3);
    to_int(S::RoundToInt, 2.5, 2);
    to_int(S::RoundToInt, 3.5, 4);
    to_int(S::RoundToInt, -0.5, 0);
    to_int(S::TruncToInt, -9_223_372_036_854_775_808.0, MIN);
}

#[test]
fn conditions() {
    let check = |function, operands: &[SymExpr], expected: bool| {
        assert_eq!(of(function, operands), Ok(Value::Bool(expected)), "{function:?} {operands:?}");
    };
    for (a, b, ordering) in [
        (int(1), int(2), -1),
        (int(2), int(2), 0),
        (int(2), real(2.0), 0),
        (int(2), real(2.5), -1),
        (int(3), real(2.5), 1),
        (int(-2), real(-2.5), 1),
        (int(-3), real(-2.5), -1),
        (real(0.5), real(0.25), 1),
        (int((1 << 53) + 1), real((1_i64 << 53) as f64), 1),
        (int(MAX), real(9_223_372_036_854_775_808.0), -1),
        (int(MIN), real(-9_223_372_036_854_775_808.0), 0),
        (int(MIN), real(f64::NEG_INFINITY), 1),
        (int(MAX), real(f64::INFINITY), -1),
    ] {
        for (a, b, ordering) in [(&a, &b, ordering), (&b, &a, -ordering)] {
            let pair = [a.clone(), b.clone()];
            check(S::Eq, &pair, ordering == 0);
            check(S::Ne, &pair, ordering != 0);
            check(S::Lt, &pair, ordering < 0);
            check(S::Le, &pair, ordering <= 0);
            check(S::Gt, &pair, ordering > 0);
            check(S::Ge, &pair, ordering >= 0);
        }
    }
    check(S::Eq, &[bool(true), bool(true)], true);
    check(S::Ne, &[bool(true), bool(true)], false);
    check(S::And, &[bool(true), bool(true), bool(false)], false);
    check(S::And, &[bool(true)], true);
    check(S::Or, &[bool(false), bool(true), bool(false)], true);
    check(S::Not, &[bool(true)], false);
}

#[test]
fn what_has_no_value_is_an_error() {
    use EvaluateError as E;
    let zero = SymExpr::Call(S::FloorDiv, vec![int(1), int(0)]);
    for (function, operands, error) in [
        (S::Add, vec![int(MAX), int(1)], E::Overflow),
        (S::Mul, vec![int(MAX), int(2)], E::Overflow),
        (S::FloorDiv, vec![int(MIN), int(-1)], E::Overflow),
        (S::CeilDiv, vec![int(MIN), int(-1)], E::Overflow),
        (S::Abs, vec![int(MIN)], E::Overflow),
        (S::PowByNatural, vec![int(2), int(63)], E::Overflow),
        (S::PowByNatural, vec![int(2), int(MAX)], E::Overflow),
        (S::TruncToInt, vec![real(9.3e18)], E::Overflow),
        (S::FloorToInt, vec![real(f64::INFINITY)], E::Overflow),
        (S::FloatPow, vec![real(10.0), real(400.0)], E::Overflow),
        (S::FloorDiv, vec![int(1), int(0)], E::DivisionByZero),
        (S::CeilDiv, vec![int(1), int(0)], E::DivisionByZero),
        (S::Mod, vec![int(1), int(0)], E::DivisionByZero),
        (S::PythonMod, vec![int(1), int(0)], E::DivisionByZero),
        (S::ModularIndexing, vec![int(1), int(0), int(3)], E::DivisionByZero),
        (S::ModularIndexing, vec![int(1), int(3), int(0)], E::DivisionByZero),
        (S::IntTrueDiv, vec![int(1), int(0)], E::DivisionByZero),
        (S::FloatTrueDiv, vec![real(1.0), real(0.0)], E::DivisionByZero),
        (S::FloatPow, vec![real(0.0), real(-1.0)], E::DivisionByZero),
        (S::Sqrt, vec![real(-1.0)], E::NotANumber),
        (S::FloatPow, vec![real(-1.0), real(0.5)], E::NotANumber),
        (S::Add, vec![real(f64::INFINITY), real(f64::NEG_INFINITY)], E::NotANumber),
        (S::Add, vec![real(f64::NAN), int(1)], E::NotANumber),
        (S::Mod, vec![int(-1), int(3)], E::WrongOperand { function: S::Mod }),
        (S::Mod, vec![int(1), int(-3)], E::WrongOperand { function: S::Mod }),
        (S::FloorDiv, vec![real(1.0), int(3)], E::WrongOperand { function: S::FloorDiv }),
        (S::PowByNatural, vec![int(2), int(-1)], E::WrongOperand { function: S::PowByNatural }),
        (S::Pow, vec![int(2), int(-1)], E::WrongOperand { function: S::Pow }),
        (S::Add, vec![bool(true), int(1)], E::WrongOperand { function: S::Add }),
        (S::Add, vec![bool(true)], E::WrongOperand { function: S::Add }),
        (S::And, vec![int(1)], E::WrongOperand { function: S::And }),
        (S::Eq, vec![bool(true), int(1)], E::WrongOperand { function: S::Eq }),
        (S::Lt, vec![bool(true), bool(false)], E::WrongOperand { function: S::Lt }),
        (S::Where, vec![int(1), int(1), int(1)], E::WrongOperand { function: S::Where }),
        (S::Add, vec![], E::WrongCount { function: S::Add, found: 0 }),
        (S::Eq, vec![int(1)], E::WrongCount { function: S::Eq, found: 1 }),
        (S::Not, vec![bool(true), bool(true)], E::WrongCount { function: S::Not, found: 2 }),
        (S::Add, vec![SymExpr::Symbol("m".into())], E::UnknownSymbol("m".into())),
        // Every operand counts, whatever the others are.
        (S::Or, vec![bool(true), SymExpr::Call(S::Eq, vec![zero.clone(), int(1)])], E::DivisionByZero),
        (S::And, vec![bool(false), SymExpr::Call(S::Eq, vec![zero.clone(), int(1)])], E::DivisionByZero),
        (S::Where, vec![bool(true), int(1), zero.clone()], E::DivisionByZero),
    ] {
        assert_eq!(of(function, &operands), Err(error), "{function:?} {operands:?}");
    }
    assert_eq!(holds(&int(1), &|_| None), Err(E::NotABool));
}

#[test]
fn depth_is_bounded() {
    let nested = |depth| (0..depth).fold(int(1), |inner, _| SymExpr::Call(S::Identity, vec![inner]));
    assert_eq!(value(&nested(MAX_EXPRESSION_DEPTH)), Ok(Value::Int(1)));
    assert_eq!(value(&nested(MAX_EXPRESSION_DEPTH + 1)), Err(EvaluateError::TooDeep));
}

proptest! {
    /// Division and remainder belong together, in every combination of signs.
    #[test]
    fn floor_division_and_remainder_fit(a in any::<i64>(), b in any::<i64>().prop_filter("no division by zero", |b| *b != 0)) {
        prop_assume!((a, b) != (MIN, -1));
        let Ok(Value::Int(quotient)) = of(S::FloorDiv, &[int(a), int(b)]) else { panic!("an integer") };
        let Ok(Value::Int(remainder)) = of(S::PythonMod, &[int(a), int(b)]) else { panic!("an integer") };
        prop_assert_eq!(i128::from(quotient) * i128::from(b) + i128::from(remainder), i128::from(a));
        prop_assert!(remainder == 0 || (remainder < 0) == (b < 0));
    }

    /// Where floats hold the operands exactly, the quotient is the hardware's.
    #[test]
    fn true_division_is_the_nearest_float(a in -(1i64 << 53)..(1 << 53), b in 1i64..(1 << 53)) {
        prop_assert_eq!(of(S::IntTrueDiv, &[int(a), int(b)]), Ok(Value::Float(a as f64 / b as f64)));
    }
}
