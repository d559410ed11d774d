//! The segments of a handle and the guards that they run under: the rules of their form, and what is not proven by them.
//!
//! One set of rules for all who read segments: an executor's answer, a handle before it is stored, a dispatcher. What comes from
//! an executor or over the wire is checked here before anything is dispatched on it, so that evaluating a guard can fail for what
//! a call brings along, but never for the guard's own form.

use std::fmt::{self, Display, Formatter};

use piecewised_plan::Range;
use thiserror::Error;

use crate::{
    evaluate::MAX_EXPRESSION_DEPTH,
    handle::{GuardSymbol, Segment},
    model::SymExpr,
    validate::arity,
};

/// Which rule segments break.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct BadSegments(String);

/// Checks that segments can be dispatched on, for an artifact that is meant for `range`.
///
/// There is at least one; each lies in the range; one without guards overlaps no later one, since that would never run; every guard is
/// a well-formed expression over `symbols`. Without a range there is exactly one segment, and it has no guards: nothing is dispatched.
///
/// # Errors
/// The first rule that is broken.
pub fn check_segments(segments: &[Segment], symbols: &[GuardSymbol], range: Option<Range>) -> Result<(), BadSegments> {
    let bad = |problem: String| Err(BadSegments(problem));
    let Some(range) = range else {
        return match segments {
            [] => bad("there is no segment".into()),
            [Segment { range: None, guards, .. }] if guards.is_empty() => Ok(()),
            [Segment { range: None, .. }] => bad("a segment without a range has guards".into()),
            [Segment { range: Some(part), .. }, ..] => bad(format!("a segment for {part} where there is no range")),
            _ => bad(format!("{} segments where there is no range", segments.len())),
        };
    };
    if segments.is_empty() {
        return bad("there is no segment".into());
    }
    for (i, symbol) in symbols.iter().enumerate() {
        if symbols[..i].iter().any(|other| other.name == symbol.name) {
            return bad(format!("two values for {}", symbol.name));
        }
    }
    for (i, segment) in segments.iter().enumerate() {
        let Some(part) = segment.range else {
            return bad(format!("a segment without a range in {range}"));
        };
        if !range.covers(part) {
            return bad(format!("a segment for {part} lies outside of its range {range}"));
        }
        let earlier = segments[..i].iter().filter(|other| other.guards.is_empty());
        if let Some(other) = earlier.filter_map(|other| other.range).find(|other| other.overlaps(part)) {
            return bad(format!("overlapping segments {other} and {part}, the first of which has no guards"));
        }
        segment.guards.iter().try_for_each(|guard| check_guard(guard, symbols, 0))?;
    }
    Ok(())
}

fn check_guard(expr: &SymExpr, symbols: &[GuardSymbol], depth: usize) -> Result<(), BadSegments> {
    if depth > MAX_EXPRESSION_DEPTH {
        return Err(BadSegments(format!("a guard is nested more than {MAX_EXPRESSION_DEPTH} deep")));
    }
    match expr {
        SymExpr::Int(_) | SymExpr::Real(_) | SymExpr::Bool(_) => Ok(()),
        SymExpr::Symbol(name) if symbols.iter().any(|symbol| symbol.name == *name) => Ok(()),
        SymExpr::Symbol(name) => Err(BadSegments(format!("a guard names {name}, which nothing gives a value"))),
        SymExpr::Call(function, operands) if arity(*function).contains(&operands.len()) => {
            operands.iter().try_for_each(|operand| check_guard(operand, symbols, depth + 1))
        }
        SymExpr::Call(function, operands) => {
            Err(BadSegments(format!("a guard has {function:?} of {} operands", operands.len())))
        }
    }
}

/// What of a range is not proven by its segments: where guards decide, and what nothing runs. `None`: all of it is proven.
pub fn unproven(range: Option<Range>, segments: &[Segment]) -> Option<String> {
    let range = range?;
    let plain = segments.iter().filter(|segment| segment.guards.is_empty());
    if gaps(range, plain).is_empty() {
        return None;
    }
    let guarded = segments.iter().filter(|segment| !segment.guards.is_empty());
    let mut texts: Vec<String> = guarded.map(ToString::to_string).collect();
    let nothing = gaps(range, segments.iter());
    texts.extend(nothing.into_iter().map(|(start, end)| format!("[{start}, {end}] not at all")));
    Some(texts.join("; "))
}

/// As messages name it: `[8, 64] where s0 % 8 == 0`.
impl Display for Segment {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.range {
            Some(range) => write!(f, "{range}")?,
            None => f.write_str("any size")?,
        }
        for (i, guard) in self.guards.iter().enumerate() {
            write!(f, " {} {guard}", if i == 0 { "where" } else { "and" })?;
        }
        Ok(())
    }
}

/// The sizes of `whole` in none of the segments.
fn gaps<'a>(whole: Range, segments: impl Iterator<Item = &'a Segment>) -> Vec<(i64, i64)> {
    let mut parts: Vec<Range> = segments.filter_map(|segment| segment.range).collect();
    parts.sort_unstable();
    let mut found = Vec::new();
    // The first size that is in no part so far; `None`: there are no more sizes.
    let mut next = Some(whole.start());
    for part in parts {
        let Some(from) = next else { break };
        if part.start() > from {
            found.push((from, part.start() - 1));
        }
        if part.end() >= from {
            next = part.end().checked_add(1);
        }
    }
    if let Some(from) = next.filter(|&from| from <= whole.end()) {
        found.push((from, whole.end()));
    }
    found
}
