//! Which jobs there are, who waits for them, and which is next.
//!
//! A plain state machine: no lock, no clock, no tasks, so that its orders can be enumerated ([`crate::flights`] has lock and wake-ups).
//!
//! * A key has at most one job, from its making until its outcome is known.
//! * Priority: a job is as urgent as the most urgent of those who wait for it *now*.
//! * Fairness: among equally urgent jobs, the one whose peer has the fewest running, then the peer that was served longest ago, then the
//!   one that came first. A job that several peers wait for goes when the first of them has its turn. So a peer with a thousand jobs
//!   delays one with a single job by one job, and the ranges of one model go to all executors where nobody else asks.
//! * Room: places in the queue, of which jobs that nobody waits for interactively get half; places and bytes of graphs for each peer.
//! * A job that every caller has left is dropped where it waits; one that runs goes on.
//! * The next job waits for memory rather than be overtaken for ever by smaller ones; one that waits for its kind of GPU is overtaken by
//!   those that need another.

mod room;

use std::collections::{BTreeMap, HashMap, HashSet};

use piecewised_graph::Digest;

use crate::{
    Peer, Priority, SubmitError,
    slots::{Fit, Grant, Need, Slots},
};

pub(crate) use room::Room;

/// Names a job for as long as the daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct JobId(pub(crate) u64);

/// Names one caller's interest in one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct WaiterId(u64);

/// What a caller wants compiled, as far as the queue has to know it.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) key: Digest,
    pub(crate) need: Need,
    pub(crate) graph: Digest,
    pub(crate) graph_bytes: usize,
}

/// What an [`Ask`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) job: JobId,
    pub(crate) waiter: WaiterId,
    /// The job was made for it, and must be enqueued or finished by its maker.
    pub(crate) is_new: bool,
    /// Waiting jobs before it, as things are now.
    pub(crate) position: usize,
}

/// What a caller left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// Others wait for the job, or its maker still has it in hand, or it is over.
    Nothing,
    /// It waited, and is gone.
    Dropped,
    /// It runs, and nobody waits for it.
    Abandoned,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stage {
    /// Made; its maker still looks whether the store has it by now.
    Settling,
    Queued,
    Running {
        grant: Grant,
        /// Whose turn it was.
        peer: Peer,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Waiter {
    id: WaiterId,
    peer: Peer,
    priority: Priority,
}

#[derive(Debug, Clone)]
struct Job {
    ask: Ask,
    stage: Stage,
    waiters: Vec<Waiter>,
}

impl Job {
    fn priority(&self) -> Priority {
        self.waiters.iter().map(|waiter| waiter.priority).min().unwrap_or(Priority::Background)
    }

    fn waits(&self) -> bool {
        !matches!(self.stage, Stage::Running { .. })
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Account {
    n_waiters: usize,
    n_running: usize,
    /// When it last got an executor, or else when it came: a newcomer does not overtake those who have waited since before.
    served: u64,
}

/// The queue.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    room: Room,
    slots: Slots,
    jobs: BTreeMap<JobId, Job>,
    by_key: HashMap<Digest, JobId>,
    peers: BTreeMap<Peer, Account>,
    /// Numbers for jobs, waiters and turns.
    next: u64,
    is_closed: bool,
}

impl Queue {
    pub(crate) fn new(room: Room, slots: Slots) -> Self {
        Self {
            room,
            slots,
            jobs: BTreeMap::new(),
            by_key: HashMap::new(),
            peers: BTreeMap::new(),
            next: 1,
            is_closed: false,
        }
    }

    pub(crate) fn set_gpus(&mut self, gpus: impl IntoIterator<Item = (String, u64)>) {
        self.slots.set_gpus(gpus);
    }

    /// Joins or makes a job for each ask: all or none. Equal keys within one call share a job too.
    ///
    /// # Errors
    /// [`SubmitError::Draining`], [`SubmitError::QueueFull`], [`SubmitError::PeerQueueFull`], [`SubmitError::PeerBytesFull`].
    pub(crate) fn submit(
        &mut self,
        peer: &Peer,
        priority: Priority,
        asks: Vec<Ask>,
    ) -> Result<Vec<Asked>, SubmitError> {
        if self.is_closed {
            return Err(SubmitError::Draining);
        }
        self.check_room(peer, priority, &asks)?;
        let asked: Vec<_> = asks.into_iter().map(|ask| self.join_or_make(peer, priority, ask)).collect();
        let order = self.order();
        let position = |job| order.iter().position(|id| *id == job).unwrap_or_default();
        Ok(asked.into_iter().map(|asked| Asked { position: position(asked.job), ..asked }).collect())
    }

    fn join_or_make(&mut self, peer: &Peer, priority: Priority, ask: Ask) -> Asked {
        let waiter = WaiterId(self.number());
        let existing = self.by_key.get(&ask.key).copied();
        let job = existing.unwrap_or_else(|| {
            let id = JobId(self.number());
            self.by_key.insert(ask.key, id);
            self.jobs.insert(id, Job { ask, stage: Stage::Settling, waiters: Vec::new() });
            id
        });
        let came = self.number();
        let account = self.peers.entry(peer.clone()).or_insert(Account { served: came, ..Account::default() });
        account.n_waiters += 1;
        let job_entry = self.jobs.get_mut(&job).expect("by_key names jobs that there are");
        job_entry.waiters.push(Waiter { id: waiter, peer: peer.clone(), priority });
        Asked { job, waiter, is_new: existing.is_none(), position: 0 }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Lets a job that was made run; false: everybody has left it meanwhile, and it is gone.
    pub(crate) fn enqueue(&mut self, id: JobId) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else { return false };
        if job.stage != Stage::Settling {
            return true;
        }
        job.stage = Stage::Queued;
        let is_wanted = !job.waiters.is_empty();
        if !is_wanted {
            self.remove(id);
        }
        is_wanted
    }

    /// The next job, with what it may use; `None`: nothing waits that could run now.
    pub(crate) fn take(&mut self) -> Option<(JobId, Grant)> {
        for id in self.order() {
            let job = &self.jobs[&id];
            if job.stage != Stage::Queued {
                continue;
            }
            let grant = match self.slots.fit(&job.ask.need) {
                Fit::Fits(grant) => grant,
                Fit::NoGpu => continue,
                Fit::NoExecutor | Fit::NoMemory => return None,
            };
            let turn = self.number();
            let job = self.jobs.get_mut(&id).expect("it was there above");
            // The same choice as in `order`, and a queued job has waiters.
            let peers = job.waiters.iter().map(|waiter| waiter.peer.clone());
            let accounts = &self.peers;
            let peer =
                peers.min_by_key(|peer| accounts.get(peer).map(|account| (account.n_running, account.served)))?;
            job.stage = Stage::Running { grant, peer: peer.clone() };
            self.slots.hold(grant);
            if let Some(account) = self.peers.get_mut(&peer) {
                account.n_running += 1;
                account.served = turn;
            }
            return Some((id, grant));
        }
        None
    }

    /// Notes what a job took at most, for those like it.
    pub(crate) fn measured(&mut self, id: JobId, peak_memory_bytes: u64) {
        if let Some(job) = self.jobs.get(&id) {
            self.slots.measured(&job.ask.need, peak_memory_bytes);
        }
    }

    /// Ends a job wherever it is. From here on a caller of its key looks into the store, or makes another one.
    pub(crate) fn finish(&mut self, id: JobId) {
        self.remove(id);
    }

    /// Another GPU for a running job whose own has failed it, where there is one; and the one that failed, where it is quarantined by this.
    pub(crate) fn gpu_failed(&mut self, id: JobId) -> Option<(Grant, Option<usize>)> {
        let job = self.jobs.get_mut(&id)?;
        let Stage::Running { grant, .. } = &mut job.stage else { return None };
        let quarantined = self.slots.gpu_failed(&job.ask.need, grant);
        Some((*grant, quarantined))
    }

    /// A running job has come through. Gives its GPU where that ends a quarantine.
    pub(crate) fn gpu_worked(&mut self, id: JobId) -> Option<usize> {
        let Stage::Running { grant, .. } = self.jobs.get(&id)?.stage else { return None };
        self.slots.gpu_worked(grant)
    }

    /// One who waits no longer.
    pub(crate) fn leave(&mut self, id: JobId, waiter: WaiterId) -> Left {
        let Some(job) = self.jobs.get_mut(&id) else { return Left::Nothing };
        let Some(at) = job.waiters.iter().position(|one| one.id == waiter) else { return Left::Nothing };
        let peer = job.waiters.remove(at).peer;
        let is_last = job.waiters.is_empty();
        let stage = job.stage.clone();
        self.settle_account(&peer, |account| account.n_waiters -= 1);
        match (is_last, stage) {
            (true, Stage::Queued) => {
                self.remove(id);
                Left::Dropped
            }
            (true, Stage::Running { .. }) => Left::Abandoned,
            _ => Left::Nothing,
        }
    }

    /// Takes a running job's key away from it: who asks for that from now on gets a job of his own. It keeps what it holds until it is
    /// finished.
    pub(crate) fn disown(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get(&id)
            && self.by_key.get(&job.ask.key) == Some(&id)
        {
            self.by_key.remove(&job.ask.key);
        }
    }

    fn remove(&mut self, id: JobId) {
        self.disown(id);
        let Some(job) = self.jobs.remove(&id) else { return };
        for waiter in job.waiters {
            self.settle_account(&waiter.peer, |account| account.n_waiters -= 1);
        }
        if let Stage::Running { grant, peer } = job.stage {
            self.slots.release(grant);
            self.settle_account(&peer, |account| account.n_running -= 1);
        }
    }

    /// Changes a peer's account, and forgets a peer that has nothing here any more.
    fn settle_account(&mut self, peer: &Peer, change: impl FnOnce(&mut Account)) {
        if let Some(account) = self.peers.get_mut(peer) {
            change(account);
            if (account.n_waiters, account.n_running) == (0, 0) {
                self.peers.remove(peer);
            }
        }
    }

    /// Takes no more jobs; those that wait are still handed out. How many jobs there are.
    pub(crate) fn close(&mut self) -> usize {
        self.is_closed = true;
        self.jobs.len()
    }

    /// Whether no job will ever be handed out again.
    pub(crate) fn is_over(&self) -> bool {
        self.is_closed && self.n_waiting() == 0
    }

    fn waiting(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values().filter(|job| job.waits())
    }

    /// Jobs that hold a place in the queue.
    pub(crate) fn n_waiting(&self) -> usize {
        self.waiting().count()
    }

    /// Jobs that run.
    pub(crate) fn n_running(&self) -> usize {
        self.slots.n_running()
    }

    /// The waiting jobs in the order in which they would be served if nothing else came.
    ///
    /// A peer's n-th job comes after as many of each other peer's as those are behind it by now: that is what taking turns comes to.
    fn order(&self) -> Vec<JobId> {
        let mut n_before: HashMap<(Priority, &Peer), usize> = HashMap::new();
        let mut ranked = Vec::new();
        for (id, job) in self.jobs.iter().filter(|(_, job)| job.waits()) {
            let priority = job.priority();
            let mut rank = (usize::MAX, u64::MAX);
            let mut counted: HashSet<&Peer> = HashSet::new();
            for waiter in &job.waiters {
                if !counted.insert(&waiter.peer) {
                    continue;
                }
                let account = self.peers.get(&waiter.peer);
                let (n_running, served) = account.map_or((0, 0), |account| (account.n_running, account.served));
                let n_before = n_before.entry((priority, &waiter.peer)).or_default();
                rank = rank.min((n_running + *n_before, served));
                *n_before += 1;
            }
            ranked.push((priority, rank, *id));
        }
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, _, id)| id).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
