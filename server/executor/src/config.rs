//! What an executor needs to start.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use crate::Confinement;

/// How executors are started and what they may take. Cloned per executor.
#[derive(Debug, Clone)]
pub struct ExecutorConfig {
    /// The interpreter.
    pub python: PathBuf,
    /// The folder that holds the executor's source, from [`crate::ExecutorSource::lay_down`].
    pub source_dir: PathBuf,
    /// Where each executor gets its private temporary folder.
    pub temp_root: PathBuf,
    /// Where executors share g++'s precompiled headers of torch, which take seconds to make and are the same for all; none: each
    /// makes its own.
    pub headers_dir: Option<PathBuf>,
    /// From the start to `ready`: importing torch takes seconds, on cold network storage minutes.
    pub ready_deadline: Duration,
    /// For one compile, from the request to the last byte of the artifact.
    pub job_deadline: Duration,
    /// The largest artifact that is taken.
    pub max_artifact_bytes: u64,
    /// The environment that [`crate::environment`] chooses from: the daemon's.
    pub environment: BTreeMap<OsString, OsString>,
    /// Names beside the allow-list that are handed on; a `*` at the end stands for any ending.
    pub extra_environment: Vec<String>,
    /// Folders that they may write to beside their own, where they are confined.
    pub writable_dirs: Vec<PathBuf>,
    /// Modules that are frontends, beside those that the executor has itself.
    pub frontends: Vec<String>,
    /// The program that tries AOTInductor packages without Python, `piecewised-runner`; none: executors try them themselves.
    pub runner: Option<PathBuf>,
    /// Nice level, 0 to 19; 0 leaves it alone.
    pub nice: u8,
    /// Processes that Inductor compiles kernels with; none leaves it to Inductor.
    pub n_compile_threads: Option<usize>,
    /// What they are kept from.
    pub confinement: Arc<Confinement>,
}

impl ExecutorConfig {
    /// A config with the defaults: two minutes to be ready, half an hour for a compile, artifacts up to 1 GiB, nice level 5, an empty
    /// environment, and no confinement.
    pub fn new(python: impl Into<PathBuf>, source_dir: impl Into<PathBuf>, temp_root: impl Into<PathBuf>) -> Self {
        Self {
            python: python.into(),
            source_dir: source_dir.into(),
            temp_root: temp_root.into(),
            headers_dir: None,
            ready_deadline: Duration::from_secs(120),
            job_deadline: Duration::from_secs(1800),
            max_artifact_bytes: 1 << 30,
            environment: BTreeMap::new(),
            extra_environment: Vec::new(),
            writable_dirs: Vec::new(),
            frontends: Vec::new(),
            runner: None,
            nice: 5,
            n_compile_threads: None,
            confinement: Arc::new(Confinement::off()),
        }
    }

    /// The same with another interpreter.
    #[must_use]
    pub fn with_python(&self, python: impl Into<PathBuf>) -> Self {
        Self { python: python.into(), ..self.clone() }
    }
}
