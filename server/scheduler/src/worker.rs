//! A worker: takes one job after the other and runs it on its executor, which it keeps warm.

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use piecewised_executor::{CompileJob, CompileOutcome, Executor, ExecutorError};
use piecewised_graph::{Digest, Handle, check_segments};
use tracing::Instrument as _;

use crate::{JobFailure, Shared, VerifyPolicy, job::Job};

/// Runs until the queue is closed and empty, or everything is stopped.
pub(crate) async fn run(shared: Arc<Shared>, number: usize) {
    let mut executor: Option<Executor> = None;
    loop {
        let next = tokio::time::timeout(shared.config.idle_timeout, shared.flights.next());
        let job = tokio::select! {
            next = next => match next {
                Ok(Some(job)) => job,
                Ok(None) => break,
                Err(_) => {
                    if let Some(idle) = executor.take().or_else(|| shared.take_spare()) {
                        tracing::info!(worker = number, pid = idle.pid(), "ending an idle executor");
                        idle.shutdown().await;
                    }
                    continue;
                }
            },
            () = shared.stop.cancelled() => break,
        };
        let span = tracing::info_span!(
            "job",
            id = job.id,
            key = job.spec.key.short(),
            range = job.spec.range.map(tracing::field::display)
        );
        let outcome = tokio::select! {
            outcome = compile(&shared, &job, &mut executor).instrument(span.clone()) => outcome,
            () = shared.stop.cancelled() => {
                // The compile was dropped half-way: the executor's protocol is not at a frame boundary.
                executor = None;
                Err(JobFailure::cancelled())
            }
        };
        match &outcome {
            Ok(handle) => tracing::info!(
                parent: &span,
                compile_s = handle.timings.total_s,
                size_bytes = handle.size_bytes,
                segments = handle.segments.len(),
                "compiled"
            ),
            Err(failure) => {
                tracing::warn!(parent: &span, reason = failure.reason, "failed: {}", first_line(&failure.message));
            }
        }
        shared.flights.finish(&job, outcome);
    }
    if let Some(executor) = executor {
        executor.shutdown().await;
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Tries the job until it ends in a result, a failure of its own, or has used up its attempts.
async fn compile(shared: &Shared, job: &Arc<Job>, slot: &mut Option<Executor>) -> Result<Handle, JobFailure> {
    let config = shared.executor_config().await.map_err(|reason| JobFailure::new("NO_TOOLCHAIN", reason, true))?;
    let mut attempt = 0;
    loop {
        attempt += 1;
        // Taken out of its slot while it runs: only an executor that ended its job well goes back.
        let mut executor = match slot.take().or_else(|| shared.take_spare()) {
            Some(executor) => executor,
            None => match Executor::spawn(&config).await {
                Ok(executor) => executor,
                Err(error) if attempt < shared.config.max_attempts && error.is_retryable() => {
                    tracing::warn!(attempt, "an executor did not start, trying another: {error}");
                    continue;
                }
                Err(error) => return Err(JobFailure::executor(&error)),
            },
        };
        let now = Instant::now();
        job.state.send_modify(|state| {
            state.attempt = attempt;
            state.executor_pid = Some(executor.pid());
            state.phase = "started".into();
            state.started.get_or_insert(now);
        });
        let result = executor
            .compile(&compile_job(job, shared.config.verify), |phase| {
                job.state.send_modify(|state| state.phase = phase.to_owned())
            })
            .await;
        match result {
            Ok(outcome) => {
                *slot = Some(executor);
                job.state.send_modify(|state| state.phase = "store".into());
                return store(shared, job, outcome).await;
            }
            Err(error) => {
                if error.executor_can_go_on() {
                    *slot = Some(executor);
                }
                // A compile that was too slow once is too slow again.
                let is_retryable = error.is_retryable() && !matches!(error, ExecutorError::TimedOut { .. });
                if attempt < shared.config.max_attempts && is_retryable {
                    tracing::warn!(attempt, "trying again on a new executor: {error}");
                    continue;
                }
                return Err(JobFailure::executor(&error));
            }
        }
    }
}

fn compile_job(job: &Job, policy: VerifyPolicy) -> CompileJob {
    let spec = &job.spec;
    CompileJob {
        id: job.id.clone(),
        graph: Arc::clone(&spec.graph),
        range: spec.range,
        dispatch_argument: spec.dispatch_argument,
        hint: spec.hint,
        options: spec.options.clone(),
        format: spec.format,
        device: spec.device.clone(),
        verify: policy.wants(&spec.key),
    }
}

/// Stores the artifact; only then is there a handle. Where the disk is full or fails, the store holds it in memory and serves it: a
/// compile is not lost for that.
async fn store(shared: &Shared, job: &Job, outcome: CompileOutcome) -> Result<Handle, JobFailure> {
    let CompileOutcome {
        artifact,
        segments,
        timings,
        returns_tuple,
        n_arguments,
        guard_symbols,
        verification,
        tuning,
        latencies,
    } = outcome;
    let size_bytes = artifact.len() as u64;
    let (artifact, digest) = tokio::task::spawn_blocking(move || {
        let digest = Digest::of(&artifact);
        (artifact, digest)
    })
    .await
    .map_err(|error| JobFailure::new("INTERNAL", format!("digesting the artifact failed: {error}"), true))?;
    let spec = &job.spec;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let handle = Handle {
        key: spec.key,
        graph_digest: spec.graph_digest,
        range: spec.range,
        digest,
        size_bytes,
        format: spec.format,
        toolchain: spec.toolchain.clone(),
        device: spec.device.clone(),
        segments,
        dispatch_argument: spec.dispatch_argument,
        hint: spec.hint,
        returns_tuple,
        n_arguments,
        timings,
        guard_symbols,
        verification,
        tuning,
        latencies,
        created_unix_ms: u64::try_from(created.as_millis()).unwrap_or(u64::MAX),
    };
    check_segments(&handle.segments, &handle.guard_symbols, handle.range).map_err(|error| {
        JobFailure::new("INTERNAL", format!("the executor's segments are not usable: {error}"), false)
    })?;
    shared.store.put(handle.clone(), artifact).await.map_err(|error| JobFailure::store(&error))?;
    Ok(handle)
}
