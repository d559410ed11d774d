//! How starting an executor or compiling with it can fail.

use std::{fmt, io, path::PathBuf, time::Duration};

use serde::Deserialize;
use thiserror::Error;

/// Why a compile failed by itself, on an executor that is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FailureReason {
    /// The compiler refused the graph.
    CompileError,
    /// Guards remain that could not be decided for the range.
    UnprovenRange,
    /// The executor cannot do what was asked.
    Unsupported,
    /// The compiled code gave other values than eager, or crashed.
    VerificationFailed,
    /// The toolchain does not have the job's frontend.
    FrontendUnknown,
    /// The toolchain's frontend, or what it depends on, is another one than the caller's.
    FrontendMismatch,
}

impl FailureReason {
    /// The stable name, as in the protocol: "COMPILE_ERROR".
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CompileError => "COMPILE_ERROR",
            Self::VerificationFailed => "VERIFICATION_FAILED",
            Self::UnprovenRange => "UNPROVEN_RANGE",
            Self::Unsupported => "UNSUPPORTED",
            Self::FrontendUnknown => "FRONTEND_UNKNOWN",
            Self::FrontendMismatch => "FRONTEND_MISMATCH",
        }
    }
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What went wrong with an executor. `tail` is the last of what it printed, bounded, for people.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExecutorError {
    /// The process could not be started, or its private folder not be made.
    #[error("cannot start {}: {source}", .python.display())]
    Spawn {
        /// The interpreter.
        python: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It ended, or went on too long, before it was ready.
    #[error("{} did not become ready: {problem}{}", .python.display(), Printed(.tail))]
    NotReady {
        /// The interpreter.
        python: PathBuf,
        /// Somebody or something killed it, which says little about the interpreter.
        was_killed: bool,
        /// "it ended with exit code 1", "it was not ready after 120 s".
        problem: String,
        /// The last lines it printed.
        tail: String,
    },
    /// It says itself that it cannot work here.
    #[error("{} cannot compile: {reason}", .python.display())]
    Unusable {
        /// The interpreter.
        python: PathBuf,
        /// Its own words.
        reason: String,
    },
    /// It ended in the middle of a job, or before one.
    #[error("the executor {status}{}", Printed(.tail))]
    Crashed {
        /// "was killed by SIGKILL (out of memory?)", "ended with exit code 1".
        status: String,
        /// The last lines it printed.
        tail: String,
    },
    /// The job took longer than its deadline; the executor was killed.
    #[error("the compile took longer than its deadline of {} s and was ended{}", .deadline.as_secs_f64(), Printed(.tail))]
    TimedOut {
        /// The deadline.
        deadline: Duration,
        /// The last lines it printed.
        tail: String,
    },
    /// The compile's own failure: the same job fails again, on any executor of the same toolchain.
    #[error("{reason}: {message}")]
    Failed {
        /// The kind.
        reason: FailureReason,
        /// The compiler's words, at most 16 KiB (the middle is left out of longer ones).
        message: String,
    },
    /// The job cannot be put into a frame; nothing was sent.
    #[error("the job cannot be sent to an executor: {problem}")]
    BadJob {
        /// What is wrong with it.
        problem: String,
    },
    /// A GPU that it used failed in a way that its process cannot recover from (an illegal access, a failed launch or assertion); it
    /// was ended. Another executor, perhaps on another GPU, may do better.
    #[error("the GPU failed under the compile: {message}{}", Printed(.tail))]
    DeviceFault {
        /// What CUDA said.
        message: String,
        /// The last lines it printed.
        tail: String,
    },
    /// It needed more memory than it may take, or than there is; it was ended.
    #[error("{}{}", OutOfMemory(.what, *.limit_bytes, *.used_bytes), Printed(.tail))]
    OutOfMemory {
        /// Whose memory was short, and who noticed.
        what: MemoryShortage,
        /// What it may take, where that is what it went over.
        limit_bytes: Option<u64>,
        /// What it was last seen to hold of the machine's memory.
        used_bytes: u64,
        /// The last lines it printed.
        tail: String,
    },
    /// It sent something that the protocol does not have; it was killed.
    #[error("the executor broke the protocol: {problem}{}", Printed(.tail))]
    Protocol {
        /// What it sent.
        problem: String,
        /// The last lines it printed.
        tail: String,
    },
    /// An earlier job was abandoned or ended badly, so this executor is gone.
    #[error("this executor is no longer usable: an earlier job on it ended badly or was abandoned")]
    Broken,
}

/// Whose memory was short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryShortage {
    /// The group held more than its placement allows.
    Limit,
    /// The system ran out of memory and killed one of the group.
    System,
    /// An allocation failed, on the machine or on its GPU: the compiler's words.
    Allocation(String),
}

impl ExecutorError {
    /// Whether the executor is well and can take the next job. Where not, it is already being killed.
    pub fn executor_can_go_on(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::BadJob { .. })
    }

    /// Whether the same job may end otherwise on another executor.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Spawn { .. }
            | Self::NotReady { .. }
            | Self::Crashed { .. }
            | Self::TimedOut { .. }
            | Self::DeviceFault { .. }
            | Self::OutOfMemory { .. }
            | Self::Protocol { .. }
            | Self::Broken => true,
            Self::Unusable { .. } | Self::Failed { .. } | Self::BadJob { .. } => false,
        }
    }
}

struct OutOfMemory<'a>(&'a MemoryShortage, Option<u64>, u64);

impl fmt::Display for OutOfMemory<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(what, limit, used) = self;
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        match (what, limit) {
            (MemoryShortage::Limit, Some(limit)) => write!(
                f,
                "the executor held {:.2} GiB of memory where it may take {:.2} GiB, and was ended",
                gib(*used),
                gib(*limit)
            ),
            (MemoryShortage::Limit, None) => {
                write!(f, "the executor held {:.2} GiB of memory and was ended", gib(*used))
            }
            (MemoryShortage::System, _) => write!(
                f,
                "the system ran out of memory and killed the executor or one of its compilers, which held {:.2} GiB",
                gib(*used)
            ),
            (MemoryShortage::Allocation(words), _) => write!(f, "the compile ran out of memory: {words}"),
        }
    }
}

/// The tail as the end of a sentence, left out where there is none.
struct Printed<'a>(&'a str);

impl fmt::Display for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; the last it printed:\n{}", self.0) }
    }
}
