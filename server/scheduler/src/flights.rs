//! The queue behind its lock: who waits is woken, who leaves is noted, and jobs are the ones that callers watch.
//!
//! [`crate::queue`] decides; here is what it must not know: tasks, clocks, tokens.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use piecewised_graph::Handle;
use tokio::sync::Notify;

use crate::{
    Abandoned, JobFailure, Peer, Priority, SubmitError,
    job::{Job, JobSpec, Origin, Watcher, ask},
    queue::{Asked, JobId, Left, Queue, WaiterId},
    slots::Grant,
};

/// What a job is taken to last before any was measured.
const UNMEASURED: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Flights {
    inner: Mutex<Inner>,
    changed: Notify,
    abandoned: Abandoned,
}

#[derive(Debug)]
struct Inner {
    queue: Queue,
    jobs: HashMap<JobId, Arc<Job>>,
    /// Mean duration of jobs, the latest counting most.
    pace: Duration,
    n_executors: u32,
}

impl Inner {
    /// When there may be room again: a guess from how long jobs took lately.
    fn retry_after(&self) -> Duration {
        (self.pace / self.n_executors).clamp(Duration::from_secs(1), Duration::from_secs(60))
    }
}

/// What a spec came to.
pub(crate) enum Joined {
    /// There was a job for its key.
    Existing(Watcher),
    /// A job was made; the caller must `enqueue` or `finish` it.
    Created(Watcher),
}

impl Flights {
    pub(crate) fn new(queue: Queue, n_executors: usize, abandoned: Abandoned) -> Self {
        let n_executors = u32::try_from(n_executors).unwrap_or(u32::MAX).max(1);
        let inner = Inner { queue, jobs: HashMap::new(), pace: UNMEASURED, n_executors };
        Self { inner: Mutex::new(inner), changed: Notify::new(), abandoned }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code under the lock can panic half-way through a change, so a poisoned lock still guards a whole state.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_gpus(&self, gpus: impl IntoIterator<Item = (String, u64)>) {
        self.lock().queue.set_gpus(gpus);
    }

    /// A watcher for each spec, all or none.
    pub(crate) fn join_or_create(
        self: &Arc<Self>,
        peer: &Peer,
        priority: Priority,
        specs: Vec<Arc<JobSpec>>,
    ) -> Result<Vec<Joined>, SubmitError> {
        let mut inner = self.lock();
        let asked = inner.queue.submit(peer, priority, specs.iter().map(|spec| ask(spec)).collect());
        let asked = asked.map_err(|error| error.retried_after(inner.retry_after()))?;
        let mut join = |(spec, asked): (Arc<JobSpec>, Asked)| {
            if asked.is_new {
                let job = Arc::new(Job::new(asked.job, spec));
                inner.jobs.insert(asked.job, Arc::clone(&job));
                let origin = Origin::Queued { position: asked.position };
                return Joined::Created(Watcher::new(self, &job, asked.waiter, origin));
            }
            let job = inner.jobs.get(&asked.job).expect("each job of the queue is here");
            job.span.joined();
            let phase = job.state.borrow().phase.clone();
            let origin = Origin::Joined { phase, age: job.queued.elapsed() };
            Joined::Existing(Watcher::new(self, job, asked.waiter, origin))
        };
        Ok(specs.into_iter().zip(asked).map(&mut join).collect())
    }

    /// Lets a created job run.
    pub(crate) fn enqueue(&self, job: &Job) {
        let mut inner = self.lock();
        if !inner.queue.enqueue(job.number) {
            inner.jobs.remove(&job.number);
        }
        drop(inner);
        // All of them: the queue may be over now, which is for every worker to know.
        self.changed.notify_waiters();
    }

    /// Ends a job wherever it is, and tells its watchers. What it leaves in the store must be there by now: from here on a
    /// caller of its key looks there.
    pub(crate) fn finish(&self, job: &Job, outcome: Result<Handle, JobFailure>) {
        let mut inner = self.lock();
        inner.queue.finish(job.number);
        inner.jobs.remove(&job.number);
        if let Some(started) = job.state.borrow().started {
            inner.pace = (inner.pace * 3 + started.elapsed()) / 4;
        }
        drop(inner);
        job.state.send_modify(|state| state.outcome = Some(outcome));
        self.changed.notify_waiters();
    }

    /// A watcher is gone.
    pub(crate) fn leave(&self, job: &Job, waiter: WaiterId) {
        let mut inner = self.lock();
        match inner.queue.leave(job.number, waiter) {
            Left::Nothing => return,
            Left::Dropped => {
                tracing::debug!(job = job.id, "dropped: every caller has left");
                inner.jobs.remove(&job.number);
            }
            Left::Abandoned if self.abandoned == Abandoned::End => {
                tracing::info!(job = job.id, "ending a compile that nobody waits for any more");
                // Before anybody can join it, and be told that it was cancelled.
                inner.queue.disown(job.number);
                job.end.cancel();
            }
            Left::Abandoned => tracing::debug!(job = job.id, "every caller has left; it is finished all the same"),
        }
        drop(inner);
        // The queue may be over now.
        self.changed.notify_waiters();
    }

    /// The next job that somebody waits for and that can run now; `None`: closed, and nothing is left.
    pub(crate) async fn next(&self) -> Option<(Arc<Job>, Grant)> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that no change between the look and the wait is missed.
            changed.as_mut().enable();
            {
                let mut inner = self.lock();
                if let Some((id, grant)) = inner.queue.take() {
                    let job = Arc::clone(inner.jobs.get(&id).expect("each job of the queue is here"));
                    if inner.queue.n_waiting() > 0 {
                        self.changed.notify_one();
                    }
                    return Some((job, grant));
                }
                if inner.queue.is_over() {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// Another GPU for a job whose own has failed it, where there is one; and the one that failed, where it is quarantined by this.
    pub(crate) fn gpu_failed(&self, job: &Job) -> Option<(Grant, Option<usize>)> {
        self.lock().queue.gpu_failed(job.number)
    }

    /// A job has come through. Gives its GPU where that ends a quarantine.
    pub(crate) fn gpu_worked(&self, job: &Job) -> Option<usize> {
        self.lock().queue.gpu_worked(job.number)
    }

    /// Notes what a job took at most, for those like it.
    pub(crate) fn measured(&self, job: &Job, peak_memory_bytes: u64) {
        self.lock().queue.measured(job.number, peak_memory_bytes);
    }

    /// All jobs, those that run first, each by age.
    pub(crate) fn jobs(&self) -> Vec<Arc<Job>> {
        let mut jobs: Vec<_> = self.lock().jobs.values().cloned().collect();
        jobs.sort_by_key(|job| (job.state.borrow().started.is_none(), job.number));
        jobs
    }

    /// Jobs that wait, and jobs that run.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.queue.n_waiting(), inner.queue.n_running())
    }

    /// Takes no more jobs; those that wait are still handed out. How many jobs there are.
    pub(crate) fn close(&self) -> usize {
        let n_jobs = self.lock().queue.close();
        self.changed.notify_waiters();
        n_jobs
    }
}
