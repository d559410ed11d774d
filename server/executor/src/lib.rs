//! Executor processes: finding an interpreter, starting, talking, deadlines, and getting rid of them whole.
//!
//! An executor is one Python process that compiles, in a process group and a temporary folder of its own. What this crate
//! guarantees, however an executor ends:
//!
//! * its whole group is killed and its folder removed, also when a future or the [`Executor`] is dropped halfway;
//! * it is kept from the network, from secrets and from others' files as far as [`Confinement`] says, from its first instruction on;
//! * it sees an environment from an allow-list ([`environment`]), never the daemon's;
//! * what it prints is drained without pause into the log, in bounded memory, within the span of its job;
//! * what it sends is bounded, and checked before it is believed;
//! * every failure is an [`ExecutorError`] that knows whether the executor can go on and whether a retry makes sense.
//!
//! `docs/executor-protocol.md` is the contract with the Python side, whose source is embedded here ([`ExecutorSource`]).
//!
//! Left out: which job runs where, how often it is retried, and what is stored; that is the scheduler's.

mod channel;
mod config;
mod confine;
mod diagnose;
mod discover;
pub mod environment;
mod error;
mod executor;
mod frame;
mod job;
mod journal;
mod launcher;
mod lease;
mod memory;
mod message;
mod placement;
mod process;
mod remembered;
mod runtime;
mod source;
mod zygote;

pub use config::ExecutorConfig;
pub use confine::{Confinement, Measure, Missing};
pub use diagnose::{Diagnosis, Finding, GpuFound, NoDiagnosis, diagnose};
pub use discover::{Found, NoToolchain, Rejected, find_python, prove};
pub use error::{ExecutorError, FailureReason, MemoryShortage};
pub use executor::Executor;
pub use job::{CompileJob, CompileOutcome};
pub use launcher::{LaunchKind, Launcher};
pub use lease::{JobHost, LeaseMode, Unshared};
pub use message::{Hello, InductorOption};
pub use placement::{Gpu, Placement};
pub use remembered::Remembered;
pub use runtime::RuntimeFolder;
pub use source::ExecutorSource;
