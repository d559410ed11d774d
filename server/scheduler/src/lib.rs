//! One compile per key: single flight, queue, executors, retry.
//!
//! Guarantees:
//! * at any time at most one job exists for a key, however many callers ask for it;
//! * a key that is in the store is answered from the store, and a job's result is in the store before anybody hears of it;
//! * a stored artifact that the operator's policy wants verified, and that was not, counts as absent ([`VerifyPolicy`]);
//! * background jobs wait for interactive ones, and never fill the queue for them;
//! * a caller that leaves disturbs nobody; a job that nobody waits for any more is dropped if it has not started, and finished
//!   and stored if it has;
//! * an executor that dies costs one try of one job.
//!
//! Lock order: there is one lock, [`flights::Flights`]'s, and it is never held across an await.
//!
//! Left out so far: per-peer limits, remembering deterministic failures, leases of devices.

mod error;
mod flights;
mod job;
mod programs;
mod toolchain;
mod verify;
mod worker;

#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use piecewised_executor::{Executor, Launcher};
use piecewised_graph::{Digest, Handle};
use piecewised_plan::Range;
use piecewised_store::{Store, StoreError};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use error::{JobFailure, SubmitError};
pub use job::{JobSpec, JobState, Origin, Priority, Ticket, Watcher};
pub use programs::{CameFrom, Place, ProgramError, RunStatus};
pub use toolchain::{ToolchainInfo, ToolchainStatus};
pub use verify::VerifyPolicy;

use flights::{Flights, Joined};
use programs::Programs;

/// How many executors, how long a queue.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// Jobs that run side by side, each in an executor of its own.
    pub n_executors: usize,
    /// Jobs that may wait; one more is refused. Half of them may be in the background.
    pub max_queued_jobs: usize,
    /// How often a job is tried when executors die under it.
    pub max_attempts: u32,
    /// Pieces that a program may have.
    pub max_pieces: u32,
    /// An executor that has had no job for this long ends.
    pub idle_timeout: Duration,
    /// Which artifacts are verified.
    pub verify: VerifyPolicy,
}

impl SchedulerConfig {
    /// Of the jobs that may wait, those that may be in the background.
    pub fn max_queued_background_jobs(&self) -> usize {
        flights::max_queued_in_background(self.max_queued_jobs)
    }
}

/// The scheduler. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Scheduler {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: SchedulerConfig,
    pub(crate) store: Store,
    pub(crate) flights: Flights,
    /// No further submissions.
    draining: CancellationToken,
    /// Running jobs end now.
    pub(crate) stop: CancellationToken,
    tasks: TaskTracker,
    programs: Programs,
    /// An executor that is ready and belongs to no worker yet.
    spare: Mutex<Option<Executor>>,
    toolchain: watch::Receiver<ToolchainStatus>,
}

impl Scheduler {
    /// Starts the workers. They spawn their executors when they have jobs, once `toolchain` is ready.
    pub fn start(config: SchedulerConfig, store: Store, toolchain: watch::Receiver<ToolchainStatus>) -> Self {
        let shared = Arc::new(Shared {
            flights: Flights::new(config.max_queued_jobs),
            config,
            store,
            draining: CancellationToken::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            programs: Programs::default(),
            spare: Mutex::new(None),
            toolchain,
        });
        for number in 0..shared.config.n_executors {
            shared.tasks.spawn(worker::run(Arc::clone(&shared), number));
        }
        Self { shared }
    }

    /// Takes over an executor that is ready already (the one that proved the toolchain), for the first job.
    pub fn adopt(&self, executor: Executor) {
        self.shared.spare().replace(executor);
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

    /// Submits the jobs of one request: each is answered from the store, joined to the job of its key, or queued. Either all
    /// that have to be queued fit into the queue, or none is.
    ///
    /// # Errors
    /// [`SubmitError::Draining`], [`SubmitError::QueueFull`], [`SubmitError::Store`].
    pub async fn submit(&self, specs: Vec<JobSpec>, priority: Priority) -> Result<Vec<Ticket>, SubmitError> {
        if self.shared.draining.is_cancelled() {
            return Err(SubmitError::Draining);
        }
        let mut stored: Vec<Option<Handle>> = Vec::with_capacity(specs.len());
        for spec in &specs {
            stored.push(self.find(&spec.key).await?);
        }
        let missing: Vec<JobSpec> =
            specs.into_iter().zip(&stored).filter(|(_, handle)| handle.is_none()).map(|(spec, _)| spec).collect();
        let joined = self.shared.flights.join_or_create(missing, priority)?;
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
        let ticket = |handle: Option<Handle>| match handle {
            Some(handle) => Ok(Ticket::Stored(Box::new(handle))),
            None => settled.next().expect("there is one for each that was missing"),
        };
        stored.into_iter().map(ticket).collect()
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
                    Ok(None) => {
                        self.shared.flights.enqueue(job);
                        Ok(Ticket::Running(watcher))
                    }
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
    pub fn begin_piece(&self, place: &Place, specs: &[JobSpec], entries: &[Option<Range>]) -> Result<(), ProgramError> {
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
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let created_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let Some(status) = self.shared.programs.status(place, Instant::now(), created_unix_ms) else { return Ok(None) };
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
        // No worker is left to take it.
        let spare = self.shared.take_spare();
        if let Some(spare) = spare {
            spare.shutdown().await;
        }
    }
}

impl Shared {
    fn spare(&self) -> MutexGuard<'_, Option<Executor>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take_spare(&self) -> Option<Executor> {
        self.spare().take()
    }

    /// What starts executors of the toolchain, once it is known.
    pub(crate) async fn launcher(&self) -> Result<Launcher, String> {
        let mut status = self.toolchain.clone();
        match status.wait_for(|status| !matches!(status, ToolchainStatus::Probing)).await.map(|it| it.clone()) {
            Ok(ToolchainStatus::Ready(info)) => Ok(info.launcher.clone()),
            Ok(ToolchainStatus::Unusable { reason }) => Err(reason),
            Ok(ToolchainStatus::Probing) | Err(_) => Err("the daemon is ending".into()),
        }
    }
}
