//! Plans and dispatch for Python: the same code as everywhere else.

use piecewised_client::Dispatcher as CoreDispatcher;
use piecewised_graph::Handle;
use piecewised_plan::{DispatchTable as CoreTable, Plan, Range};
use pyo3::prelude::*;

use crate::errors::{raise, raise_json, raise_plan};

/// The entries of a plan: ranges ascending, then single sizes ascending.
#[pyfunction]
#[pyo3(signature = (ranges, sizes = Vec::new()))]
pub(crate) fn plan_entries(py: Python<'_>, ranges: Vec<(i64, i64)>, sizes: Vec<i64>) -> PyResult<Vec<(i64, i64)>> {
    Ok(plan(py, &ranges, &sizes)?.entries().iter().copied().map(<(i64, i64)>::from).collect())
}

/// The ranges between endpoints.
#[pyfunction]
#[pyo3(signature = (endpoints, max_num_batched_tokens=None))]
pub(crate) fn ranges_from_endpoints(
    py: Python<'_>,
    endpoints: Vec<i64>,
    max_num_batched_tokens: Option<i64>,
) -> PyResult<Vec<(i64, i64)>> {
    let ranges = match max_num_batched_tokens {
        Some(max) => piecewised_plan::ranges_up_to(&endpoints, max),
        None => piecewised_plan::ranges_from_endpoints(&endpoints),
    };
    let ranges = ranges.map_err(|error| raise_plan(py, error))?;
    Ok(ranges.into_iter().map(<(i64, i64)>::from).collect())
}

/// The ranges of an encoder: the highest one must end at `max_num_batched_tokens`, and is extended.
#[pyfunction]
pub(crate) fn extend_for_encoder(
    py: Python<'_>,
    ranges: Vec<(i64, i64)>,
    max_num_batched_tokens: Option<i64>,
) -> PyResult<Vec<(i64, i64)>> {
    let ranges: Result<Vec<Range>, _> = ranges.iter().map(|&(start, end)| Range::new(start, end)).collect();
    let extended = ranges.and_then(|ranges| piecewised_plan::extend_for_encoder(&ranges, max_num_batched_tokens));
    Ok(extended.map_err(|error| raise_plan(py, error))?.into_iter().map(<(i64, i64)>::from).collect())
}

/// The plan of these ranges and sizes.
pub(crate) fn plan(py: Python<'_>, ranges: &[(i64, i64)], sizes: &[i64]) -> PyResult<Plan> {
    let ranges: Result<Vec<Range>, _> = ranges.iter().map(|&(start, end)| Range::new(start, end)).collect();
    ranges.and_then(|ranges| Plan::new(&ranges, sizes)).map_err(|error| raise_plan(py, error))
}

/// Finds the position of the entry for a size.
#[pyclass(module = "piecewised._core", frozen)]
pub(crate) struct DispatchTable(CoreTable<usize>);

#[pymethods]
impl DispatchTable {
    #[new]
    fn new(py: Python<'_>, entries: Vec<(i64, i64)>) -> PyResult<Self> {
        let entries: Result<Vec<(Range, usize)>, _> =
            entries.iter().enumerate().map(|(i, &(start, end))| Ok((Range::new(start, end)?, i))).collect();
        entries.and_then(CoreTable::new).map(Self).map_err(|error| raise_plan(py, error))
    }

    fn lookup(&self, py: Python<'_>, size: i64) -> PyResult<usize> {
        self.0.lookup(size).copied().map_err(|error| raise_plan(py, error))
    }
}

/// Finds what runs for a size, over the handles of one piece.
#[pyclass(module = "piecewised._core", frozen)]
pub(crate) struct Dispatcher(CoreDispatcher);

#[pymethods]
impl Dispatcher {
    #[new]
    fn new(py: Python<'_>, handles: Vec<String>) -> PyResult<Self> {
        let handles: Result<Vec<Handle>, _> = handles.iter().map(|handle| serde_json::from_str(handle)).collect();
        let handles = handles.map_err(|error| raise_json(py, "handle", &error))?;
        CoreDispatcher::new(&handles).map(Self).map_err(|error| raise(py, &error))
    }

    /// `(position of the handle, name of the entry)`, which `lookup` names by position.
    #[getter]
    fn targets(&self) -> Vec<(usize, String)> {
        self.0.targets().iter().map(|target| (target.handle, target.entry.clone())).collect()
    }

    /// The position of the argument that decides; None: there is one target.
    #[getter]
    fn argument(&self) -> Option<u32> {
        self.0.argument()
    }

    fn lookup(&self, py: Python<'_>, size: i64) -> PyResult<usize> {
        self.0.lookup(size).map_err(|error| raise(py, &error))
    }
}
