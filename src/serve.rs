//! `piecewised serve`: puts the parts together, runs them, and takes them apart in the right order.
//!
//! Up: private folder, sockets, store, scheduler, services; the toolchain is looked for meanwhile, since importing torch takes
//! seconds, or taken as it was found the last time. Down: no new calls; running jobs get their time; executors end; the store is closed; the private
//! folder and the socket file go.

use std::{io::Write, sync::Arc, time::Duration};

use anyhow::Context;
use piecewised_api::{Access, ApiConfig, ConnectionLimits, Listener};
use piecewised_executor::{Confinement, ExecutorConfig, NoToolchain, RuntimeFolder};
use piecewised_scheduler::{Scheduler, SchedulerConfig, ToolchainStatus};
use piecewised_sign::Signer;
use piecewised_store::Store;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    access, choices::LogFormat, config::Config, confinement, descriptors, listen, signals::Shutdown, signing_key,
    toolchain, traces::Traces,
};

/// How long calls that do not end by themselves (a reader that stalls) are waited for once no job runs any more.
const LAST_CALLS: Duration = Duration::from_secs(3);

/// How long callers whose jobs ended while the daemon drained have to begin fetching the results.
const LAST_FETCHES: Duration = Duration::from_secs(2);

/// Pieces of a program: far beyond the layers of any model, and few enough to be held in memory.
const MAX_PIECES: u32 = 4096;

/// Runs the daemon until it is told to end.
///
/// # Errors
/// Whatever ends it otherwise; [`crate::exit::Exit::of`] knows which exit code that means.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "starting");
    let shutdown = Shutdown::on_signals().context("cannot watch for signals")?;
    let config = Arc::new(config);

    let traces = Traces::start(&config)?;
    let confinement = Arc::new(confinement::of(&config)?);
    confinement::announce(&confinement, &config.executor_writable_dirs)?;
    let (folder, executors) = private_folder(Arc::clone(&config), Arc::clone(&confinement)).await?;
    // Before anything that others see: a mistake in who may call must not let somebody in for a moment.
    let (access, tls) = (access::access(&config, confinement)?, access::tls(&config)?);
    let (unix, _socket_file) = listen::unix(&config.socket, access::socket(&config)?)?;
    let mut listeners = vec![Listener::Unix(unix, config.socket.clone())];
    if let Some(address) = config.listen_tcp {
        listeners.push(Listener::Tcp(listen::tcp(address).await?, tls));
    }
    if let Some(address) = config.listen_http {
        listeners.push(Listener::Http(listen::tcp(address).await?));
    }
    let connection_limits = ConnectionLimits {
        max_connections: descriptors::make_room(config.max_connections, listeners.len()),
        max_per_peer: config.max_connections_per_peer,
    };
    let store = open_store(&config).await?;
    // After the store, whose folder it may be in, is locked.
    let signer = signer(&config).await?;

    let (status, toolchain) = watch::channel(ToolchainStatus::Probing);
    let scheduler = Scheduler::start(scheduler_config(&config), store.clone(), toolchain);
    let probe = AbortOnDropHandle::new(tokio::spawn(probe(
        Arc::clone(&config),
        executors,
        scheduler.clone(),
        store.clone(),
        status,
    )));

    announce(&config, &listeners);
    let api = api_config(&config, signer, access, connection_limits, traces.are_sent());
    let result = serve(listeners, scheduler, store.clone(), api, &config, probe, &shutdown).await;
    traces.shutdown().await;
    if let Err(error) = store.close().await {
        tracing::warn!("the store did not close well: {error}");
    }
    // Here, not when the runtime ends: its executors are gone now.
    drop(folder);
    if result.is_ok() {
        tracing::info!("ended");
    }
    result
}

/// Serves until a signal, or until the operator's interpreter turns out not to work, and drains.
async fn serve(
    listeners: Vec<Listener>,
    scheduler: Scheduler,
    store: Store,
    api: ApiConfig,
    config: &Config,
    probe: AbortOnDropHandle<Result<(), NoToolchain>>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let (draining, stop) = (CancellationToken::new(), CancellationToken::new());
    let serving = piecewised_api::serve(
        listeners,
        scheduler.clone(),
        store,
        api,
        draining.clone(),
        stop.clone(),
        shutdown.drain.clone(),
    );
    tokio::pin!(serving);
    let mut is_serving = true;
    let cause = tokio::select! {
        () = shutdown.drain.cancelled() => Ok(()),
        none = no_toolchain(probe) => Err(none.into()),
        ended = &mut serving => {
            is_serving = false;
            Err(ended.map_or_else(anyhow::Error::new, |()| anyhow::anyhow!("the listeners ended by themselves")))
        }
    };

    // Jobs end, and their callers fetch the results, while the daemon still answers; only new jobs are refused. A daemon that must
    // end because something is wrong gives them no time.
    let grace = if cause.is_ok() { Duration::from_secs(config.drain_deadline_s) } else { Duration::ZERO };
    draining.cancel();
    let n_jobs = scheduler.drain();
    tracing::info!(n_jobs, "draining");
    let down = async {
        scheduler.shutdown(grace).await;
        if cause.is_ok() && n_jobs > 0 {
            tokio::time::sleep(LAST_FETCHES).await;
        }
        stop.cancel();
        tokio::time::sleep(LAST_CALLS).await;
        tracing::warn!("calls were still open at the end; cutting them");
    };
    let at_once = tokio::select! {
        ended = &mut serving, if is_serving => {
            if let Err(error) = ended {
                tracing::warn!("a listener did not end well: {error}");
            }
            Ok(())
        }
        () = down => Ok(()),
        () = shutdown.now.cancelled() => Err(anyhow::anyhow!("a second signal cut draining short")),
    };
    // Where the branches above left it running.
    scheduler.shutdown(Duration::ZERO).await;
    if let ToolchainStatus::Ready(info) = scheduler.toolchain() {
        info.launcher.clone().shutdown().await;
    }
    cause.and(at_once)
}

/// Looks for the toolchain, and keeps what is known of it readable from then on.
async fn probe(
    config: Arc<Config>,
    executors: ExecutorConfig,
    scheduler: Scheduler,
    store: Store,
    status: watch::Sender<ToolchainStatus>,
) -> Result<(), NoToolchain> {
    toolchain::find(&config, &executors, &scheduler, &store, &status).await?;
    status.closed().await;
    Ok(())
}

/// Resolves when the probe says that the daemon cannot go on; never where it can.
async fn no_toolchain(probe: AbortOnDropHandle<Result<(), NoToolchain>>) -> NoToolchain {
    match probe.await {
        Ok(Err(none)) => none,
        Ok(Ok(())) => std::future::pending().await,
        Err(error) => {
            tracing::error!("looking for a toolchain ended without a result: {error}");
            std::future::pending().await
        }
    }
}

async fn private_folder(
    config: Arc<Config>,
    confinement: Arc<Confinement>,
) -> anyhow::Result<(RuntimeFolder, ExecutorConfig)> {
    let made = tokio::task::spawn_blocking(move || {
        let folder = RuntimeFolder::create(&config.temp_dir)
            .with_context(|| format!("cannot make a private folder in {}", config.temp_dir.display()))?;
        let headers_dir = toolchain::headers_dir(&config, &folder)?;
        let executors = toolchain::executor_config(&config, &folder, headers_dir, confinement)
            .with_context(|| format!("cannot write to {}", folder.path().display()))?;
        Ok((folder, executors))
    });
    made.await?
}

async fn open_store(config: &Config) -> anyhow::Result<Store> {
    let (store, report) = Store::open(config.store_config()).await?;
    tracing::info!(
        store = %config.store_dir.display(),
        outcome = ?report.outcome,
        n_handles = report.n_handles,
        artifact_bytes = report.artifact_bytes,
        elapsed_ms = report.elapsed.as_secs_f64() * 1e3,
        "opened the store"
    );
    if let Some(path) = &report.set_aside {
        tracing::warn!(set_aside = %path.display(), failures = ?report.failures, "a damaged store was set aside");
    }
    if report.n_dropped + report.n_taken_over > 0 {
        let (n_dropped, n_taken_over) = (report.n_dropped, report.n_taken_over);
        tracing::warn!(n_dropped, n_taken_over, "records and artifact files of the store did not match");
    }
    Ok(store)
}

fn scheduler_config(config: &Config) -> SchedulerConfig {
    SchedulerConfig {
        n_executors: config.n_executors,
        max_executor_memory_bytes: config.max_executor_memory_bytes,
        max_jobs_per_gpu: config.max_jobs_per_gpu,
        max_queued_jobs: config.max_queued_jobs,
        max_queued_jobs_per_peer: config.max_queued_jobs_per_peer,
        max_queued_bytes_per_peer: config.max_queued_bytes_per_peer,
        max_attempts: config.max_attempts,
        job_deadline: Duration::from_secs(config.job_deadline_s),
        abandoned: config.abandoned(),
        max_pieces: MAX_PIECES,
        idle_timeout: Duration::from_secs(config.executor_idle_timeout_s),
        gpu_idle_timeout: Duration::from_secs(config.gpu_idle_timeout_s),
        verify: config.verify_policy(),
    }
}

/// The key that everything is signed with.
async fn signer(config: &Config) -> anyhow::Result<Signer> {
    let (path, may_make) = config.signing_key();
    let signer = tokio::task::spawn_blocking(move || signing_key::load(&path, may_make)).await??;
    tracing::info!(public_key = %signer.public_key(), "signs what it hands out");
    Ok(signer)
}

fn api_config(
    config: &Config,
    signer: Signer,
    access: Arc<Access>,
    connection_limits: ConnectionLimits,
    is_traced: bool,
) -> ApiConfig {
    ApiConfig {
        graph_limits: config.graph_limits(),
        max_message_bytes: config.max_message_bytes,
        max_ranges: config.max_ranges,
        max_snapshot_bytes: config.max_artifact_bytes,
        max_queued_jobs: config.max_queued_jobs,
        max_pieces: MAX_PIECES,
        n_executors: config.n_executors,
        toolchain_timeout: Duration::from_secs(config.executor_ready_deadline_s),
        access,
        signer: Arc::new(signer),
        http_hosts: config.http_hosts(),
        connection_limits,
        message_timeout: Duration::from_secs(config.message_timeout_s),
        is_traced,
    }
}

/// Says where the daemon listens: a line each on stdout for people and scripts (with port 0 the port is only known now), an
/// event in a JSON log, whose readers may not take plain lines.
fn announce(config: &Config, listeners: &[Listener]) {
    for listener in listeners {
        let address = match listener {
            Listener::Unix(_, path) => {
                format!("unix://{}", std::path::absolute(path).as_deref().unwrap_or(path).display())
            }
            Listener::Tcp(listener, tls) => match listener.local_addr() {
                Ok(address) if tls.is_some() => format!("https://{address}"),
                Ok(address) => format!("http://{address}"),
                Err(_) => continue,
            },
            Listener::Http(listener) => match listener.local_addr() {
                Ok(address) => format!("http://{address}/"),
                Err(_) => continue,
            },
        };
        if config.log_format == LogFormat::Json {
            tracing::info!(address, "listening on {address}");
        } else {
            // Where stdout is closed nobody wants to know.
            let _ = writeln!(std::io::stdout(), "listening on {address}");
        }
    }
}
