//! What executors are kept from: the network, files that hold secrets, writing anywhere but in their own folders, and signals to others.
//!
//! A compiler runs what graphs and frontends lead it to. These measures are the kernel's and not the executor's own: they are taken by the thread that
//! starts it, are inherited by whatever it starts, and cannot be taken back. `calls` is the filter of system calls, `files` the rules on files, `procfs` what
//! CUDA needs of /proc.
//!
//! A measure binds the thread that takes it. So each process is started by a thread that is made for that and ends right after; the daemon's other
//! threads stay as they are.
//!
//! Left out: Unix sockets of other services, whose files can be connected to (the daemon refuses its own executors at its socket); capabilities
//! of a daemon that runs as root; how much memory and time is used (`memory`, deadlines).

mod calls;
mod files;
mod kin;
mod procfs;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use rustix::process::{Pid, Resource, Rlimit};
use serde::Serialize;

use crate::ExecutorConfig;

pub(crate) use files::Inner;
use procfs::Procfs;

/// The variable that an executor that was forked finds [`Inner`] in, as JSON.
pub(crate) const VARIABLE: &str = "PIECEWISED_CONFINE";

/// One thing that executors are kept from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Sockets other than Unix and netlink ones, by a filter of system calls.
    Network,
    /// Writing outside their own folders, and reading what holds secrets, by Landlock.
    Files,
    /// Truncating files outside their own folders, by Landlock.
    Truncation,
    /// Signals to processes that are none of theirs, and abstract Unix sockets of such, by Landlock.
    Signals,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Network, Self::Files, Self::Truncation, Self::Signals];

    /// Its name, for messages and the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Files => "files",
            Self::Truncation => "truncation",
            Self::Signals => "signals",
        }
    }

    /// What an executor can do without it, as a clause.
    pub fn without(self) -> &'static str {
        match self {
            Self::Network => "executors can use the network",
            Self::Files => "executors can read the daemon's keys and write what its user can",
            Self::Truncation => "executors can empty files that its user can write",
            Self::Signals => "executors can signal the daemon, and connect to abstract Unix sockets",
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A measure that this machine does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Which.
    pub measure: Measure,
    /// Why, as a clause.
    pub reason: String,
}

/// What executors are kept from, and by which means: decided once, before the first of them starts.
#[derive(Debug, Clone, Default)]
pub struct Confinement {
    /// What holds secrets: files, and folders with all that is in them.
    hidden: Vec<PathBuf>,
    in_force: Vec<Measure>,
    missing: Vec<Missing>,
    filters: Arc<calls::Filters>,
    procfs: Procfs,
}

impl Confinement {
    /// None: executors may what the daemon's user may.
    pub fn off() -> Self {
        Self::default()
    }

    /// All that this machine has; `hidden` is what executors cannot read, files and folders. Found out by a thread that tries it.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn strongest(hidden: Vec<PathBuf>) -> io::Result<Self> {
        let filters = calls::Filters::new();
        let (filters, network) = match filters {
            Ok(filters) => {
                let tried = apart(|| Ok(filters.apply()))?;
                (filters, tried)
            }
            Err(problem) => (calls::Filters::default(), Err(problem)),
        };
        // Before the rules on files, under which nothing can be mounted.
        let procfs = apart(|| Ok(Procfs::needed()))?;
        let abi = match &procfs {
            Ok(_) => apart(|| Ok(files::probe()))?,
            Err(problem) => Err(problem.clone()),
        };
        let found = |measure| match measure {
            Measure::Network => network.clone(),
            Measure::Files => abi.clone().and_then(|abi| abi.has(2, "5.19")),
            Measure::Truncation => abi.clone().and_then(|abi| abi.has(3, "6.2")),
            Measure::Signals => abi.clone().and_then(|abi| abi.has(6, "6.12")),
        };
        let procfs = procfs.unwrap_or_default();
        let mut confinement = Self { hidden, filters: Arc::new(filters), procfs, ..Self::default() };
        for measure in Measure::ALL {
            match found(measure) {
                Ok(()) => confinement.in_force.push(measure),
                Err(reason) => confinement.missing.push(Missing { measure, reason }),
            }
        }
        Ok(confinement)
    }

    /// What is in force.
    pub fn in_force(&self) -> &[Measure] {
        &self.in_force
    }

    /// What this machine does not have; nothing where nothing was asked for.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Whether a measure is in force.
    pub fn has(&self, measure: Measure) -> bool {
        self.in_force.contains(&measure)
    }
}

/// Runs `start`, which starts a process of `config`, by a thread that has the measures, which that process then has too. It may write below `own`.
///
/// # Errors
/// Where a measure that should be in force cannot be taken: then nothing is started.
pub(crate) fn run<T: Send>(
    config: &ExecutorConfig,
    own: &Path,
    start: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let confinement = &config.confinement;
    if confinement.in_force.is_empty() {
        return start();
    }
    // Looked at by the daemon, before the thread may look at less.
    let rules = confinement.has(Measure::Files).then(|| files::Rules::of(config, own)).transpose()?;
    apart(|| {
        rustix::thread::set_no_new_privs(true)?;
        if let Some(rules) = rules {
            if confinement.procfs == Procfs::Shielded {
                let shielded = procfs::shield();
                shielded.map_err(|error| io::Error::other(format!("/proc cannot be kept from it: {error}")))?;
            }
            rules.restrict().map_err(|problem| io::Error::other(format!("files cannot be kept from it: {problem}")))?;
        }
        if confinement.has(Measure::Network) {
            let applied = confinement.filters.apply();
            applied.map_err(|problem| io::Error::other(format!("the network cannot be kept from it: {problem}")))?;
        }
        start()
    })
}

/// What a process that was started so has beside: its memory is not written to disk when it crashes, which holds what it compiled.
pub(crate) fn limit(config: &ExecutorConfig, process: Pid) {
    if config.confinement.in_force.is_empty() {
        return;
    }
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = rustix::process::prlimit(Some(process), Resource::Core, none) {
        tracing::debug!(%error, "an executor may leave a core file");
    }
}

/// Runs something by a thread of its own, which ends with it.
fn apart<T: Send>(what: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("confined".into()).spawn_scoped(scope, what)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts it panicked")))
    })
}

#[cfg(test)]
mod tests;
