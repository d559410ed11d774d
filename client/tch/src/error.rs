//! Everything that can go wrong for a Rust worker, in sentences that say what was expected and what to do.

use std::path::PathBuf;

use piecewised_client::{ClientError, GraphFileError};
use piecewised_graph::GraphError;
use piecewised_plan::Range;
use thiserror::Error;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure. The messages are complete sentences for people.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Between this process and the daemon, or in choosing what runs a size.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file that is no graph file.
    #[error(transparent)]
    GraphFile(#[from] GraphFileError),
    /// A graph that breaks a rule.
    #[error("the graph can't be compiled: {0}")]
    Graph(#[from] GraphError),
    /// The builder of a graph was used wrongly.
    #[error("the graph can't be built: {problem}")]
    Build {
        /// Where and why.
        problem: String,
    },
    /// The daemon could not compile some entries of the plan.
    #[error("{} could not be compiled: {}", entries(.failed), .failed[0].message)]
    NotCompiled {
        /// Never empty.
        failed: Vec<FailedEntry>,
    },
    /// The daemon has nothing that this process could load.
    #[error("the daemon at {endpoint} can't compile for this process: {problem}")]
    Unsuitable {
        /// The daemon's address.
        endpoint: String,
        /// What it lacks, and what to do.
        problem: String,
    },
    /// A folder that does not hold a package that this process can load.
    #[error("{} can't be loaded: {problem}", .path.display())]
    Artifact {
        /// The folder, or a file in it.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The process's libtorch, or a device of it, can't be used.
    #[error("{problem}")]
    Libtorch {
        /// What is missing, and what to do.
        problem: String,
    },
    /// A call with inputs that the piece was not compiled for.
    #[error("{0}")]
    Input(#[from] InputError),
    /// The compiled code failed.
    #[error("a call of {entry} failed: {problem} (compiled code writes details to the process's standard error)")]
    Call {
        /// The part of the artifact.
        entry: String,
        /// What libtorch said.
        problem: String,
    },
}

/// An entry of a plan that was not compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedEntry {
    /// `None`: the graph has no symbolic input.
    pub range: Option<Range>,
    /// In UPPER_SNAKE_CASE, as the daemon's `Failed` event has it.
    pub reason: String,
    /// The compiler's own words.
    pub message: String,
}

fn entries(failed: &[FailedEntry]) -> String {
    let names = failed.iter().map(|one| one.range.map_or_else(|| "the piece".to_owned(), |range| range.to_string()));
    names.collect::<Vec<_>>().join(", ")
}

/// What is wrong with the inputs of a call. Positions count the tensors of the call from 0.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages say what each one is")]
pub enum InputError {
    #[error("{given} tensors were given, and the piece takes {expected}: the graph's tensor arguments, in their order")]
    Number { given: usize, expected: usize },
    #[error("{at} has dtype {given}, and the piece takes {expected}")]
    Dtype { at: Position, given: String, expected: String },
    #[error("{at} is on {given}, and the piece takes it on {expected}; move it there first (Tensor::to_device)")]
    Device { at: Position, given: String, expected: String },
    #[error("{at} has {given} dimensions, and the piece takes {expected}")]
    Dimensions { at: Position, given: usize, expected: String },
    #[error("{at} has sizes {given:?}, and the piece takes {expected}")]
    Sizes { at: Position, given: Vec<i64>, expected: String },
    #[error("{at} has strides {given:?}, and the piece takes {expected}{advice}")]
    Strides { at: Position, given: Vec<i64>, expected: String, advice: &'static str },
    #[error("{at} is not a plain tensor: {problem}")]
    NotPlain { at: Position, problem: &'static str },
    #[error(
        "{at} is changed in place and does not begin at a multiple of 16 bytes, so that the GPU's code would change a copy of it; \
         give it storage of its own first (Tensor::copy), and copy it back after the call"
    )]
    Misaligned { at: Position },
    #[error("the inputs can't be looked at: {problem}")]
    Unreadable { problem: String },
}

/// Which input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("tensor {tensor} (argument {argument} of the graph)")]
pub struct Position {
    /// Among the tensors of the call.
    pub tensor: usize,
    /// Among the graph's placeholders.
    pub argument: u32,
}
