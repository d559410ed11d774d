//! What an executor asks, and what it is answered: `request.json` and `result.json`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `request.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    /// The artifact's folder, materialised.
    pub(crate) artifact: PathBuf,
    /// Of the GPU, for an artifact that is for one.
    #[serde(default)]
    pub(crate) device_index: usize,
    /// How long one measurement may take, about.
    pub(crate) measure_s: f64,
    /// Run in this order.
    pub(crate) cases: Vec<Case>,
}

/// One call.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// The entry that is called.
    pub(crate) entry: String,
    /// All tensor placeholders of the graph, in order.
    pub(crate) inputs: Vec<Tensor>,
    /// Whether it is timed, too.
    #[serde(default)]
    pub(crate) measure: bool,
}

/// A tensor in a file of the folder: the little-endian bytes of its elements, from the first to the last that the strides reach.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tensor {
    /// Relative to the folder. Several tensors may name one file; each is a copy of its own.
    pub(crate) file: String,
    /// torch's name.
    pub(crate) dtype: String,
    pub(crate) sizes: Vec<i64>,
    /// In elements.
    pub(crate) strides: Vec<i64>,
    /// "cpu", "cuda".
    pub(crate) device: String,
}

/// `result.json`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Answer {
    /// In the order of the request's cases.
    Done { cases: Vec<CaseResult>, libtorch: String, load_s: f64 },
    /// Nothing can be said about any case.
    Failed { error: String },
}

/// What came of one call.
#[derive(Debug, Serialize)]
pub(crate) struct CaseResult {
    /// What the package returns, `n_outputs` of its entry. Contiguous.
    pub(crate) outputs: Vec<Tensor>,
    /// The inputs after the call, contiguous. Those that did not change, and were contiguous, are the request's own files.
    pub(crate) inputs: Vec<Tensor>,
    /// Of a call, in microseconds.
    pub(crate) median_us: Option<f64>,
}
