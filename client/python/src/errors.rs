//! From the client's errors to the exception classes of `piecewised.errors`.

use std::collections::BTreeMap;

use piecewised_client::ClientError;
use piecewised_plan::PlanError;
use pyo3::{prelude::*, types::PyDict};

/// The exception for an error of the client.
pub(crate) fn raise(py: Python<'_>, error: &ClientError) -> PyErr {
    make(py, class_of(error), &error.to_string(), error.reason(), &error.metadata())
}

/// The exception for an error in a plan, or a size that it doesn't cover.
pub(crate) fn raise_plan(py: Python<'_>, error: PlanError) -> PyErr {
    raise(py, &ClientError::from(error))
}

/// The exception for JSON text that isn't what it should be. `what` names it, "graph".
pub(crate) fn raise_json(py: Python<'_>, what: &str, error: &serde_json::Error) -> PyErr {
    let class = if what == "options" { "OptionError" } else { "FormatError" };
    let reason = format!("BAD_{}", what.to_uppercase());
    make(py, class, &format!("the {what} is not in the form that piecewised takes: {error}"), &reason, &BTreeMap::new())
}

fn class_of(error: &ClientError) -> &'static str {
    match error {
        ClientError::Endpoint(_) => "EndpointError",
        ClientError::BadTrustedKeys { .. } | ClientError::BadCredentials { .. } => "OptionError",
        ClientError::Untrusted(_) => "Untrusted",
        ClientError::Unreachable { .. } => "Unreachable",
        ClientError::Broken { .. } => "ConnectionBroken",
        ClientError::BudgetSpent { .. } => "BudgetSpent",
        ClientError::Refused(refusal) if error.is_callers_mistake() => match refusal.reason.as_str() {
            "BAD_PROGRAM_NAME" | "BAD_PIECE_INDEX" | "DIFFERENT_TOTALS" | "DIFFERENT_PIECE" => "ProgramError",
            reason if reason.ends_with("OPTION") => "OptionError",
            _ => "PlanError",
        },
        ClientError::Refused(_) => "Refused",
        ClientError::CacheNotPrivate { .. } | ClientError::Io { .. } => "CacheError",
        ClientError::ProgramName(_) => "ProgramError",
        ClientError::Plan(PlanError::NotCovered { .. })
        | ClientError::NoSegment { .. }
        | ClientError::GuardFailed { .. } => "NotCovered",
        ClientError::Plan(_) => "PlanError",
        _ => "ArtifactError",
    }
}

fn make(py: Python<'_>, class: &str, message: &str, reason: &str, metadata: &BTreeMap<String, String>) -> PyErr {
    let exception = || -> PyResult<Bound<'_, PyAny>> {
        let keywords = PyDict::new(py);
        keywords.set_item("reason", reason)?;
        keywords.set_item("metadata", metadata)?;
        py.import("piecewised.errors")?.getattr(class)?.call((message,), Some(&keywords))
    };
    match exception() {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}
