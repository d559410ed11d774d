//! A job, its state as its callers see it, and what a caller holds.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use piecewised_graph::{
    Digest, Frontend, Handle, KeyRecord,
    request::{ArtifactFormat, CompileOptions, DeviceKind, Toolchain, Tuning},
};
use piecewised_plan::Range;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    JobFailure,
    flights::Flights,
    queue::{Ask, JobId, WaiterId},
    slots::Need,
    span::JobSpan,
    steps::{Step, Steps},
};

/// What is to be compiled.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// The key of the result.
    pub key: Digest,
    /// The canonical graph's digest.
    pub graph_digest: Digest,
    /// The canonical graph.
    pub graph: Arc<str>,
    /// `None`: the graph has no symbolic input.
    pub range: Option<Range>,
    /// The placeholder that is dispatched on.
    pub dispatch_argument: Option<u32>,
    /// The size that heuristics think of.
    pub hint: Option<i64>,
    /// As they went into the key.
    pub options: CompileOptions,
    /// How the artifact is packed.
    pub format: ArtifactFormat,
    /// Which toolchain the key is for.
    pub toolchain: Toolchain,
    /// Which device the key is for.
    pub device: DeviceKind,
    /// What takes part in the compile.
    pub frontend: Option<JobFrontend>,
    /// What the caller that asked first calls the piece; empty: nothing.
    pub label: Arc<str>,
    /// What the key was derived from beside all this, for the store.
    pub key_record: KeyRecord,
}

/// A frontend with what its executor needs.
#[derive(Debug, Clone)]
pub struct JobFrontend {
    /// As it went into the key.
    pub frontend: Frontend,
    /// Read by the executor only.
    pub payload: Bytes,
    /// Of the payload, which peers' limits count once.
    pub payload_digest: Digest,
}

/// Which jobs go first. The smaller the more urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// Somebody waits for it now.
    #[default]
    Interactive,
    /// Somebody will, soon.
    Prefetch,
    /// What runs already would run better with it.
    Background,
}

/// Who asks, as far as taking turns and limits go: a process, or a connection where the process cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(Arc<str>);

impl Peer {
    /// A peer by a name that is its own: "uid 1000, process 4711".
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What becomes of a running job that nobody waits for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Abandoned {
    /// It is finished and stored: whoever asked will most likely ask again.
    #[default]
    Finish,
    /// It is ended, and its executor with it.
    End,
}

/// Where a job is.
#[derive(Debug, Clone)]
pub struct JobState {
    /// Which try is running; 0: none has started.
    pub attempt: u32,
    /// The executor's process.
    pub executor_pid: Option<u32>,
    /// The GPU that it has, by its index; `None`: none, or not yet.
    pub gpu: Option<u32>,
    /// "queued" or a phase of the executor.
    pub phase: String,
    /// When the first try started.
    pub started: Option<Instant>,
    /// Set at the end.
    pub outcome: Option<Result<Handle, JobFailure>>,
}

/// One compile of one key.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) number: JobId,
    /// Names the job in logs and events.
    pub(crate) id: String,
    pub(crate) spec: Arc<JobSpec>,
    pub(crate) queued: Instant,
    /// The same by the clock that people read.
    pub(crate) queued_at: SystemTime,
    steps: Mutex<Steps>,
    pub(crate) span: JobSpan,
    pub(crate) state: watch::Sender<JobState>,
    /// Nobody wants it any more.
    pub(crate) end: CancellationToken,
}

impl Job {
    pub(crate) fn new(number: JobId, spec: Arc<JobSpec>) -> Self {
        let phase = "queued".into();
        let state = JobState { attempt: 0, executor_pid: None, gpu: None, phase, started: None, outcome: None };
        let (id, queued_at) = (format!("j{}", number.0), SystemTime::now());
        Self {
            number,
            span: JobSpan::new(&id, &spec, queued_at),
            id,
            spec,
            queued: Instant::now(),
            queued_at,
            steps: Mutex::new(Steps::new()),
            state: watch::Sender::new(state),
            end: CancellationToken::new(),
        }
    }

    /// Begins a step that callers are not told of.
    pub(crate) fn step(&self, phase: &str, attempt: u32) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push(phase, self.queued.elapsed(), attempt);
    }

    /// Enters a phase; the one that was left.
    pub(crate) fn enter(&self, phase: &str) -> String {
        let mut left = String::new();
        let mut attempt = 0;
        self.state.send_modify(|state| {
            left = std::mem::replace(&mut state.phase, phase.to_owned());
            attempt = state.attempt;
        });
        self.step(phase, attempt);
        left
    }

    /// What it did so far.
    pub(crate) fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).list()
    }
}

/// What a job is, and what it did so far.
#[derive(Debug, Clone)]
pub struct JobDescription {
    /// Names it in logs and events.
    pub id: String,
    /// Of the result.
    pub key: Digest,
    /// What the caller that asked first calls the piece; empty: nothing.
    pub label: Arc<str>,
    /// `None`: the graph has no symbolic input.
    pub range: Option<Range>,
    /// How the artifact is packed.
    pub format: ArtifactFormat,
    /// How hard the compiler tries.
    pub tuning: Tuning,
    /// What the code runs on.
    pub device: DeviceKind,
    /// When it was asked for first.
    pub queued_at: SystemTime,
    /// What it did so far.
    pub steps: Vec<Step>,
}

/// What can be told of a job that has not ended.
#[derive(Debug, Clone)]
pub struct JobInfo {
    /// What it is.
    pub job: JobDescription,
    /// Since it was asked for first.
    pub age: Duration,
    /// Where it is.
    pub state: JobState,
}

impl JobInfo {
    pub(crate) fn of(job: &Job) -> Self {
        Self { job: JobDescription::of(job), age: job.queued.elapsed(), state: job.state.borrow().clone() }
    }
}

impl JobDescription {
    pub(crate) fn of(job: &Job) -> Self {
        let spec = &job.spec;
        Self {
            id: job.id.clone(),
            key: spec.key,
            label: Arc::clone(&spec.label),
            range: spec.range,
            format: spec.format,
            tuning: spec.options.tuning,
            device: spec.device.clone(),
            queued_at: job.queued_at,
            steps: job.steps(),
        }
    }
}

/// What the queue has to know of a job.
pub(crate) fn ask(spec: &JobSpec) -> Ask {
    let (graph, graph_bytes) = match &spec.frontend {
        // The payload is held as long as the graph is.
        Some(JobFrontend { payload, payload_digest, .. }) => {
            let both = [spec.graph_digest.0, payload_digest.0].concat();
            (Digest::of(&both), spec.graph.len() + payload.len())
        }
        None => (spec.graph_digest, spec.graph.len()),
    };
    Ask { key: spec.key, need: Need::new(&spec.device, spec.options.tuning == Tuning::Full), graph, graph_bytes }
}

/// What a caller gets for each job of its request.
#[derive(Debug)]
pub enum Ticket {
    /// It was in the store.
    Stored(Box<Handle>),
    /// It is queued or running.
    Running(Watcher),
    /// It was tried a while ago and failed for a reason of its own, so it is not tried again.
    Failed {
        /// Of the job that failed.
        key: Digest,
        /// How.
        failure: JobFailure,
    },
}

/// How a caller came to a job.
#[derive(Debug, Clone)]
pub enum Origin {
    /// The job was made for it.
    Queued {
        /// Jobs before it.
        position: usize,
    },
    /// The job was there.
    Joined {
        /// Where it was.
        phase: String,
        /// Since it was queued.
        age: Duration,
    },
}

/// A caller's view of a job. Dropping it is leaving.
#[derive(Debug)]
pub struct Watcher {
    job: Arc<Job>,
    state: watch::Receiver<JobState>,
    origin: Origin,
    waiter: WaiterId,
    flights: Arc<Flights>,
}

impl Watcher {
    pub(crate) fn new(flights: &Arc<Flights>, job: &Arc<Job>, waiter: WaiterId, origin: Origin) -> Self {
        let state = job.state.subscribe();
        Self { job: Arc::clone(job), state, origin, waiter, flights: Arc::clone(flights) }
    }

    pub(crate) fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// The key that is being compiled.
    pub fn key(&self) -> Digest {
        self.job.spec.key
    }

    /// Names the job in logs and events.
    pub fn job_id(&self) -> &str {
        &self.job.id
    }

    /// How the caller came to it.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The state as it is now. Steps that followed each other faster than the caller looked are skipped.
    pub fn state(&mut self) -> JobState {
        self.state.borrow_and_update().clone()
    }

    /// Waits for another state than the one last looked at.
    pub async fn changed(&mut self) {
        // The job, which holds the sender, lives as long as we do: this can't fail.
        let _ = self.state.changed().await;
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.flights.leave(&self.job, self.waiter);
    }
}
