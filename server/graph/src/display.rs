//! Expressions as a person writes them: `s0 % 8 == 0`, `max(s0, 2) < s1 // 4`. For messages; nothing reads it back.

use std::fmt::{self, Display, Formatter};

use crate::{
    evaluate::MAX_EXPRESSION_DEPTH,
    model::{SymExpr, SymFunction},
};

/// How strongly an operator binds, weakest first, as in Python.
mod binding {
    pub(super) const OR: u8 = 1;
    pub(super) const AND: u8 = 2;
    pub(super) const NOT: u8 = 3;
    pub(super) const COMPARISON: u8 = 4;
    pub(super) const SUM: u8 = 5;
    pub(super) const PRODUCT: u8 = 6;
    pub(super) const SIGN: u8 = 7;
    pub(super) const POWER: u8 = 8;
    pub(super) const ATOM: u8 = 9;
}

impl Display for SymExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write(self, f, 0, 0)
    }
}

/// Writes `expr`, in brackets where it binds less than `outer`.
fn write(expr: &SymExpr, f: &mut Formatter<'_>, outer: u8, depth: usize) -> fmt::Result {
    if depth > MAX_EXPRESSION_DEPTH {
        return f.write_str("...");
    }
    let own = strength(expr);
    if own < outer {
        f.write_str("(")?;
        write_bare(expr, f, depth)?;
        return f.write_str(")");
    }
    write_bare(expr, f, depth)
}

fn strength(expr: &SymExpr) -> u8 {
    match expr {
        SymExpr::Int(value) if *value < 0 => binding::SIGN,
        SymExpr::Real(value) if value.0.is_sign_negative() => binding::SIGN,
        SymExpr::Call(function, operands) => match style(*function, operands.len()) {
            Style::Infix(_, strength) => strength,
            Style::Not => binding::NOT,
            Style::Function(_) => binding::ATOM,
        },
        _ => binding::ATOM,
    }
}

fn write_bare(expr: &SymExpr, f: &mut Formatter<'_>, depth: usize) -> fmt::Result {
    let (function, operands) = match expr {
        SymExpr::Int(value) => return Display::fmt(value, f),
        SymExpr::Symbol(name) => return f.write_str(name),
        SymExpr::Real(value) => return write!(f, "{:?}", value.0),
        SymExpr::Bool(value) => return f.write_str(if *value { "True" } else { "False" }),
        SymExpr::Call(function, operands) => (*function, operands),
    };
    match style(function, operands.len()) {
        Style::Not => {
            f.write_str("not ")?;
            operands.iter().try_for_each(|operand| write(operand, f, binding::NOT, depth + 1))
        }
        Style::Infix(operator, strength) => {
            // Sums and the like may be read from either side; `a - (b - c)` and `2 ** (3 ** 4)` may not, nor `a == (b == c)`.
            let associates =
                matches!(function, SymFunction::Add | SymFunction::Mul | SymFunction::And | SymFunction::Or);
            for (at, operand) in operands.iter().enumerate() {
                if at > 0 {
                    write!(f, " {operator} ")?;
                }
                write(operand, f, if associates { strength } else { strength + 1 }, depth + 1)?;
            }
            Ok(())
        }
        Style::Function(name) => {
            write!(f, "{name}(")?;
            for (at, operand) in operands.iter().enumerate() {
                if at > 0 {
                    f.write_str(", ")?;
                }
                write(operand, f, 0, depth + 1)?;
            }
            f.write_str(")")
        }
    }
}

enum Style {
    Infix(&'static str, u8),
    Not,
    Function(&'static str),
}

fn style(function: SymFunction, n_operands: usize) -> Style {
    use SymFunction as S;
    let infix = match function {
        S::Add => Some(("+", binding::SUM)),
        S::Mul => Some(("*", binding::PRODUCT)),
        S::Pow | S::PowByNatural | S::FloatPow => Some(("**", binding::POWER)),
        S::FloorDiv | S::CleanDiv => Some(("//", binding::PRODUCT)),
        S::Mod | S::PythonMod => Some(("%", binding::PRODUCT)),
        S::IntTrueDiv | S::FloatTrueDiv => Some(("/", binding::PRODUCT)),
        S::Eq => Some(("==", binding::COMPARISON)),
        S::Ne => Some(("!=", binding::COMPARISON)),
        S::Lt => Some(("<", binding::COMPARISON)),
        S::Le => Some(("<=", binding::COMPARISON)),
        S::Gt => Some((">", binding::COMPARISON)),
        S::Ge => Some((">=", binding::COMPARISON)),
        S::And => Some(("and", binding::AND)),
        S::Or => Some(("or", binding::OR)),
        _ => None,
    };
    match infix {
        // One operand of an n-ary function stands for itself, none for nothing.
        Some((operator, strength)) if n_operands > 1 => Style::Infix(operator, strength),
        _ if function == S::Not => Style::Not,
        _ => Style::Function(name(function)),
    }
}

fn name(function: SymFunction) -> &'static str {
    use SymFunction as S;
    match function {
        S::Add => "add",
        S::Mul => "mul",
        S::Pow => "pow",
        S::FloorDiv => "floor_div",
        S::CleanDiv => "clean_div",
        S::CeilDiv => "ceil_div",
        S::Mod => "mod",
        S::PythonMod => "python_mod",
        S::ModularIndexing => "modular_indexing",
        S::Max => "max",
        S::Min => "min",
        S::ToFloat => "float",
        S::TruncToInt => "trunc",
        S::FloorToInt => "floor",
        S::CeilToInt => "ceil",
        S::RoundToInt => "round",
        S::IntTrueDiv => "int_true_div",
        S::FloatTrueDiv => "float_true_div",
        S::PowByNatural => "pow_by_natural",
        S::FloatPow => "float_pow",
        S::Abs => "abs",
        S::Where => "where",
        S::Identity => "identity",
        S::Eq => "eq",
        S::Ne => "ne",
        S::Lt => "lt",
        S::Le => "le",
        S::Gt => "gt",
        S::Ge => "ge",
        S::And => "and",
        S::Or => "or",
        S::Not => "not",
        S::Sqrt => "sqrt",
    }
}
