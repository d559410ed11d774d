//! From a runtime size to the part of an artifact that runs it.
//!
//! Two levels become one table: the plan's single sizes beat its ranges, and within the artifact of a range the segments say
//! which part was proven for which sizes. A size that a range covers but none of its segments does must not be run, and is
//! an error as any other size outside.

use std::collections::HashSet;

use piecewised_graph::Handle;
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

/// Finds the target for a size.
#[derive(Debug, Clone)]
pub struct Dispatcher {
    targets: Vec<Target>,
    how: How,
}

#[derive(Debug, Clone)]
enum How {
    /// No symbolic input: one target for every call.
    Always,
    /// By the value of this argument.
    Argument(u32, DispatchTable<usize>),
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
        let mut targets = Vec::new();
        let mut entries = Vec::new();
        for (index, handle) in handles.iter().enumerate() {
            let range = handle.range.ok_or_else(|| bad("one with an argument to dispatch on has no range".into()))?;
            if handle.segments.is_empty() {
                return Err(bad(format!("the one for {range} has no segments")));
            }
            for segment in &handle.segments {
                let part = segment.range.ok_or_else(|| bad(format!("a segment of {range} has no range")))?;
                if !range.covers(part) {
                    return Err(bad(format!("segment {part} lies outside of its range {range}")));
                }
                if part.is_single_size() && !range.is_single_size() && exact.contains(&part.start()) {
                    continue;
                }
                entries.push((part, targets.len()));
                targets.push(Target { handle: index, entry: segment.entry.clone() });
            }
        }
        let table = DispatchTable::new(entries).map_err(|error| bad(error.to_string()))?;
        Ok(Self { targets, how: How::Argument(argument, table) })
    }

    fn always(handles: &[Handle]) -> Result<Self, ClientError> {
        let bad = |problem: &str| ClientError::BadHandles { problem: problem.into() };
        let [handle] = handles else {
            return Err(bad("a piece without a symbolic input has exactly one"));
        };
        let [segment] = handle.segments.as_slice() else {
            return Err(bad("a piece without a symbolic input has exactly one segment"));
        };
        Ok(Self { targets: vec![Target { handle: 0, entry: segment.entry.clone() }], how: How::Always })
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

    /// The position of the target for `size`.
    ///
    /// # Errors
    /// [`ClientError::Plan`] with `SIZE_NOT_COVERED`, which names the size and what there is.
    pub fn lookup(&self, size: i64) -> Result<usize, ClientError> {
        match &self.how {
            How::Always => Ok(0),
            How::Argument(_, table) => Ok(*table.lookup(size)?),
        }
    }
}
