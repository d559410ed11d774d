//! What an interpreter says of what lies around it: compilers, GPUs. For `piecewised doctor`.

use std::{io, process::Stdio, time::Duration};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::runtime::Handle;

use crate::{ExecutorConfig, Placement, confine, environment};

/// Importing torch, starting CUDA and building two small libraries.
const DEADLINE: Duration = Duration::from_secs(180);

const PROGRAM: &str = "from piecewised_executor import diagnose; diagnose.main()";

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The C++ compiler that CPU code is built with.
    pub compiler: Finding<String>,
    /// The one that AOTInductor packages are built with.
    pub packages: Finding<String>,
    /// The GPUs that torch sees.
    pub gpus: Finding<Vec<GpuFound>>,
    /// The program of [`ExecutorConfig::runner`], where that names one.
    pub runner: Finding<String>,
    /// vLLM's version, where it is installed.
    pub vllm: Finding<String>,
}

/// One part of it: what was found, or what is wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding<T> {
    /// `None`: nothing, which need not be wrong.
    pub found: Option<T>,
    /// Empty: nothing is wrong.
    pub problem: String,
}

/// A GPU, as torch sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuFound {
    /// As torch counts them.
    pub index: u32,
    /// "NVIDIA H200".
    pub name: String,
    /// Of its memory.
    pub free_bytes: u64,
    /// Its memory.
    pub total_bytes: u64,
    /// The newest CUDA that the driver knows, "13.0".
    pub driver_cuda: String,
}

/// There is no diagnosis.
#[derive(Debug, Error)]
pub enum NoDiagnosis {
    /// It cannot be started, or its folder not made.
    #[error("the interpreter cannot be started: {0}")]
    Io(#[from] io::Error),
    /// It takes too long.
    #[error("it did not answer within {DEADLINE:?}")]
    Late,
    /// It failed.
    #[error("it failed ({status}): {tail}")]
    Failed {
        /// How it ended.
        status: String,
        /// The end of what it printed.
        tail: String,
    },
}

/// Asks the interpreter of `config`, in the environment that its executors have.
///
/// # Errors
/// [`NoDiagnosis`].
pub async fn diagnose(config: &ExecutorConfig) -> Result<Diagnosis, NoDiagnosis> {
    let (folder, root) = environment::private_folder(config, "doctor-")?;
    // A path is one from here; a bare name is looked up.
    let python = match config.python.components().count() {
        1 => config.python.clone(),
        _ => std::path::absolute(&config.python)?,
    };
    let mut command = tokio::process::Command::new(python);
    command
        .args(["-c", PROGRAM])
        .args(&config.runner)
        .env_clear()
        .envs(environment::compose(config, &Placement::default(), &root)?)
        .current_dir(folder.path().join(environment::WORK))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let (runtime, ours) = (Handle::current(), config.clone());
    let started = tokio::task::spawn_blocking(move || {
        confine::run(&ours, &root, || {
            let _guard = runtime.enter();
            command.spawn()
        })
    });
    let child = started.await.map_err(io::Error::other)??;
    let ended = tokio::time::timeout(DEADLINE, child.wait_with_output()).await.map_err(|_| NoDiagnosis::Late)??;
    serde_json::from_slice(&ended.stdout).map_err(|_| {
        let words = String::from_utf8_lossy(&ended.stderr);
        let lines: Vec<&str> = words.lines().collect();
        let tail = lines[lines.len().saturating_sub(3)..].join("; ");
        NoDiagnosis::Failed { status: ended.status.to_string(), tail }
    })
}
