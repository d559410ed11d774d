//! From a runtime size to the part of an artifact that runs it.
//!
//! Two levels: the plan's single sizes beat its ranges, and within the artifact of a range the segments say which part was proven
//! for which sizes. Where no segment of a range has guards, which is the usual case, both are one table. Where one has, the range's
//! segments are asked in their order, and the first that contains the size and whose guards all hold runs the call. A size that a range covers but
//! none of its segments takes must not be run, and is an error as any other size outside.

use std::collections::HashSet;

use piecewised_graph::{GuardSymbol, Handle, Segment, check_segments, holds};
use piecewised_plan::{DispatchTable, Range};
use serde::Serialize;

use crate::ClientError;

/// What to run: a part of the artifact that a handle names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Position of the handle among those that the dispatcher was made from.
    pub handle: usize,
    /// The part's name within the artifact.
    pub entry: String,
}

/// Where a call carries a value that guards need, beside the size that is dispatched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValuePlace {
    /// Position of the argument.
    pub argument: u32,
    /// The dimension of the tensor there; `None`: the argument is the integer itself.
    pub dimension: Option<u32>,
}

/// Finds the target for a size.
#[derive(Debug, Clone)]
pub struct Dispatcher {
    targets: Vec<Target>,
    how: How,
    guarded: Vec<Guarded>,
    places: Vec<ValuePlace>,
}

#[derive(Debug, Clone)]
enum How {
    /// No symbolic input: one target for every call.
    Always,
    /// By the value of this argument.
    Argument(u32, DispatchTable<Slot>),
}

#[derive(Debug, Clone, Copy)]
enum Slot {
    /// Position in `targets`.
    Target(usize),
    /// Position in `guarded`.
    Guarded(usize),
}

/// A range of which some segments have guards.
#[derive(Debug, Clone)]
struct Guarded {
    range: Range,
    /// In the order in which they are asked, each with its position in `targets`.
    segments: Vec<(Segment, usize)>,
    symbols: Vec<(String, Source)>,
}

/// What gives a symbol its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The size that is dispatched on.
    Size,
    /// Position in `places`.
    Value(usize),
}

impl Dispatcher {
    /// A dispatcher over the handles of one piece, one for each entry of its plan, in any order.
    ///
    /// # Errors
    /// [`ClientError::BadHandles`] where they contradict each other or themselves.
    pub fn new(handles: &[Handle]) -> Result<Self, ClientError> {
        let bad = |problem: String| ClientError::BadHandles { problem };
        let Some(first) = handles.first() else {
            return Err(bad("there is none".into()));
        };
        if handles.iter().any(|h| h.dispatch_argument != first.dispatch_argument || h.n_arguments != first.n_arguments)
        {
            return Err(bad("they are not of one piece: they disagree about the arguments".into()));
        }
        let Some(argument) = first.dispatch_argument else {
            return Self::always(handles);
        };
        if argument >= first.n_arguments {
            return Err(bad(format!("argument {argument} decides, but there are only {}", first.n_arguments)));
        }
        // A single size of the plan takes its size from the range around it, so its part of that range is left out.
        let exact: HashSet<i64> =
            handles.iter().filter_map(|h| h.range).filter(|r| r.is_single_size()).map(Range::start).collect();
        let mut made = Self { targets: Vec::new(), how: How::Always, guarded: Vec::new(), places: Vec::new() };
        let mut entries = Vec::new();
        for (index, handle) in handles.iter().enumerate() {
            let range = handle.range.ok_or_else(|| bad("one with an argument to dispatch on has no range".into()))?;
            check_segments(&handle.segments, &handle.guard_symbols, Some(range))
                .map_err(|problem| bad(format!("the one for {range}: {problem}")))?;
            if handle.segments.iter().any(|segment| !segment.guards.is_empty()) {
                let guarded = made.guarded(index, handle, range, argument)?;
                entries.push((range, Slot::Guarded(made.guarded.len())));
                made.guarded.push(guarded);
                continue;
            }
            for (part, entry) in handle.segments.iter().filter_map(|segment| Some((segment.range?, &segment.entry))) {
                if part.is_single_size() && !range.is_single_size() && exact.contains(&part.start()) {
                    continue;
                }
                entries.push((part, Slot::Target(made.target(index, entry))));
            }
        }
        let table = DispatchTable::new(entries).map_err(|error| bad(error.to_string()))?;
        Ok(Self { how: How::Argument(argument, table), ..made })
    }

    fn always(handles: &[Handle]) -> Result<Self, ClientError> {
        let bad = |problem: &str| ClientError::BadHandles { problem: problem.into() };
        let [handle] = handles else {
            return Err(bad("a piece without a symbolic input has exactly one"));
        };
        let [segment] = handle.segments.as_slice() else {
            return Err(bad("a piece without a symbolic input has exactly one segment"));
        };
        if !segment.guards.is_empty() {
            return Err(bad("a piece without a symbolic input has no guards: there is nothing to choose"));
        }
        let targets = vec![Target { handle: 0, entry: segment.entry.clone() }];
        Ok(Self { targets, how: How::Always, guarded: Vec::new(), places: Vec::new() })
    }

    fn target(&mut self, handle: usize, entry: &str) -> usize {
        self.targets.push(Target { handle, entry: entry.to_owned() });
        self.targets.len() - 1
    }

    fn guarded(&mut self, index: usize, handle: &Handle, range: Range, size: u32) -> Result<Guarded, ClientError> {
        let source = |made: &mut Self, symbol: &GuardSymbol| {
            if symbol.argument >= handle.n_arguments {
                let (name, at) = (&symbol.name, symbol.argument);
                let problem = format!("{name} is argument {at}, but there are only {}", handle.n_arguments);
                return Err(ClientError::BadHandles { problem });
            }
            if symbol.argument == size && symbol.dimension.is_none() {
                return Ok(Source::Size);
            }
            let place = ValuePlace { argument: symbol.argument, dimension: symbol.dimension };
            let known = made.places.iter().position(|other| *other == place);
            Ok(Source::Value(known.unwrap_or_else(|| {
                made.places.push(place);
                made.places.len() - 1
            })))
        };
        let symbols = handle.guard_symbols.iter();
        let symbols = symbols.map(|symbol| Ok((symbol.name.clone(), source(self, symbol)?)));
        let symbols = symbols.collect::<Result<_, ClientError>>()?;
        let segments = handle.segments.iter();
        let segments = segments.map(|segment| (segment.clone(), self.target(index, &segment.entry))).collect();
        Ok(Guarded { range, segments, symbols })
    }

    /// What lookups name by position.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The argument whose value decides; `None`: there is one target, for every call.
    pub fn argument(&self) -> Option<u32> {
        match &self.how {
            How::Always => None,
            How::Argument(argument, _) => Some(*argument),
        }
    }

    /// What [`Self::lookup_with`] takes beside the size. Empty: no guard names anything but the size.
    pub fn places(&self) -> &[ValuePlace] {
        &self.places
    }

    /// Whether the target for `size` depends on more than the size, so that it is [`Self::lookup_with`] that finds it.
    pub fn depends_on_values(&self, size: i64) -> bool {
        match self.slot(size) {
            Ok(Slot::Guarded(at)) => self.guarded[at].symbols.iter().any(|(_, source)| *source != Source::Size),
            Ok(Slot::Target(_)) | Err(_) => false,
        }
    }

    /// The position of the target for `size`. A guard that names more than the size does not hold.
    ///
    /// # Errors
    /// As [`Self::lookup_with`].
    pub fn lookup(&self, size: i64) -> Result<usize, ClientError> {
        self.lookup_with(size, &[])
    }

    /// The position of the target for a call with `size`, and with `values` at [`Self::places`], in their order.
    ///
    /// # Errors
    /// With the reason `SIZE_NOT_COVERED`, [`ClientError::Plan`] or [`ClientError::NoSegment`], which name the size and what there is;
    /// [`ClientError::GuardFailed`], which names the guards too.
    pub fn lookup_with(&self, size: i64, values: &[i64]) -> Result<usize, ClientError> {
        match self.slot(size)? {
            Slot::Target(target) => Ok(target),
            Slot::Guarded(at) => self.guarded[at].lookup(size, values),
        }
    }

    fn slot(&self, size: i64) -> Result<Slot, ClientError> {
        match &self.how {
            How::Always => Ok(Slot::Target(0)),
            How::Argument(_, table) => Ok(*table.lookup(size)?),
        }
    }
}

impl Guarded {
    fn lookup(&self, size: i64, values: &[i64]) -> Result<usize, ClientError> {
        let value_of = |name: &str| {
            let (_, source) = self.symbols.iter().find(|(known, _)| known == name)?;
            match source {
                Source::Size => Some(size),
                Source::Value(at) => values.get(*at).copied(),
            }
        };
        let covering = || self.segments.iter().filter(|(segment, _)| segment.range.is_some_and(|r| r.contains(size)));
        for (segment, target) in covering() {
            if segment.guards.iter().all(|guard| holds(guard, &value_of) == Ok(true)) {
                return Ok(*target);
            }
        }
        let texts: Vec<String> = covering().map(|(segment, _)| why_not(segment, &value_of)).collect();
        if texts.is_empty() {
            let segments = self.segments.iter().map(|(segment, _)| segment.to_string()).collect();
            return Err(ClientError::NoSegment { size, range: self.range, segments });
        }
        let values = self.symbols.iter().filter_map(|(name, _)| Some(format!("{name} = {}", value_of(name)?)));
        Err(ClientError::GuardFailed { size, range: self.range, segments: texts, values: values.collect() })
    }
}

/// The sizes of a segment, and the guard for which it does not take the call.
fn why_not(segment: &Segment, value_of: &impl Fn(&str) -> Option<i64>) -> String {
    let reason = segment.guards.iter().find_map(|guard| match holds(guard, value_of) {
        Ok(true) => None,
        Ok(false) => Some(format!("{guard} is false")),
        Err(error) => Some(format!("{guard} can't be decided: {error}")),
    });
    let sizes = segment.range.map_or_else(String::new, |range| range.to_string());
    format!("{sizes}: {}", reason.unwrap_or_default())
}
