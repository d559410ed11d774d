//! One compile per key: single flight, queue, executors, retry.
//!
//! Guarantees:
//! * at any time at most one job exists for a key, however many callers ask for it;
//! * a key that is in the store is answered from the store, and a job's result is in the store before anybody hears of it;
//! * a stored artifact that the operator's policy wants verified, and that was not, counts as absent ([`VerifyPolicy`]);
//! * who waits now goes before who will wait, and that before what only makes things better; among equals, peers take turns ([`queue`]);
//! * a caller that leaves disturbs nobody; a job that nobody waits for any more is dropped if it has not started, and finished
//!   and stored, or ended, as the operator chose, if it has ([`Abandoned`]);
//! * no more runs side by side than executors, memory and GPUs allow ([`slots`]), and kernels are timed while nothing else runs on their
//!   GPU ([`leases`]);
//! * an executor that dies costs one try of one job; a failure that is the graph's own is tried once, and remembered ([`failures`]).
//!
//! Lock order: [`flights::Flights`]'s lock is taken with no other held, and none is held across an await.

mod activity;
mod config;
mod counters;
mod error;
mod failures;
mod flights;
mod history;
mod job;
mod labels;
mod leases;
mod pool;
mod programs;
mod queue;
mod slots;
mod span;
mod steps;
mod toolchain;
mod verify;
mod worker;

#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use piecewised_executor::{Executor, Gpu, Launcher, Placement};
use piecewised_graph::{Digest, Handle};
use piecewised_plan::Range;
use piecewised_store::{Store, StoreError};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use activity::{Activities, Activity, Became, PartActivity};
pub use config::SchedulerConfig;
pub use counters::{Counters, Counts, DURATION_BOUNDS_S, OTHER};
pub use error::{JobFailure, SubmitError};
pub use history::{Compiled, EndedJob, History, head};
pub use job::{
    Abandoned, JobDescription, JobFrontend, JobInfo, JobSpec, JobState, Origin, Peer, Priority, Ticket, Watcher,
};
pub use labels::{LabelDifference, Labels};
pub use pool::IdleExecutor;
pub use programs::{CameFrom, Place, ProgramError, RunStatus};
pub use steps::Step;
pub use toolchain::{ToolchainInfo, ToolchainStatus};
pub use verify::VerifyPolicy;

use flights::{Flights, Joined};
use leases::Leases;
use pool::Pool;
use programs::Programs;
use queue::Queue;
use slots::Slots;

/// The scheduler. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Scheduler {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: SchedulerConfig,
    pub(crate) store: Store,
    pub(crate) flights: Arc<Flights>,
    pub(crate) leases: Leases,
    pub(crate) pool: Pool,
    /// No further submissions.
    draining: CancellationToken,
    /// Running jobs end now.
    pub(crate) stop: CancellationToken,
    tasks: TaskTracker,
    programs: Programs,
    toolchain: watch::Receiver<ToolchainStatus>,
    labels: Labels,
    activities: Activities,
    pub(crate) counters: Counters,
    pub(crate) history: History,
}

impl Scheduler {
    /// Starts the workers. They spawn their executors when they have jobs, once `toolchain` is ready.
    pub fn start(config: SchedulerConfig, store: Store, toolchain: watch::Receiver<ToolchainStatus>) -> Self {
        let slots = Slots::new(config.n_executors, config.max_executor_memory_bytes, config.max_jobs_per_gpu);
        let queue = Queue::new(config.room(), slots);
        let shared = Arc::new(Shared {
            flights: Arc::new(Flights::new(queue, config.n_executors, config.abandoned)),
            leases: Leases::default(),
            pool: Pool::default(),
            config,
            store,
            draining: CancellationToken::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            programs: Programs::default(),
            toolchain,
            labels: Labels::default(),
            activities: Activities::default(),
            counters: Counters::default(),
            history: History::default(),
        });
        tokio::spawn(worker::list_gpus(Arc::downgrade(&shared)));
        tokio::spawn(worker::end_idle(Arc::downgrade(&shared)));
        for _ in 0..shared.config.n_executors {
            shared.tasks.spawn(worker::run(Arc::clone(&shared)));
        }
        Self { shared }
    }

    /// Takes over an executor that is ready already (the one that proved the toolchain), for the first job.
    pub fn adopt(&self, executor: Executor) {
        self.shared.pool.put(executor, Placement::default());
    }

    /// The toolchain as it is known now.
    pub fn toolchain(&self) -> ToolchainStatus {
        self.shared.toolchain.borrow().clone()
    }

    /// The toolchain once it is known to work or not, at most `timeout` from now.
    ///
    /// # Errors
    /// [`SubmitError::NoToolchain`] with the reason.
    pub async fn toolchain_ready(&self, timeout: Duration) -> Result<Arc<ToolchainInfo>, SubmitError> {
        let mut status = self.shared.toolchain.clone();
        let settled = status.wait_for(|status| !matches!(status, ToolchainStatus::Probing));
        match tokio::time::timeout(timeout, settled).await.map(|status| status.map(|status| status.clone())) {
            Ok(Ok(ToolchainStatus::Ready(info))) => Ok(info),
            Ok(Ok(ToolchainStatus::Unusable { reason })) => Err(SubmitError::NoToolchain { reason }),
            Ok(Ok(ToolchainStatus::Probing)) | Err(_) => Err(SubmitError::StillProbing),
            Ok(Err(_)) => Err(SubmitError::Draining),
        }
    }

    /// The configuration that it was started with.
    pub fn config(&self) -> &SchedulerConfig {
        &self.shared.config
    }

    /// What the store has for a key, if that is good enough for the policy of verification.
    ///
    /// # Errors
    /// [`SubmitError::Store`].
    pub async fn stored(&self, key: &Digest) -> Result<Option<Handle>, SubmitError> {
        Ok(self.find(key).await?)
    }

    async fn find(&self, key: &Digest) -> Result<Option<Handle>, StoreError> {
        let found = self.shared.store.get(key).await?;
        let is_good = |handle: &Handle| {
            let is_good = self.shared.config.verify.accepts(handle);
            if !is_good {
                tracing::info!(key = key.short(), "in the store, but not verified: compiling it again");
            }
            is_good
        };
        Ok(found.filter(is_good))
    }

    /// Submits the jobs of one request: each is answered from the store, with a failure that is remembered, joined to the job of its
    /// key, or queued. Either all that have to be queued fit into the queue, or none is.
    ///
    /// # Errors
    /// [`SubmitError::Draining`], [`SubmitError::QueueFull`], [`SubmitError::PeerQueueFull`], [`SubmitError::PeerBytesFull`],
    /// [`SubmitError::Store`].
    pub async fn submit(
        &self,
        peer: &Peer,
        priority: Priority,
        specs: Vec<Arc<JobSpec>>,
    ) -> Result<Vec<Ticket>, SubmitError> {
        if self.shared.draining.is_cancelled() {
            return Err(SubmitError::Draining);
        }
        let mut known: Vec<Option<Ticket>> = Vec::with_capacity(specs.len());
        for spec in &specs {
            known.push(match self.find(&spec.key).await? {
                Some(handle) => Some(Ticket::Stored(Box::new(handle))),
                None => failures::recall(&self.shared.store, &spec.key)
                    .await?
                    .map(|failure| Ticket::Failed { key: spec.key, failure }),
            });
        }
        let unknown: Vec<Arc<JobSpec>> =
            specs.into_iter().zip(&known).filter(|(_, ticket)| ticket.is_none()).map(|(spec, _)| spec).collect();
        if unknown.is_empty() {
            return Ok(known.into_iter().flatten().collect());
        }
        let joined = self.shared.flights.join_or_create(peer, priority, unknown)?;
        // In a task of its own, and all of them before any error is told: a caller that leaves now, or a store that fails for one key,
        // must not leave jobs behind that are neither queued nor ended, since every later caller of their keys would wait for them.
        let scheduler = self.clone();
        let settled = self.shared.tasks.spawn(async move {
            let mut tickets = Vec::with_capacity(joined.len());
            for joined in joined {
                tickets.push(scheduler.settle(joined).await);
            }
            tickets
        });
        // It is aborted only when the runtime ends.
        let mut settled = settled.await.map_err(|_| SubmitError::Draining)?.into_iter();
        let ticket = |known: Option<Ticket>| match known {
            Some(ticket) => Ok(ticket),
            None => settled.next().expect("there is one for each that was not known"),
        };
        known.into_iter().map(ticket).collect()
    }

    /// A job that ended between our look into the store and the creation of the flight has left its result in the store and
    /// no flight. So whoever creates a flight looks once more before the job may run.
    async fn settle(&self, joined: Joined) -> Result<Ticket, SubmitError> {
        match joined {
            Joined::Existing(watcher) => Ok(Ticket::Running(watcher)),
            Joined::Created(watcher) => {
                let job = watcher.job();
                match self.find(&job.spec.key).await {
                    Ok(Some(handle)) => {
                        self.shared.flights.finish(job, Ok(handle.clone()));
                        Ok(Ticket::Stored(Box::new(handle)))
                    }
                    Ok(None) => match failures::recall(&self.shared.store, &job.spec.key).await {
                        Ok(Some(failure)) => {
                            self.shared.flights.finish(job, Err(failure.clone()));
                            Ok(Ticket::Failed { key: job.spec.key, failure })
                        }
                        // That nothing can be recalled is no reason not to try.
                        Ok(None) | Err(_) => {
                            self.shared.flights.enqueue(job);
                            Ok(Ticket::Running(watcher))
                        }
                    },
                    Err(error) => {
                        self.shared.flights.finish(job, Err(JobFailure::store(&error)));
                        Err(error.into())
                    }
                }
            }
        }
    }

    /// Notes a submitted piece of a program, before its jobs are. `entries`: those of its plan, one for each job; several may have one
    /// job, which is then for more than each of them.
    ///
    /// # Errors
    /// [`ProgramError`] where it does not fit its run; the run stays as it was.
    pub fn begin_piece(
        &self,
        place: &Place,
        specs: &[Arc<JobSpec>],
        entries: &[Option<Range>],
    ) -> Result<(), ProgramError> {
        let Some(first) = specs.first() else { return Ok(()) };
        let keys = specs.iter().map(|spec| spec.key).collect();
        let entries = entries.iter().copied().flatten().collect();
        let max_pieces = self.shared.config.max_pieces;
        self.shared.programs.submit(place, first.graph_digest, keys, entries, max_pieces, Instant::now())
    }

    /// Notes that the entry at `position` of a piece's plan is ready.
    pub fn entry_ready(&self, place: &Place, position: usize, handle: Handle, from: CameFrom) {
        self.shared.programs.ready(place, position, handle, from, Instant::now());
    }

    /// How far the run is now. Where every piece is ready, its manifest is durable under the program's name when this returns.
    ///
    /// # Errors
    /// [`SubmitError::Store`] where the manifest could not be stored: the program is then not complete.
    pub async fn end_piece(&self, place: &Place) -> Result<Option<(RunStatus, Option<Digest>)>, SubmitError> {
        let Some(status) = self.shared.programs.status(place, Instant::now(), failures::unix_ms()) else {
            return Ok(None);
        };
        let Some(manifest) = &status.manifest else { return Ok(Some((status, None))) };
        let digest = manifest.digest();
        if self.shared.store.put_manifest(manifest.clone()).await? {
            tracing::info!(
                program = %place.program,
                n_pieces = status.n_pieces,
                n_distinct_pieces = status.n_distinct_pieces,
                n_compiled = status.n_compiled,
                elapsed_s = status.elapsed.as_secs_f64(),
                "a program is complete"
            );
        }
        Ok(Some((status, Some(digest))))
    }

    /// Forgets failures that are remembered, of one key or all, so that they are tried again. How many there were.
    ///
    /// # Errors
    /// [`SubmitError::Store`].
    pub async fn forget_failures(&self, key: Option<Digest>) -> Result<u64, SubmitError> {
        Ok(self.shared.store.forget_failures(key).await?)
    }

    /// Gets ready for jobs of a frontend, in the background, if the toolchain has it.
    pub fn prepare(&self, frontend: String) {
        let mut status = self.shared.toolchain.clone();
        let draining = self.shared.draining.clone();
        let prepare = async move {
            let known = status.wait_for(|status| !matches!(status, ToolchainStatus::Probing)).await;
            let Ok(ToolchainStatus::Ready(info)) = known.map(|status| status.clone()) else { return };
            if info.frontends.contains(&frontend)
                && let Err(error) = info.launcher.prepare(&frontend).await
            {
                tracing::warn!(frontend, "cannot get ready for it: {error}");
            }
        };
        self.shared.tasks.spawn(async move {
            tokio::select! {
                () = prepare => {}
                () = draining.cancelled() => {}
            }
        });
    }

    /// What was last sent under each label.
    pub fn labels(&self) -> &Labels {
        &self.shared.labels
    }

    /// What became of what was asked for.
    pub fn activities(&self) -> &Activities {
        &self.shared.activities
    }

    /// How many jobs wait, and how many run.
    pub fn n_jobs(&self) -> (usize, usize) {
        self.shared.flights.counts()
    }

    /// The jobs that run and that wait, those that run first, each by age.
    pub fn jobs(&self) -> Vec<JobInfo> {
        self.first_jobs(usize::MAX)
    }

    /// Up to `limit` of them, without the cost of the others.
    pub fn first_jobs(&self, limit: usize) -> Vec<JobInfo> {
        self.shared.flights.jobs().iter().take(limit).map(|job| JobInfo::of(job)).collect()
    }

    /// Executors that wait for a job.
    pub fn n_idle_executors(&self) -> usize {
        self.shared.pool.len()
    }

    /// The same, each by itself.
    pub fn idle_executors(&self) -> Vec<IdleExecutor> {
        self.shared.pool.list()
    }

    /// The jobs that ended last.
    pub fn history(&self) -> &History {
        &self.shared.history
    }

    /// What workers did since the start.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Takes no more jobs; running and queued ones go on. How many those are.
    pub fn drain(&self) -> usize {
        self.shared.draining.cancel();
        self.shared.flights.close()
    }

    /// Ends: takes no more jobs, lets running and queued ones finish for `grace`, then ends executors.
    pub async fn shutdown(&self, grace: Duration) {
        self.drain();
        self.shared.tasks.close();
        if tokio::time::timeout(grace, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!(
                grace_s = grace.as_secs_f64(),
                "jobs were still running at the end of the grace period; ending them"
            );
            self.shared.stop.cancel();
            self.shared.tasks.wait().await;
        }
        // No worker is left to take them.
        pool::end(self.shared.pool.take_beyond(0)).await;
        let launcher = match &*self.shared.toolchain.borrow() {
            ToolchainStatus::Ready(info) => Some(info.launcher.clone()),
            _ => None,
        };
        if let Some(launcher) = launcher {
            launcher.shutdown().await;
        }
    }
}

impl Shared {
    /// What starts executors of the toolchain, and its GPUs, once they are known.
    pub(crate) async fn launcher(&self) -> Result<(Launcher, Vec<Gpu>), String> {
        let mut status = self.toolchain.clone();
        match status.wait_for(|status| !matches!(status, ToolchainStatus::Probing)).await.map(|it| it.clone()) {
            Ok(ToolchainStatus::Ready(info)) => Ok((info.launcher.clone(), info.gpus.clone())),
            Ok(ToolchainStatus::Unusable { reason }) => Err(reason),
            Ok(ToolchainStatus::Probing) | Err(_) => Err("the daemon is ending".into()),
        }
    }
}
