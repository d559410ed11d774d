//! Finding the toolchain while the daemon already serves.

use std::{sync::Arc, time::Duration};

use piecewised_executor::{ExecutorConfig, ExecutorSource, Found, LaunchKind, NoToolchain, RuntimeFolder, find_python};
use piecewised_scheduler::{Scheduler, ToolchainInfo, ToolchainStatus};
use tokio::sync::watch;

use crate::config::Config;

/// How executors are started, but for the interpreter.
///
/// # Errors
/// Where the private folder cannot be written to.
pub(crate) fn executor_config(config: &Config, folder: &RuntimeFolder) -> std::io::Result<ExecutorConfig> {
    let source_dir = ExecutorSource.lay_down(folder.path())?;
    let temp_root = folder.subfolder("executors")?;
    Ok(ExecutorConfig {
        headers_dir: Some(folder.subfolder("precompiled_headers")?),
        ready_deadline: Duration::from_secs(config.executor_ready_deadline_s),
        job_deadline: Duration::from_secs(config.job_deadline_s),
        max_artifact_bytes: config.max_artifact_bytes,
        environment: config.surroundings.variables.clone(),
        extra_environment: config.executor_environment.clone(),
        frontends: config.frontends.clone(),
        nice: config.executor_nice,
        n_compile_threads: config.n_compile_threads,
        ..ExecutorConfig::new("python3", source_dir, temp_root)
    })
}

/// Looks for an interpreter, tells `status` how it went, and gives the executor that proved it to the scheduler.
///
/// # Errors
/// [`NoToolchain`] where one was named and will not do: the operator is wrong about the machine and must hear it. Where none was
/// named the daemon goes on, since it can still serve what is in its store.
pub(crate) async fn find(
    config: &Config,
    executors: &ExecutorConfig,
    scheduler: &Scheduler,
    status: &watch::Sender<ToolchainStatus>,
) -> Result<(), NoToolchain> {
    match find_python(config.python.as_deref(), executors).await {
        Ok(Found { python, launcher, executor, rejected }) => {
            for one in rejected {
                tracing::info!(python = %one.python.display(), "passed over: {}", one.why);
            }
            let hello = executor.hello().clone();
            let executors = match launcher.kind() {
                LaunchKind::Forked => "forked".to_owned(),
                LaunchKind::Fresh { reason } => format!("started fresh: {reason}"),
            };
            let devices: Vec<_> =
                hello.devices.iter().map(|device| format!("{} ({})", device.r#type, device.name)).collect();
            tracing::info!(
                python = %python.display(),
                python_version = hello.toolchain.python_version,
                torch = hello.toolchain.torch_version,
                triton = hello.toolchain.triton_version,
                cuda = hello.toolchain.cuda_version,
                fingerprint = hello.toolchain.fingerprint.get(..12).unwrap_or_default(),
                import_s = hello.import_s,
                gpus = hello.gpus.len(),
                executors,
                "found a toolchain for {}",
                devices.join(", ")
            );
            scheduler.adopt(executor);
            status.send_replace(ToolchainStatus::Ready(Arc::new(ToolchainInfo::new(hello, launcher))));
            Ok(())
        }
        Err(none) => {
            status.send_replace(ToolchainStatus::Unusable { reason: none.to_string() });
            if none.explicit.is_some() {
                return Err(none);
            }
            tracing::error!("not ready to compile; serving what is in the store. {none}");
            Ok(())
        }
    }
}
