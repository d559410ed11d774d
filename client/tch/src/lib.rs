//! Compiled pieces for Rust workers: AOTInductor packages, compiled by the daemon and run with [`tch`] tensors, with no Python in the process.
//!
//! A [`Worker`] is connected to a daemon, has it compile graphs ([`GraphBuilder`], or a file that the Python client wrote), and loads
//! what comes back. A [`Piece`] runs calls: it chooses by their sizes, checks them, and runs the package on the calling thread.
//!
//! * Nothing is compiled here, and no process is started.
//! * Inputs are checked at every call. Compiled code is native code that believes what it is given.
//! * `unsafe` is in one module, over a small C++ shim in which nothing throws.
//!
//! How a program finds libtorch when it starts is in the README.

mod builder;
mod dtype;
mod error;
mod inputs;
mod libtorch;
mod manifest;
mod outputs;
mod package;
mod piece;
mod places;
mod shim;
mod worker;

pub use builder::{Arg, GraphBuilder, Size, Value};
pub use dtype::{dtype, kind};
pub use error::{Error, FailedEntry, InputError, Position, Result};
pub use libtorch::{initialise, libtorch_version, load_operators, synchronise};
pub use package::{LoadOptions, Package};
pub use piece::Piece;
pub use worker::{Worker, WorkerOptions, request};
