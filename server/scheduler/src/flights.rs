//! Which keys are being compiled, and which jobs wait.
//!
//! A plain state machine behind one lock: no I/O, no clock but for ages that are shown. A key is in `by_key` from the
//! creation of its job until its outcome is known; a job is in `queue` from `enqueue` until a worker takes it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use piecewised_graph::{Digest, Handle};
use tokio::sync::Notify;

use crate::{
    JobFailure, SubmitError,
    job::{Job, JobSpec, Origin, Watcher},
};

#[derive(Debug)]
pub(crate) struct Flights {
    inner: Mutex<Inner>,
    changed: Notify,
    next_id: AtomicU64,
    max_queued: usize,
}

#[derive(Debug, Default)]
struct Inner {
    by_key: HashMap<Digest, (Arc<Job>, Stage)>,
    queue: VecDeque<Digest>,
    closed: bool,
}

/// How far a key's job is, as the queue sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Made; its maker still looks whether the store has it by now.
    Settling,
    /// In the queue.
    Queued,
    /// A worker has it.
    Taken,
}

impl Inner {
    /// Jobs that hold a place in the queue.
    fn n_waiting(&self) -> usize {
        self.by_key.values().filter(|(_, stage)| *stage != Stage::Taken).count()
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
    pub(crate) fn new(max_queued: usize) -> Self {
        Self { inner: Mutex::default(), changed: Notify::new(), next_id: AtomicU64::new(1), max_queued }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code under the lock can panic half-way through a change, so a poisoned lock still guards a whole state.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A watcher for each spec, all or none. Equal keys within one call share a job too.
    pub(crate) fn join_or_create(&self, specs: Vec<JobSpec>) -> Result<Vec<Joined>, SubmitError> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(SubmitError::Draining);
        }
        let new: HashSet<Digest> =
            specs.iter().map(|spec| spec.key).filter(|key| !inner.by_key.contains_key(key)).collect();
        let mut position = inner.n_waiting();
        if !new.is_empty() && position + new.len() > self.max_queued {
            return Err(SubmitError::QueueFull { n_queued: position, n_new: new.len(), limit: self.max_queued });
        }
        let join = |spec: JobSpec| {
            if let Some((job, _)) = inner.by_key.get(&spec.key) {
                let phase = job.state.borrow().phase.clone();
                return Joined::Existing(Watcher::new(job, Origin::Joined { phase, age: job.queued.elapsed() }));
            }
            let id = format!("j{}", self.next_id.fetch_add(1, Ordering::Relaxed));
            let job = Arc::new(Job::new(id, spec));
            inner.by_key.insert(job.spec.key, (Arc::clone(&job), Stage::Settling));
            position += 1;
            Joined::Created(Watcher::new(&job, Origin::Queued { position: position - 1 }))
        };
        Ok(specs.into_iter().map(join).collect())
    }

    /// Lets a created job run.
    pub(crate) fn enqueue(&self, job: &Job) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if let Some((_, stage @ Stage::Settling)) = inner.by_key.get_mut(&job.spec.key) {
            *stage = Stage::Queued;
            inner.queue.push_back(job.spec.key);
            self.changed.notify_one();
        }
    }

    /// Ends a job wherever it is, and tells its watchers. What it leaves in the store must be there by now: from here on a
    /// caller of its key looks there.
    pub(crate) fn finish(&self, job: &Job, outcome: Result<Handle, JobFailure>) {
        let mut inner = self.lock();
        if let Some((_, Stage::Queued)) = inner.by_key.remove(&job.spec.key) {
            inner.queue.retain(|key| *key != job.spec.key);
        }
        drop(inner);
        job.state.send_modify(|state| state.outcome = Some(outcome));
        self.changed.notify_waiters();
    }

    /// The next job that somebody waits for; `None`: closed and nothing is left. Jobs whose callers have all left are dropped
    /// here, under the lock under which callers join, so that nobody can join a dropped one.
    pub(crate) async fn next(&self) -> Option<Arc<Job>> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that no change between the look and the wait is missed.
            changed.as_mut().enable();
            {
                let mut inner = self.lock();
                if let Some(job) = inner.take() {
                    if !inner.queue.is_empty() {
                        self.changed.notify_one();
                    }
                    return Some(job);
                }
                if inner.closed && inner.n_waiting() == 0 {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// Takes no more jobs; those that wait are still handed out. How many jobs there are.
    pub(crate) fn close(&self) -> usize {
        let mut inner = self.lock();
        inner.closed = true;
        let n_jobs = inner.by_key.len();
        drop(inner);
        self.changed.notify_waiters();
        n_jobs
    }
}

impl Inner {
    fn take(&mut self) -> Option<Arc<Job>> {
        while let Some(key) = self.queue.pop_front() {
            let (job, stage) =
                self.by_key.get_mut(&key).expect("a queued key has its job until finish, which unqueues it");
            if job.has_watchers() {
                *stage = Stage::Taken;
                return Some(Arc::clone(job));
            }
            tracing::debug!(job = job.id, "dropped: every caller has left");
            self.by_key.remove(&key);
        }
        None
    }
}
