//! How many executors, how long a queue.

use std::time::Duration;

use crate::{Abandoned, VerifyPolicy, queue::Room};

/// The operator's choices.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// Jobs that run side by side, each in an executor of its own.
    pub n_executors: usize,
    /// Memory that executors may take together, in bytes. A job starts when what jobs like it took so far is free of that; one alone always
    /// starts, and is ended where it takes more.
    pub max_executor_memory_bytes: u64,
    /// Jobs that one GPU takes at a time; `None`: as many as its memory allows. Only one of them times kernels.
    pub max_jobs_per_gpu: Option<usize>,
    /// Jobs that may wait; one more is refused. Half of them may be jobs that nobody waits for interactively.
    pub max_queued_jobs: usize,
    /// Jobs that may wait for one peer.
    pub max_queued_jobs_per_peer: usize,
    /// Bytes of the graphs that one peer may wait for, each graph once.
    pub max_queued_bytes_per_peer: usize,
    /// How often a job is tried when executors die under it.
    pub max_attempts: u32,
    /// One try of a job, without what it waits for leases.
    pub job_deadline: Duration,
    /// What becomes of a running job when its last caller leaves.
    pub abandoned: Abandoned,
    /// Pieces that a program may have.
    pub max_pieces: u32,
    /// An executor that has had no job for this long ends.
    pub idle_timeout: Duration,
    /// The same for one that has a GPU, whose memory it holds some of.
    pub gpu_idle_timeout: Duration,
    /// Which artifacts are verified.
    pub verify: VerifyPolicy,
}

impl SchedulerConfig {
    pub(crate) fn room(&self) -> Room {
        Room {
            max_jobs: self.max_queued_jobs,
            max_jobs_per_peer: self.max_queued_jobs_per_peer,
            max_bytes_per_peer: self.max_queued_bytes_per_peer,
        }
    }

    /// Of the jobs that may wait, those that may be jobs that nobody waits for interactively.
    pub fn max_queued_background_jobs(&self) -> usize {
        self.room().max_patient_jobs()
    }
}
