//! Executors that have no job, kept for the next one.
//!
//! An executor that has used a GPU holds a context there, hundreds of megabytes that the inference engine wants: what has been idle for
//! a while is ended. It is cheap to start another.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use piecewised_executor::{Executor, Placement};

/// The executors between two jobs.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    executor: Executor,
    placement: Placement,
    since: Instant,
}

/// What can be told of an executor without a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleExecutor {
    /// Its process.
    pub pid: u32,
    /// The GPU that it sees, by its index; `None`: it has jobs for the CPU, or sees all.
    pub gpu: Option<u32>,
    /// The frontend that its jobs are of.
    pub frontend: Option<String>,
    /// Since its last job.
    pub idle_for: Duration,
    /// What its process group was last seen to hold of the machine's memory; 0: nobody has looked yet.
    pub memory_bytes: u64,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        // Each change is one push or removal: a panic leaves a whole state behind.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Those that are here, the one that came last at the end.
    pub(crate) fn list(&self) -> Vec<IdleExecutor> {
        let one = |Idle { executor, placement, since }: &Idle| IdleExecutor {
            pid: executor.pid(),
            gpu: placement.gpu.as_ref().map(|gpu| gpu.index),
            frontend: placement.frontend.clone(),
            idle_for: since.elapsed(),
            memory_bytes: executor.memory_bytes(),
        };
        self.lock().iter().map(one).collect()
    }

    /// One that was started with this placement and is well; the latest, so that what is not needed any more grows old.
    pub(crate) fn take(&self, placement: &Placement) -> Option<Executor> {
        let mut idle = self.lock();
        // Dropping one kills what is left of it.
        idle.retain(|one| one.executor.is_usable());
        let at = idle.iter().rposition(|one| one.placement == *placement)?;
        Some(idle.remove(at).executor)
    }

    /// Keeps one that is ready for a job.
    pub(crate) fn put(&self, executor: Executor, placement: Placement) {
        if executor.is_usable() {
            self.lock().push(Idle { executor, placement, since: Instant::now() });
        }
    }

    /// Those that have been idle for as long as those with their placement may be, to be ended.
    pub(crate) fn take_idle(&self, timeout: impl Fn(&Placement) -> Duration) -> Vec<Executor> {
        let mut idle = self.lock();
        let (old, kept) = idle.drain(..).partition(|one| one.since.elapsed() >= timeout(&one.placement));
        *idle = kept;
        let old: Vec<Idle> = old;
        old.into_iter().map(|one| one.executor).collect()
    }

    /// The oldest ones beyond so many, to be ended.
    pub(crate) fn take_beyond(&self, n_kept: usize) -> Vec<Executor> {
        let mut idle = self.lock();
        let n_surplus = idle.len().saturating_sub(n_kept);
        idle.drain(..n_surplus).map(|one| one.executor).collect()
    }
}

/// Ends them, side by side.
pub(crate) async fn end(executors: Vec<Executor>) {
    let mut ending = tokio::task::JoinSet::new();
    for executor in executors {
        tracing::info!(pid = executor.pid(), "ending an idle executor");
        ending.spawn(executor.shutdown());
    }
    ending.join_all().await;
}
