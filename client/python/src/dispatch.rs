//! Plans and dispatch for Python: the same code as everywhere else.

use std::collections::HashMap;

use piecewised_client::Dispatcher as CoreDispatcher;
use piecewised_graph::{Handle, Value, model::SymExpr};
use piecewised_plan::{DispatchTable as CoreTable, Plan, Range};
use pyo3::{IntoPyObjectExt as _, exceptions::PyArithmeticError, prelude::*};

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

    /// `(argument, dimension)` of what guards need beside the size; the dimension None: the argument is the integer itself.
    #[getter]
    fn places(&self) -> Vec<(u32, Option<u32>)> {
        self.0.places().iter().map(|place| (place.argument, place.dimension)).collect()
    }

    /// Whether what runs a size depends on the values at `places` too.
    fn depends_on_values(&self, size: i64) -> bool {
        self.0.depends_on_values(size)
    }

    #[pyo3(signature = (size, values = Vec::new()))]
    fn lookup(&self, py: Python<'_>, size: i64, values: Vec<i64>) -> PyResult<usize> {
        self.0.lookup_with(size, &values).map_err(|error| raise(py, &error))
    }
}

/// What an expression (a SymExpr as JSON) is for these values of its symbols: an int, a float or a bool. Raises ArithmeticError where
/// it is nothing.
#[pyfunction]
pub(crate) fn evaluate(py: Python<'_>, expr: &str, values: HashMap<String, i64>) -> PyResult<Py<PyAny>> {
    let expr: SymExpr = serde_json::from_str(expr).map_err(|error| raise_json(py, "expression", &error))?;
    match piecewised_graph::evaluate(&expr, &|name| values.get(name).copied()) {
        Ok(Value::Int(value)) => value.into_py_any(py),
        Ok(Value::Float(value)) => value.into_py_any(py),
        Ok(Value::Bool(value)) => value.into_py_any(py),
        Err(error) => Err(PyArithmeticError::new_err(format!("{expr}: {error}"))),
    }
}
