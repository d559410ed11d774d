//! What an expression over symbols is for given values of them: how a dispatcher decides a guard.
//!
//! The meaning of each function is the one that `piecewised/v1/graph.proto` documents and `torch.utils._sympy` has: integers
//! divide and wrap around as Python's do, floats are IEEE doubles, an integer and a float compare exactly.
//! `tests/python/test_evaluate.py` compares it with torch's own interpreter.
//!
//! Guarantees: no input panics, overflows silently or recurses deeper than [`MAX_EXPRESSION_DEPTH`]; every operand is evaluated,
//! so that the order of commutative operands cannot decide whether there is an error; nothing is allocated but for an error.
//! What has no value (a division by zero, an integer beyond 64 bits, a float that is not a number) is an error, never a guess:
//! a guard that ends in one does not hold.

use std::cmp::Ordering;

use thiserror::Error;

use crate::{
    model::{SymExpr, SymFunction},
    validate::arity,
};

/// Levels of nested calls in an expression, as many as graphs may have ([`crate::Limits::max_nesting`]).
pub const MAX_EXPRESSION_DEPTH: usize = 32;

/// What an expression is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// An integer.
    Int(i64),
    /// A float, never NaN.
    Float(f64),
    /// A bool.
    Bool(bool),
}

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EvaluateError {
    /// A symbol without a value.
    #[error("{0} has no value")]
    UnknownSymbol(String),
    /// A division by zero, or zero to a negative power.
    #[error("it divides by zero")]
    DivisionByZero,
    /// An integer outside of 64 bits, or a power outside of the floats.
    #[error("a number in it is too large")]
    Overflow,
    /// A float that is not a number, as the square root of -1.
    #[error("a number in it is not a real number")]
    NotANumber,
    /// A function that is not defined for what it was given: a bool where a number is wanted, a negative operand of `Mod`.
    #[error("{function:?} is not defined for its operands")]
    WrongOperand {
        /// The function.
        function: SymFunction,
    },
    /// More or fewer operands than the function takes.
    #[error("{function:?} does not take {found} operands")]
    WrongCount {
        /// The function.
        function: SymFunction,
        /// How many there are.
        found: usize,
    },
    /// Nested deeper than [`MAX_EXPRESSION_DEPTH`].
    #[error("it is nested more than {MAX_EXPRESSION_DEPTH} deep")]
    TooDeep,
    /// A guard that is a number.
    #[error("it is not a condition")]
    NotABool,
}

type Result<T> = std::result::Result<T, EvaluateError>;

/// The value of `expr`, where `value_of` gives those of its symbols.
///
/// # Errors
/// [`EvaluateError`] where it has none.
pub fn evaluate(expr: &SymExpr, value_of: &impl Fn(&str) -> Option<i64>) -> Result<Value> {
    evaluate_at(expr, value_of, 0)
}

/// Whether the condition `guard` holds. An error counts as "no"; it is given for the sake of messages.
///
/// # Errors
/// [`EvaluateError`] where it has no value, or is no condition.
pub fn holds(guard: &SymExpr, value_of: &impl Fn(&str) -> Option<i64>) -> Result<bool> {
    match evaluate(guard, value_of)? {
        Value::Bool(value) => Ok(value),
        Value::Int(_) | Value::Float(_) => Err(EvaluateError::NotABool),
    }
}

fn evaluate_at(expr: &SymExpr, value_of: &impl Fn(&str) -> Option<i64>, depth: usize) -> Result<Value> {
    if depth > MAX_EXPRESSION_DEPTH {
        return Err(EvaluateError::TooDeep);
    }
    match expr {
        SymExpr::Int(value) => Ok(Value::Int(*value)),
        SymExpr::Real(value) => float(value.0),
        SymExpr::Bool(value) => Ok(Value::Bool(*value)),
        SymExpr::Symbol(name) => match value_of(name) {
            Some(value) => Ok(Value::Int(value)),
            None => Err(EvaluateError::UnknownSymbol(name.clone())),
        },
        SymExpr::Call(function, operands) => {
            if !arity(*function).contains(&operands.len()) {
                return Err(EvaluateError::WrongCount { function: *function, found: operands.len() });
            }
            Call { function: *function, operands, value_of, depth: depth + 1 }.evaluate()
        }
    }
}

/// A call whose number of operands is right.
struct Call<'a, F> {
    function: SymFunction,
    operands: &'a [SymExpr],
    value_of: &'a F,
    depth: usize,
}

impl<F: Fn(&str) -> Option<i64>> Call<'_, F> {
    fn evaluate(&self) -> Result<Value> {
        use SymFunction as S;
        match self.function {
            S::Add | S::Mul | S::Max | S::Min | S::And | S::Or => self.fold(),
            S::Not => Ok(Value::Bool(!self.bool(0)?)),
            S::Where => {
                let (condition, yes, no) = (self.bool(0)?, self.operand(1)?, self.operand(2)?);
                Ok(if condition { yes } else { no })
            }
            S::Identity => self.operand(0),
            S::Eq | S::Ne | S::Lt | S::Le | S::Gt | S::Ge => self.compare().map(Value::Bool),
            S::Abs => match self.number(0)? {
                Value::Int(value) => int(value.checked_abs()),
                other => float(as_float(other).abs()),
            },
            S::FloorDiv | S::CleanDiv => floor_div(self.int(0)?, self.int(1)?).map(Value::Int),
            S::CeilDiv => {
                let (a, b) = (self.int(0)?, self.int(1)?);
                let down = floor_div(a, b)?;
                // What was rounded away says whether there is a next integer to round to.
                int(if a.wrapping_sub(b.wrapping_mul(down)) == 0 { Some(down) } else { down.checked_add(1) })
            }
            S::Mod => match (self.int(0)?, self.int(1)?) {
                (_, 0) => Err(EvaluateError::DivisionByZero),
                (a, b) if a < 0 || b < 0 => Err(self.wrong()),
                (a, b) => Ok(Value::Int(a % b)),
            },
            S::PythonMod => python_mod(self.int(0)?, self.int(1)?).map(Value::Int),
            S::ModularIndexing => {
                let quotient = floor_div(self.int(0)?, self.int(1)?)?;
                python_mod(quotient, self.int(2)?).map(Value::Int)
            }
            S::ToFloat => float(as_float(self.number(0)?)),
            S::TruncToInt => self.rounded(f64::trunc),
            S::FloorToInt => self.rounded(f64::floor),
            S::CeilToInt => self.rounded(f64::ceil),
            S::RoundToInt => self.rounded(f64::round_ties_even),
            S::IntTrueDiv => int_true_div(self.int(0)?, self.int(1)?).and_then(float),
            S::FloatTrueDiv => match (self.number(0)?, self.number(1)?) {
                (Value::Int(a), Value::Int(b)) => int_true_div(a, b).and_then(float),
                (_, b) if as_float(b) == 0.0 => Err(EvaluateError::DivisionByZero),
                (a, b) => float(as_float(a) / as_float(b)),
            },
            S::PowByNatural => self.natural_power(self.int(0)?, self.int(1)?),
            S::Pow => match (self.number(0)?, self.number(1)?) {
                (Value::Int(a), Value::Int(b)) => self.natural_power(a, b),
                (a, b) => float_power(as_float(a), as_float(b)),
            },
            S::FloatPow => float_power(as_float(self.number(0)?), as_float(self.number(1)?)),
            S::Sqrt => match as_float(self.number(0)?) {
                value if value < 0.0 => Err(EvaluateError::NotANumber),
                value => float(value.sqrt()),
            },
        }
    }

    fn operand(&self, at: usize) -> Result<Value> {
        // The number of operands was checked.
        let operand = self.operands.get(at).ok_or_else(|| self.wrong())?;
        evaluate_at(operand, self.value_of, self.depth)
    }

    fn bool(&self, at: usize) -> Result<bool> {
        match self.operand(at)? {
            Value::Bool(value) => Ok(value),
            Value::Int(_) | Value::Float(_) => Err(self.wrong()),
        }
    }

    fn int(&self, at: usize) -> Result<i64> {
        match self.operand(at)? {
            Value::Int(value) => Ok(value),
            Value::Float(_) | Value::Bool(_) => Err(self.wrong()),
        }
    }

    /// An integer or a float.
    fn number(&self, at: usize) -> Result<Value> {
        match self.operand(at)? {
            Value::Bool(_) => Err(self.wrong()),
            number => Ok(number),
        }
    }

    fn wrong(&self) -> EvaluateError {
        EvaluateError::WrongOperand { function: self.function }
    }

    /// An n-ary function, from the left.
    fn fold(&self) -> Result<Value> {
        let first = self.operand(0)?;
        if matches!(first, Value::Bool(_)) != matches!(self.function, SymFunction::And | SymFunction::Or) {
            return Err(self.wrong());
        }
        (1..self.operands.len()).try_fold(first, |so_far, at| self.combine(so_far, self.operand(at)?))
    }

    fn combine(&self, a: Value, b: Value) -> Result<Value> {
        use SymFunction as S;
        match (self.function, a, b) {
            (S::And, Value::Bool(a), Value::Bool(b)) => Ok(Value::Bool(a && b)),
            (S::Or, Value::Bool(a), Value::Bool(b)) => Ok(Value::Bool(a || b)),
            (_, Value::Bool(_), _) | (_, _, Value::Bool(_)) => Err(self.wrong()),
            (S::Add, Value::Int(a), Value::Int(b)) => int(a.checked_add(b)),
            (S::Mul, Value::Int(a), Value::Int(b)) => int(a.checked_mul(b)),
            (S::Max, Value::Int(a), Value::Int(b)) => Ok(Value::Int(a.max(b))),
            (S::Min, Value::Int(a), Value::Int(b)) => Ok(Value::Int(a.min(b))),
            (S::Add, a, b) => float(as_float(a) + as_float(b)),
            (S::Mul, a, b) => float(as_float(a) * as_float(b)),
            (S::Max, a, b) => float(as_float(a).max(as_float(b))),
            (S::Min, a, b) => float(as_float(a).min(as_float(b))),
            _ => Err(self.wrong()),
        }
    }

    fn compare(&self) -> Result<bool> {
        use SymFunction as S;
        let ordering = match (self.operand(0)?, self.operand(1)?) {
            (Value::Int(a), Value::Int(b)) => a.cmp(&b),
            (Value::Float(a), Value::Float(b)) => a.partial_cmp(&b).ok_or(EvaluateError::NotANumber)?,
            (Value::Int(a), Value::Float(b)) => int_with_float(a, b),
            (Value::Float(a), Value::Int(b)) => int_with_float(b, a).reverse(),
            (Value::Bool(a), Value::Bool(b)) if matches!(self.function, S::Eq | S::Ne) => a.cmp(&b),
            _ => return Err(self.wrong()),
        };
        match self.function {
            S::Eq => Ok(ordering.is_eq()),
            S::Ne => Ok(ordering.is_ne()),
            S::Lt => Ok(ordering.is_lt()),
            S::Le => Ok(ordering.is_le()),
            S::Gt => Ok(ordering.is_gt()),
            S::Ge => Ok(ordering.is_ge()),
            _ => Err(self.wrong()),
        }
    }

    fn rounded(&self, round: fn(f64) -> f64) -> Result<Value> {
        let value = match self.number(0)? {
            Value::Float(value) => round(value),
            integer => return Ok(integer),
        };
        // Both ends are exact as floats; the upper one is the first that does not fit.
        if (-TWO_TO_63..TWO_TO_63).contains(&value) {
            Ok(Value::Int(value as i64))
        } else {
            Err(EvaluateError::Overflow)
        }
    }

    fn natural_power(&self, base: i64, exponent: i64) -> Result<Value> {
        if exponent < 0 {
            return Err(self.wrong());
        }
        match (base, u32::try_from(exponent)) {
            (_, Ok(exponent)) => int(base.checked_pow(exponent)),
            // Exponents beyond 32 bits leave these bases only.
            (0 | 1, Err(_)) => Ok(Value::Int(base)),
            (-1, Err(_)) => Ok(Value::Int(if exponent % 2 == 0 { 1 } else { -1 })),
            _ => Err(EvaluateError::Overflow),
        }
    }
}

const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;

fn int(value: Option<i64>) -> Result<Value> {
    value.map(Value::Int).ok_or(EvaluateError::Overflow)
}

fn float(value: f64) -> Result<Value> {
    if value.is_nan() { Err(EvaluateError::NotANumber) } else { Ok(Value::Float(value)) }
}

/// To the nearest float; a bool was refused before.
fn as_float(value: Value) -> f64 {
    match value {
        Value::Int(value) => value as f64,
        Value::Float(value) => value,
        Value::Bool(value) => f64::from(u8::from(value)),
    }
}

fn floor_div(a: i64, b: i64) -> Result<i64> {
    if b == 0 {
        return Err(EvaluateError::DivisionByZero);
    }
    let towards_zero = a.checked_div(b).ok_or(EvaluateError::Overflow)?;
    // The quotient is negative and was rounded up.
    Ok(if (a % b != 0) && ((a < 0) != (b < 0)) { towards_zero - 1 } else { towards_zero })
}

fn python_mod(a: i64, b: i64) -> Result<i64> {
    if b == 0 {
        return Err(EvaluateError::DivisionByZero);
    }
    let remainder = a.wrapping_rem(b);
    Ok(if remainder != 0 && ((remainder < 0) != (b < 0)) { remainder + b } else { remainder })
}

/// The float nearest to the quotient, as Python's: the operands are not rounded before they are divided.
fn int_true_div(a: i64, b: i64) -> Result<f64> {
    if b == 0 {
        return Err(EvaluateError::DivisionByZero);
    }
    let (n, d) = (u128::from(a.unsigned_abs()), u128::from(b.unsigned_abs()));
    // A quotient of 55 bits and more: 53 that a float keeps, one to round by, and one that says whether anything followed. At most
    // 64 + 55 bits are shifted in.
    let shift = (55 + n.leading_zeros()).saturating_sub(d.leading_zeros()).min(119);
    let scaled = if n == 0 { 0 } else { n << shift };
    let quotient = (scaled / d) | u128::from(!scaled.is_multiple_of(d));
    let magnitude = quotient as f64 * 2f64.powi(-(shift as i32));
    Ok(if (a < 0) != (b < 0) { -magnitude } else { magnitude })
}

fn float_power(base: f64, exponent: f64) -> Result<Value> {
    if base == 0.0 && exponent < 0.0 {
        return Err(EvaluateError::DivisionByZero);
    }
    let value = base.powf(exponent);
    if value.is_infinite() && base.is_finite() && exponent.is_finite() {
        return Err(EvaluateError::Overflow);
    }
    float(value)
}

/// Exactly: no rounding of the integer makes it equal to a float that it is not.
fn int_with_float(a: i64, b: f64) -> Ordering {
    if b >= TWO_TO_63 {
        return Ordering::Less;
    }
    if b < -TWO_TO_63 {
        return Ordering::Greater;
    }
    let whole = b.trunc();
    // What is left of a float that has a fraction is between two integers.
    a.cmp(&(whole as i64)).then_with(|| 0.0.partial_cmp(&(b - whole)).unwrap_or(Ordering::Equal))
}
