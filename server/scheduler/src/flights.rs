//! Which keys are being compiled, and which jobs wait.
//!
//! A plain state machine behind one lock: no I/O, no clock but for ages that are shown. A key is in `by_key` from the
//! creation of its job until its outcome is known; a job is in the queue of its priority from `enqueue` until a worker takes it.
//!
//! Interactive jobs go first, background jobs where no interactive one waits; within a priority the one that came first. A
//! background job that an interactive caller joins becomes interactive, behind those that are so already, and stays it should that
//! caller leave. Background jobs hold at most half of the queue's places, so that they never shut interactive ones out. What runs is
//! never interrupted.

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
    JobFailure, Priority, SubmitError,
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
    by_key: HashMap<Digest, Flight>,
    interactive: VecDeque<Digest>,
    background: VecDeque<Digest>,
    closed: bool,
}

#[derive(Debug)]
struct Flight {
    job: Arc<Job>,
    stage: Stage,
    priority: Priority,
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
        self.by_key.values().filter(|flight| flight.stage != Stage::Taken).count()
    }

    /// Those of them that are of this priority.
    fn n_waiting_as(&self, priority: Priority) -> usize {
        let waits = |flight: &&Flight| flight.stage != Stage::Taken && flight.priority == priority;
        self.by_key.values().filter(waits).count()
    }

    fn queue(&mut self, priority: Priority) -> &mut VecDeque<Digest> {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Background => &mut self.background,
        }
    }

    /// Whether `n_new` more jobs find a place.
    fn check_room(&self, n_new: usize, priority: Priority, max_queued: usize) -> Result<(), SubmitError> {
        let mut places = vec![(self.n_waiting(), max_queued)];
        if priority == Priority::Background {
            places.push((self.n_waiting_as(priority), max_queued_in_background(max_queued)));
        }
        match places.into_iter().find(|(n_queued, limit)| n_queued + n_new > *limit) {
            Some((n_queued, limit)) if n_new > 0 => Err(SubmitError::QueueFull { n_queued, n_new, limit }),
            _ => Ok(()),
        }
    }

    /// A caller of `priority` joins the job of `key`, which becomes interactive where the caller is.
    fn join(&mut self, key: Digest, priority: Priority) -> Option<Watcher> {
        let flight = self.by_key.get_mut(&key)?;
        let phase = flight.job.state.borrow().phase.clone();
        let watcher = Watcher::new(&flight.job, Origin::Joined { phase, age: flight.job.queued.elapsed() });
        if (flight.priority, priority) == (Priority::Background, Priority::Interactive) {
            flight.priority = Priority::Interactive;
            if flight.stage == Stage::Queued {
                self.background.retain(|waiting| *waiting != key);
                self.interactive.push_back(key);
            }
        }
        Some(watcher)
    }
}

/// The places of a queue that background jobs may hold.
pub(crate) fn max_queued_in_background(max_queued: usize) -> usize {
    max_queued / 2
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
    pub(crate) fn join_or_create(&self, specs: Vec<JobSpec>, priority: Priority) -> Result<Vec<Joined>, SubmitError> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(SubmitError::Draining);
        }
        let new: HashSet<Digest> =
            specs.iter().map(|spec| spec.key).filter(|key| !inner.by_key.contains_key(key)).collect();
        inner.check_room(new.len(), priority, self.max_queued)?;
        let join = |spec: JobSpec| {
            if let Some(watcher) = inner.join(spec.key, priority) {
                return Joined::Existing(watcher);
            }
            // Who is interactive goes before all that is in the background.
            let position = match priority {
                Priority::Interactive => inner.n_waiting_as(priority),
                Priority::Background => inner.n_waiting(),
            };
            let id = format!("j{}", self.next_id.fetch_add(1, Ordering::Relaxed));
            let job = Arc::new(Job::new(id, spec));
            inner.by_key.insert(job.spec.key, Flight { job: Arc::clone(&job), stage: Stage::Settling, priority });
            Joined::Created(Watcher::new(&job, Origin::Queued { position }))
        };
        Ok(specs.into_iter().map(join).collect())
    }

    /// Lets a created job run.
    pub(crate) fn enqueue(&self, job: &Job) {
        let mut inner = self.lock();
        if let Some(flight) = inner.by_key.get_mut(&job.spec.key)
            && flight.stage == Stage::Settling
        {
            flight.stage = Stage::Queued;
            let priority = flight.priority;
            inner.queue(priority).push_back(job.spec.key);
            self.changed.notify_one();
        }
    }

    /// Ends a job wherever it is, and tells its watchers. What it leaves in the store must be there by now: from here on a
    /// caller of its key looks there.
    pub(crate) fn finish(&self, job: &Job, outcome: Result<Handle, JobFailure>) {
        let mut inner = self.lock();
        if let Some(Flight { stage: Stage::Queued, priority, .. }) = inner.by_key.remove(&job.spec.key) {
            inner.queue(priority).retain(|key| *key != job.spec.key);
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
                    if !(inner.interactive.is_empty() && inner.background.is_empty()) {
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
        while let Some(key) = self.interactive.pop_front().or_else(|| self.background.pop_front()) {
            let flight = self.by_key.get_mut(&key).expect("a queued key has its job until finish, which unqueues it");
            if flight.job.has_watchers() {
                flight.stage = Stage::Taken;
                return Some(Arc::clone(&flight.job));
            }
            tracing::debug!(job = flight.job.id, "dropped: every caller has left");
            self.by_key.remove(&key);
        }
        None
    }
}
