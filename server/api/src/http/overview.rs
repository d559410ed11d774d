//! `/api/v1/overview`: all that the live page shows of a daemon at a glance, as JSON.
//!
//! Its size does not depend on what the store or the queue hold: every list has a limit, and says how much there is. docs/live-page.md documents the fields.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Json, extract::State};
use piecewised_executor::Gpu;
use piecewised_graph::{
    VerificationOutcome,
    request::{ArtifactFormat, DeviceKind, Tuning},
};
use piecewised_scheduler::{
    Activity, EndedJob, IdleExecutor, JobDescription, JobInfo, PartActivity, Step, ToolchainStatus, head,
};
use piecewised_store::{StoreRoom, StoreStats};
use serde::Serialize;

use super::Site;

/// As many jobs as may run at all.
const MAX_RUNNING: usize = 256;
const MAX_QUEUED: usize = 50;
const MAX_RECENT: usize = 60;
const MAX_FAILURES: usize = 20;
const MAX_PARTS: usize = 50;
/// Of a message in a list.
const MAX_MESSAGE_BYTES: usize = 2048;

#[derive(Debug, Serialize)]
pub(crate) struct Overview {
    version: &'static str,
    now_unix_ms: u64,
    started_unix_ms: u64,
    /// `None`: compiles are taken.
    not_ready_reason: Option<String>,
    toolchain: Option<Toolchain>,
    executors: Executors,
    jobs: Jobs,
    requests: Counted,
    /// Model parts, those with most keys first.
    parts: Vec<Part>,
    n_parts: usize,
    store: Store,
    /// The jobs that failed last, the latest first.
    failures: Vec<Job>,
}

#[derive(Debug, Serialize)]
struct Toolchain {
    python: String,
    python_version: String,
    torch_version: String,
    triton_version: String,
    cuda_version: String,
    devices: Vec<DeviceKind>,
    gpus: Vec<Gpu>,
    frontends: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Executors {
    max: usize,
    idle: Vec<Idle>,
}

#[derive(Debug, Serialize)]
struct Idle {
    pid: u32,
    gpu: Option<u32>,
    frontend: Option<String>,
    idle_s: f64,
    memory_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Jobs {
    n_running: usize,
    n_queued: usize,
    running: Vec<Job>,
    /// Those that have waited longest.
    queued: Vec<Job>,
    /// Those that ended last, the latest first.
    recent: Vec<Job>,
}

#[derive(Debug, Serialize)]
struct Job {
    id: String,
    key: String,
    label: String,
    range: Option<String>,
    format: ArtifactFormat,
    tuning: Tuning,
    device: String,
    /// "queued", "running", "OK", or the reason of its failure.
    state: String,
    attempts: u32,
    executor_pid: Option<u32>,
    gpu: Option<u32>,
    queued_unix_ms: u64,
    /// From being queued to its end, or to now.
    took_s: f64,
    steps: Vec<JobStep>,
    message: Option<String>,
    size_bytes: Option<u64>,
    compile_s: Option<f64>,
    verified: Option<VerificationOutcome>,
}

#[derive(Debug, Serialize)]
struct JobStep {
    phase: String,
    /// From when the job was queued.
    at_s: f64,
    attempt: u32,
}

/// How many keys of requests came from where.
#[derive(Debug, Serialize)]
struct Counted {
    n_keys: u64,
    n_compiled: u64,
    n_joined: u64,
    n_from_store: u64,
    n_failed: u64,
    compile_s: f64,
    saved_s: f64,
}

#[derive(Debug, Serialize)]
struct Part {
    name: String,
    n_pieces: u64,
    n_differences: usize,
    #[serde(flatten)]
    counted: Counted,
}

#[derive(Debug, Serialize)]
struct Store {
    n_artifacts: u64,
    artifact_bytes: u64,
    disk_bytes: u64,
    pinned_bytes: u64,
    n_manifests: u64,
    n_failures: u64,
    held_bytes: u64,
    n_hits: u64,
    n_misses: u64,
    n_evicted: u64,
    n_damaged_dropped: u64,
    is_full: bool,
    is_failing: bool,
    max_bytes: Option<u64>,
    reserve_bytes: u64,
    /// What the disk has free; `None`: it does not say.
    available_bytes: Option<u64>,
}

pub(crate) async fn overview(State(site): State<Site>) -> Json<Overview> {
    let room = site.store.room().await.inspect_err(|error| tracing::warn!("cannot tell what the disk has: {error}"));
    Json(of(&site, room.ok()))
}

fn of(site: &Site, room: Option<StoreRoom>) -> Overview {
    let scheduler = &site.scheduler;
    let (n_queued, n_running) = scheduler.n_jobs();
    let jobs = scheduler.first_jobs(MAX_RUNNING + MAX_QUEUED);
    let (running, queued): (Vec<JobInfo>, Vec<_>) = jobs.into_iter().partition(|job| job.state.started.is_some());
    let (all, mut parts) = scheduler.activities().report();
    let n_parts = parts.len();
    parts.sort_by_key(|part| std::cmp::Reverse(part.activity.n_keys));
    let ended = |jobs: Vec<Arc<EndedJob>>| jobs.iter().map(|job| Job::ended(job)).collect();
    Overview {
        version: env!("CARGO_PKG_VERSION"),
        now_unix_ms: unix_ms(SystemTime::now()),
        started_unix_ms: site.started_unix_s * 1000,
        not_ready_reason: site.not_ready(),
        toolchain: toolchain(scheduler.toolchain()),
        executors: Executors {
            max: scheduler.config().n_executors,
            idle: scheduler.idle_executors().into_iter().map(idle).collect(),
        },
        jobs: Jobs {
            n_running,
            n_queued,
            running: running.iter().take(MAX_RUNNING).map(|job| Job::live(job, "running")).collect(),
            queued: queued.iter().take(MAX_QUEUED).map(|job| Job::live(job, "queued")).collect(),
            recent: ended(scheduler.history().jobs(MAX_RECENT)),
        },
        requests: counted(&all),
        parts: parts.into_iter().take(MAX_PARTS).map(part).collect(),
        n_parts,
        store: store(&site.store.stats(), room),
        failures: ended(scheduler.history().failures(MAX_FAILURES)),
    }
}

fn toolchain(status: ToolchainStatus) -> Option<Toolchain> {
    let ToolchainStatus::Ready(info) = status else { return None };
    let known = info.toolchain.clone();
    Some(Toolchain {
        python: known.executable,
        python_version: known.python_version,
        torch_version: known.torch_version,
        triton_version: known.triton_version,
        cuda_version: known.cuda_version,
        devices: info.devices.clone(),
        gpus: info.gpus.clone(),
        frontends: info.frontends.clone(),
    })
}

fn idle(executor: IdleExecutor) -> Idle {
    let IdleExecutor { pid, gpu, frontend, idle_for, memory_bytes } = executor;
    Idle { pid, gpu, frontend, idle_s: idle_for.as_secs_f64(), memory_bytes }
}

impl Job {
    fn live(info: &JobInfo, state: &str) -> Self {
        Self {
            attempts: info.state.attempt,
            executor_pid: info.state.executor_pid,
            gpu: info.state.gpu,
            ..Self::described(&info.job, state, info.age)
        }
    }

    fn ended(ended: &EndedJob) -> Self {
        let described =
            |state: &str| Self { attempts: ended.attempts, ..Self::described(&ended.job, state, ended.took) };
        match &ended.outcome {
            Ok(compiled) => Self {
                size_bytes: Some(compiled.size_bytes),
                compile_s: Some(compiled.compile_s),
                verified: Some(compiled.verified),
                ..described("OK")
            },
            Err(failure) => Self { message: Some(shortened(&failure.message)), ..described(&failure.reason) },
        }
    }

    fn described(job: &JobDescription, state: &str, took: Duration) -> Self {
        Self {
            id: job.id.clone(),
            key: job.key.to_string(),
            label: job.label.to_string(),
            range: job.range.map(|range| range.to_string()),
            format: job.format,
            tuning: job.tuning,
            device: named(&job.device),
            state: state.to_owned(),
            attempts: 0,
            executor_pid: None,
            gpu: None,
            queued_unix_ms: unix_ms(job.queued_at),
            took_s: took.as_secs_f64(),
            steps: job.steps.iter().cloned().map(step).collect(),
            message: None,
            size_bytes: None,
            compile_s: None,
            verified: None,
        }
    }
}

fn step(Step { phase, at, attempt }: Step) -> JobStep {
    JobStep { phase, at_s: round(at), attempt }
}

/// Milliseconds are enough, and half as long in JSON.
fn round(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

fn counted(activity: &Activity) -> Counted {
    let Activity { n_pieces: _, n_keys, n_compiled, n_joined, n_from_store, n_failed, compile_s, saved_s } = *activity;
    Counted { n_keys, n_compiled, n_joined, n_from_store, n_failed, compile_s, saved_s }
}

fn part(part: PartActivity) -> Part {
    Part {
        n_pieces: part.activity.n_pieces,
        n_differences: part.differences.len(),
        counted: counted(&part.activity),
        name: part.part,
    }
}

fn store(stats: &StoreStats, room: Option<StoreRoom>) -> Store {
    Store {
        n_artifacts: stats.n_artifacts,
        artifact_bytes: stats.artifact_bytes,
        disk_bytes: stats.disk_bytes,
        pinned_bytes: stats.pinned_bytes,
        n_manifests: stats.n_manifests,
        n_failures: stats.n_failures,
        held_bytes: stats.held_bytes,
        n_hits: stats.n_hits,
        n_misses: stats.n_misses,
        n_evicted: stats.n_evicted,
        n_damaged_dropped: stats.n_damaged_dropped,
        is_full: stats.is_full,
        is_failing: stats.is_failing,
        max_bytes: room.and_then(|room| room.max_bytes),
        reserve_bytes: room.map_or(0, |room| room.reserve_bytes),
        available_bytes: room.map(|room| room.available_bytes),
    }
}

pub(super) fn named(device: &DeviceKind) -> String {
    format!("{} {}", device.r#type, device.name)
}

pub(super) fn shortened(message: &str) -> String {
    head(message, MAX_MESSAGE_BYTES).to_owned()
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
