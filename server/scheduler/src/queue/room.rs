//! How much may wait, in all and for each peer.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use piecewised_graph::Digest;

use super::{Ask, Job, Queue};
use crate::{Peer, Priority, SubmitError};

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) max_jobs: usize,
    pub(crate) max_jobs_per_peer: usize,
    /// Of the graphs of all jobs that a peer waits for, each graph once.
    pub(crate) max_bytes_per_peer: usize,
}

impl Room {
    /// Of the places, those for jobs that nobody waits for interactively.
    pub(crate) fn max_patient_jobs(&self) -> usize {
        self.max_jobs / 2
    }
}

impl Queue {
    /// Whether what is asked for finds a place; joining a job needs none but the peer's.
    pub(super) fn check_room(&self, peer: &Peer, priority: Priority, asks: &[Ask]) -> Result<(), SubmitError> {
        let new: HashSet<Digest> =
            asks.iter().map(|ask| ask.key).filter(|key| !self.by_key.contains_key(key)).collect();
        let n_new = new.len();
        // How much later, the caller of this fills in: here is no clock.
        let later = |n_new: usize, limit: usize| (n_new <= limit).then_some(Duration::ZERO);
        let over = |n_queued: usize, limit: usize| n_new > 0 && n_queued + n_new > limit;
        let n_queued = self.n_waiting();
        if over(n_queued, self.room.max_jobs) {
            let limit = self.room.max_jobs;
            return Err(SubmitError::QueueFull { n_queued, n_new, limit, retry_after: later(n_new, limit) });
        }
        let n_patient = self.waiting().filter(|job| job.priority() != Priority::Interactive).count();
        if priority != Priority::Interactive && over(n_patient, self.room.max_patient_jobs()) {
            let limit = self.room.max_patient_jobs();
            return Err(SubmitError::QueueFull { n_queued: n_patient, n_new, limit, retry_after: later(n_new, limit) });
        }

        let is_theirs = |job: &&Job| job.waiters.iter().any(|waiter| waiter.peer == *peer);
        let theirs: HashSet<Digest> = self.waiting().filter(is_theirs).map(|job| job.ask.key).collect();
        let is_running = |key: &Digest| self.by_key.get(key).is_some_and(|id| !self.jobs[id].waits());
        let wanted: HashSet<Digest> =
            asks.iter().map(|ask| ask.key).filter(|key| !theirs.contains(key) && !is_running(key)).collect();
        let limit = self.room.max_jobs_per_peer;
        if !wanted.is_empty() && theirs.len() + wanted.len() > limit {
            let (n_queued, n_new) = (theirs.len(), wanted.len());
            return Err(SubmitError::PeerQueueFull { n_queued, n_new, limit, retry_after: later(n_new, limit) });
        }

        let held = self.jobs.values().filter(is_theirs).map(|job| (job.ask.graph, job.ask.graph_bytes));
        let held: HashMap<Digest, usize> = held.collect();
        let added = asks.iter().map(|ask| (ask.graph, ask.graph_bytes)).filter(|(graph, _)| !held.contains_key(graph));
        let added: HashMap<Digest, usize> = added.collect();
        let (bytes, new_bytes): (usize, usize) = (held.values().sum(), added.values().sum());
        let limit = self.room.max_bytes_per_peer;
        if new_bytes > 0 && bytes + new_bytes > limit {
            return Err(SubmitError::PeerBytesFull { bytes, new_bytes, limit, retry_after: later(new_bytes, limit) });
        }
        Ok(())
    }
}
