//! A worker: takes one job after the other, finds it an executor, and tries until it ends.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use piecewised_executor::{CompileJob, CompileOutcome, ExecutorError, Gpu, JobHost, Launcher, LeaseMode, Placement};
use piecewised_graph::{Digest, Handle, check_segments};
use tracing::Instrument as _;

use crate::{
    JobFailure, Shared, ToolchainStatus, VerifyPolicy, failures,
    job::Job,
    leases::{Lease, Leases},
    pool,
    slots::{Grant, kind},
};

/// A compile that did not end within its deadline is tried this often: it may have hung, but it may also just take longer.
const MAX_TIMEOUTS: u32 = 2;

/// Runs until the queue is closed and empty, or everything is stopped.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        let (job, grant) = tokio::select! {
            next = shared.flights.next() => match next {
                Some(next) => next,
                None => break,
            },
            () = shared.stop.cancelled() => break,
        };
        let span = tracing::info_span!(
            "job",
            id = job.id,
            key = job.spec.key.short(),
            label = some(&job.spec.label),
            range = job.spec.range.map(tracing::field::display),
            trace_id = job.span.trace_id()
        );
        // Where the compile is dropped half-way its executor goes with it.
        let outcome = tokio::select! {
            outcome = compile(&shared, &job, grant).instrument(span.clone()) => outcome,
            () = job.end.cancelled() => Err(JobFailure::abandoned()),
            () = shared.stop.cancelled() => Err(JobFailure::cancelled()),
        };
        shared.counters.ended(&outcome);
        shared.history.note(&job, &outcome);
        job.span.end(job.queued_at, job.queued.elapsed(), &job.steps(), &outcome);
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
                failures::remember(&shared.store, &job.spec.key, failure).await;
            }
        }
        shared.flights.finish(&job, outcome);
    }
}

/// What is worth saying.
fn some(label: &str) -> Option<&str> {
    Some(label).filter(|label| !label.is_empty())
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Tells the queue which GPUs there are, once that is known.
pub(crate) async fn list_gpus(shared: Weak<Shared>) {
    let Some(mut status) = shared.upgrade().map(|shared| shared.toolchain.clone()) else { return };
    let ready = status.wait_for(|status| matches!(status, ToolchainStatus::Ready(_)));
    if let (Ok(status), Some(shared)) = (ready.await, shared.upgrade())
        && let ToolchainStatus::Ready(info) = &*status
    {
        shared.flights.set_gpus(info.gpus.iter().map(|gpu| (kind(&gpu.kind), gpu.memory_bytes)));
    }
}

/// Ends executors that have been idle for too long, as long as there is a scheduler.
pub(crate) async fn end_idle(shared: Weak<Shared>) {
    loop {
        let timeouts = |shared: &Shared| (shared.config.idle_timeout, shared.config.gpu_idle_timeout);
        let Some((idle_timeout, on_gpu)) = shared.upgrade().map(|shared| timeouts(&shared)) else { return };
        let shorter = idle_timeout.min(on_gpu);
        tokio::time::sleep((shorter / 8).clamp(Duration::from_millis(100), Duration::from_secs(5))).await;
        let timeout = |placement: &Placement| if placement.gpu.is_some() { shorter } else { idle_timeout };
        let Some(old) = shared.upgrade().map(|shared| shared.pool.take_idle(timeout)) else { return };
        pool::end(old).await;
    }
}

/// Tries the job until it ends in a result, a failure of its own, or has used up its attempts.
async fn compile(shared: &Shared, job: &Arc<Job>, mut grant: Grant) -> Result<Handle, JobFailure> {
    let (launcher, gpus) = shared.launcher().await.map_err(|reason| JobFailure::new("NO_TOOLCHAIN", reason, true))?;
    let mut n_timeouts = 0;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let gpu = grant.gpu.and_then(|at| gpus.get(at));
        let placement = Placement {
            gpu: gpu.cloned(),
            max_memory_bytes: Some(shared.config.max_executor_memory_bytes),
            frontend: job.spec.frontend.as_ref().map(|it| it.frontend.name.clone()),
            ..Placement::default()
        };
        let error = match attempt_once(shared, job, attempt, &launcher, placement).await {
            Ok(outcome) => {
                shared.flights.measured(job, outcome.peak_memory_bytes);
                if let Some(gpu) = shared.flights.gpu_worked(job).and_then(|at| gpus.get(at)) {
                    tracing::info!(gpu = gpu.uuid, index = gpu.index, "the GPU works again");
                }
                job.enter("store");
                return store(shared, job, outcome).await;
            }
            Err(error) => error,
        };
        match &error {
            ExecutorError::DeviceFault { .. } => {
                let (next, quarantined) = shared.flights.gpu_failed(job).unwrap_or((grant, None));
                if let Some(gpu) = quarantined.and_then(|at| gpus.get(at)) {
                    tracing::error!(
                        gpu = gpu.uuid,
                        index = gpu.index,
                        "jobs keep losing this GPU; others of its kind are taken first"
                    );
                }
                grant = next;
            }
            // The next ones like it get more room.
            ExecutorError::OutOfMemory { used_bytes, .. } => shared.flights.measured(job, *used_bytes),
            ExecutorError::TimedOut { .. } => n_timeouts += 1,
            _ => {}
        }
        if !error.is_retryable() || attempt >= shared.config.max_attempts || n_timeouts >= MAX_TIMEOUTS {
            return Err(JobFailure::executor(&error));
        }
        shared.counters.retried();
        tracing::warn!(attempt, "trying again on a new executor: {error}");
    }
}

async fn attempt_once(
    shared: &Shared,
    job: &Arc<Job>,
    attempt: u32,
    launcher: &Launcher,
    placement: Placement,
) -> Result<CompileOutcome, ExecutorError> {
    job.step("launch", attempt);
    // Out of the pool while it runs: only an executor that is well goes back.
    let mut executor = match shared.pool.take(&placement) {
        Some(executor) => executor,
        None => {
            // Those that wait elsewhere hold memory and a GPU's context for nothing.
            let (_, n_running) = shared.flights.counts();
            pool::end(shared.pool.take_beyond(shared.config.n_executors.saturating_sub(n_running))).await;
            launcher.launch(&placement).await?
        }
    };
    let now = Instant::now();
    job.state.send_modify(|state| {
        state.attempt = attempt;
        state.executor_pid = Some(executor.pid());
        state.gpu = placement.gpu.as_ref().map(|gpu| gpu.index);
        state.phase = "started".into();
        state.started.get_or_insert(now);
    });
    job.step("started", attempt);
    let device = match &placement.gpu {
        Some(Gpu { uuid, .. }) => uuid.clone(),
        None => kind(&job.spec.device),
    };
    let mut host = Host { job, leases: &shared.leases, device };
    let result =
        executor.compile(&compile_job(job, &shared.config.verify, shared.config.job_deadline), &mut host).await;
    shared.pool.put(executor, placement);
    result
}

/// What a job's executor hears back from.
struct Host<'a> {
    job: &'a Job,
    leases: &'a Leases,
    /// Names what it leases.
    device: String,
}

impl JobHost for Host<'_> {
    type Lease = Lease;

    fn on_phase(&mut self, phase: &str) {
        self.job.enter(phase);
    }

    async fn lease(&mut self, mode: LeaseMode) -> Lease {
        if let Some(lease) = self.leases.try_lease(&self.device, mode) {
            return lease;
        }
        // Told to the callers: it may take as long as another job's tuning.
        let phase = self.job.enter("lease");
        let lease = self.leases.lease(&self.device, mode).await;
        self.job.enter(&phase);
        lease
    }
}

fn compile_job(job: &Job, policy: &VerifyPolicy, deadline: Duration) -> CompileJob {
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
        frontend: spec.frontend.as_ref().map(|it| (it.frontend.clone(), it.payload.clone())),
        deadline,
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
        peak_memory_bytes: _,
    } = outcome;
    let size_bytes = artifact.len() as u64;
    let (artifact, digest) = tokio::task::spawn_blocking(move || {
        let digest = Digest::of(&artifact);
        (artifact, digest)
    })
    .await
    .map_err(|error| JobFailure::new("INTERNAL", format!("digesting the artifact failed: {error}"), true))?;
    let spec = &job.spec;
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
        key_record: spec.key_record.clone(),
        signature: None,
        created_unix_ms: failures::unix_ms(),
    };
    check_segments(&handle.segments, &handle.guard_symbols, handle.range).map_err(|error| {
        JobFailure::new("INTERNAL", format!("the executor's segments are not usable: {error}"), false)
    })?;
    shared.store.put(handle.clone(), artifact).await.map_err(|error| JobFailure::store(&error))?;
    Ok(handle)
}
