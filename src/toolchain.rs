//! Finding the toolchain while the daemon already serves.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use piecewised_executor::{
    Confinement, Executor, ExecutorConfig, ExecutorError, ExecutorSource, Found, Hello, LaunchKind, Launcher,
    NoToolchain, Remembered, RuntimeFolder, find_python, prove,
};
use piecewised_scheduler::{Scheduler, ToolchainInfo, ToolchainStatus};
use piecewised_store::{Note, Store};
use tokio::sync::watch;

use crate::config::Config;

/// How executors are started, but for the interpreter. `headers_dir`: where they share precompiled headers; `confinement`: what they are
/// kept from.
///
/// # Errors
/// Where the private folder cannot be written to.
pub(crate) fn executor_config(
    config: &Config,
    folder: &RuntimeFolder,
    headers_dir: PathBuf,
    confinement: Arc<Confinement>,
) -> std::io::Result<ExecutorConfig> {
    let source_dir = ExecutorSource.lay_down(folder.path())?;
    let temp_root = folder.subfolder("executors")?;
    Ok(ExecutorConfig {
        headers_dir: Some(headers_dir),
        ready_deadline: Duration::from_secs(config.executor_ready_deadline_s),
        job_deadline: Duration::from_secs(config.job_deadline_s),
        max_artifact_bytes: config.max_artifact_bytes,
        environment: config.surroundings.variables.clone(),
        extra_environment: config.executor_environment.clone(),
        writable_dirs: config.executor_writable_dirs.clone(),
        frontends: config.frontends.clone(),
        runner: config.runner(),
        nice: config.executor_nice,
        n_compile_threads: config.n_compile_threads,
        confinement,
        ..ExecutorConfig::new("python3", source_dir, temp_root)
    })
}

/// Where executors find precompiled headers. What is kept in it would be made again: a folder that cannot be had is no reason not to serve.
///
/// # Errors
/// Where the private folder cannot be written to.
pub(crate) fn headers_dir(config: &Config, folder: &RuntimeFolder) -> std::io::Result<PathBuf> {
    let kept = config.headers_dir();
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(&kept) {
        Ok(()) => Ok(kept),
        Err(error) => {
            tracing::warn!(folder = %kept.display(), %error, "precompiled headers are not kept between starts");
            folder.subfolder("precompiled_headers")
        }
    }
}

/// Looks for an interpreter, tells `status` how it went, and gives the executor that proved it to the scheduler. One that was found before,
/// with nothing changed since, is taken at once, and proven afterwards.
///
/// # Errors
/// [`NoToolchain`] where one was named and will not do: the operator is wrong about the machine and must hear it. Where none was
/// named the daemon goes on, since it can still serve what is in its store.
pub(crate) async fn find(
    config: &Config,
    executors: &ExecutorConfig,
    scheduler: &Scheduler,
    store: &Store,
    status: &watch::Sender<ToolchainStatus>,
) -> Result<(), NoToolchain> {
    if let Some(remembered) = recall(config, executors, store).await {
        match believe(remembered, executors, status).await {
            Ok(executor) => {
                scheduler.adopt(executor);
                return Ok(());
            }
            Err(error) => {
                tracing::warn!("looking for a toolchain again: {error}");
                status.send_replace(ToolchainStatus::Probing);
            }
        }
    }
    match find_python(config.python.as_deref(), executors).await {
        Ok(Found { python, launcher, executor, rejected }) => {
            for one in rejected {
                tracing::info!(python = %one.python.display(), "passed over: {}", one.why);
            }
            let hello = executor.hello().clone();
            say(&python, &hello, &launcher);
            scheduler.adopt(executor);
            status.send_replace(ToolchainStatus::Ready(Arc::new(ToolchainInfo::new(hello.clone(), launcher))));
            // Nobody waits for it.
            remember(config, executors, store, python, hello).await;
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

/// What an earlier daemon found, where nothing has changed that could make it find something else.
async fn recall(config: &Config, executors: &ExecutorConfig, store: &Store) -> Option<Remembered> {
    let note = store.note(Note::Toolchain).await.unwrap_or_else(|error| {
        tracing::warn!("what is known of the toolchain from before cannot be read: {error}");
        None
    })?;
    let (explicit, executors) = (config.python.clone(), executors.clone());
    let look = move || {
        let remembered = Remembered::from_json(&note)?;
        remembered.still_holds(explicit.as_deref(), &executors).then_some(remembered)
    };
    tokio::task::spawn_blocking(look).await.ok().flatten()
}

async fn remember(config: &Config, executors: &ExecutorConfig, store: &Store, python: PathBuf, hello: Hello) {
    let (explicit, executors) = (config.python.clone(), executors.clone());
    let look = move || Remembered::new(explicit.as_deref(), &executors, python, hello);
    let Ok(Some(remembered)) = tokio::task::spawn_blocking(look).await else { return };
    if let Err(error) = store.put_note(Note::Toolchain, remembered.to_json()).await {
        tracing::warn!("what was found out about the toolchain cannot be kept for the next start: {error}");
    }
}

/// Takes a toolchain as it was, for those who ask for what is in the store, and starts an executor of it. No other executor is taken before one
/// has said the same as then.
async fn believe(
    remembered: Remembered,
    executors: &ExecutorConfig,
    status: &watch::Sender<ToolchainStatus>,
) -> Result<Executor, ExecutorError> {
    let Remembered { python, hello, .. } = remembered;
    let launcher = Launcher::expecting(Arc::new(executors.with_python(&python)), hello.clone());
    let info = ToolchainInfo::new(hello, launcher.clone());
    tracing::info!(python = %python.display(), torch = info.toolchain.torch_version, "the toolchain is taken to be what it was");
    status.send_replace(ToolchainStatus::Ready(Arc::new(info)));
    match prove(&launcher).await {
        Ok(executor) => {
            say(&python, executor.hello(), &launcher);
            Ok(executor)
        }
        Err(error) => {
            launcher.shutdown().await;
            Err(error)
        }
    }
}

fn say(python: &Path, hello: &Hello, launcher: &Launcher) {
    let executors = match launcher.kind() {
        LaunchKind::Forked => "forked".to_owned(),
        LaunchKind::Fresh { reason } => format!("started fresh: {reason}"),
    };
    let devices: Vec<_> = hello.devices.iter().map(|device| format!("{} ({})", device.r#type, device.name)).collect();
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
}
