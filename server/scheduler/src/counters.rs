//! What workers did since the start, in numbers: for metrics.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use piecewised_graph::{Handle, VerificationOutcome};

use crate::JobFailure;

/// Upper bounds, in seconds, of the classes that compiles are counted in: a cold CPU compile takes tens, a tuned one on a GPU minutes.
pub const DURATION_BOUNDS_S: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0];

/// Phases that an executor may name; what it calls otherwise is counted as [`OTHER`], so that there are never more.
const PHASES: [&str; 7] = ["rebuild", "compile", "settle", "prove", "pack", "tune", "verify"];

/// What has no name of its own.
pub const OTHER: &str = "other";

/// Sums since the start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    /// Jobs that ended well.
    pub n_compiled: u64,
    /// Jobs that did not, by `Failed.reason`.
    pub n_failed: BTreeMap<String, u64>,
    /// Tries beyond the first, after an executor was lost.
    pub n_retries: u64,
    /// Of the jobs that ended well: how many took no longer than each of [`DURATION_BOUNDS_S`] and longer than the one before; the last, all others.
    pub durations: [u64; DURATION_BOUNDS_S.len() + 1],
    /// Of the same: wall seconds in executors.
    pub compile_s: f64,
    /// Of the same: CPU seconds.
    pub cpu_s: f64,
    /// Of the same: wall seconds by phase.
    pub phase_s: BTreeMap<&'static str, f64>,
    /// Of the same: how each was verified.
    pub verified: BTreeMap<&'static str, u64>,
}

/// Counts what workers do.
#[derive(Debug, Default)]
pub struct Counters {
    counts: Mutex<Counts>,
}

impl Counters {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Sums of numbers: a panic leaves at worst one of them behind the others.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sums as they are now.
    pub fn counts(&self) -> Counts {
        self.lock().clone()
    }

    pub(crate) fn retried(&self) {
        self.lock().n_retries += 1;
    }

    pub(crate) fn ended(&self, outcome: &Result<Handle, JobFailure>) {
        let mut counts = self.lock();
        match outcome {
            Ok(handle) => counts.compiled(handle),
            Err(failure) => *counts.n_failed.entry(failure.reason.clone()).or_default() += 1,
        }
    }
}

impl Counts {
    fn compiled(&mut self, handle: &Handle) {
        let timings = &handle.timings;
        let class = DURATION_BOUNDS_S.iter().position(|bound| timings.total_s <= *bound);
        self.n_compiled += 1;
        self.durations[class.unwrap_or(DURATION_BOUNDS_S.len())] += 1;
        self.compile_s += timings.total_s;
        self.cpu_s += timings.cpu_s;
        for timing in &timings.phases {
            let phase = PHASES.into_iter().find(|phase| *phase == timing.phase).unwrap_or(OTHER);
            *self.phase_s.entry(phase).or_default() += timing.seconds;
        }
        let verified = match handle.verification.outcome {
            VerificationOutcome::NotDone => "not_done",
            VerificationOutcome::Passed => "passed",
            VerificationOutcome::NotComparable => "not_comparable",
        };
        *self.verified.entry(verified).or_default() += 1;
    }
}
