//! `piecewised._core`: the Rust client for Python.
//!
//! Thin: graphs, options, handles and events cross as JSON text in the project's own form, so that there is no second model
//! of them here. Waiting releases the GIL and answers Ctrl-C; a forked child gets a runtime and connections of its own.

mod cache;
mod client;
mod dispatch;
mod errors;
mod process;

use pyo3::prelude::*;

/// The native half of the `piecewised` package; `_core.pyi` has its signatures.
#[pymodule]
mod _core {
    #[pymodule_export]
    use super::cache::{Cache, check_manifest, check_program_name};
    #[pymodule_export]
    use super::client::{Client, Events, Fetched, write_graph_file};
    #[pymodule_export]
    use super::dispatch::{
        DispatchTable, Dispatcher, evaluate, extend_for_encoder, plan_entries, ranges_from_endpoints,
    };
    #[pymodule_export]
    use super::process::Stop;

    /// The package's version.
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");
}
