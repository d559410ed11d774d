//! The jobs that ended last, with what each did and when: for the live page.
//!
//! In memory, since the start, and bounded. Failures have a place of their own, so that they can still be read when many jobs ended well since.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use piecewised_graph::{Handle, VerificationOutcome};

use crate::{
    JobFailure,
    job::{Job, JobDescription},
};

const MAX_JOBS: usize = 256;
const MAX_FAILURES: usize = 64;
/// Of a failure's message, which the log has whole.
const MAX_MESSAGE_BYTES: usize = 4096;

/// A job that has ended.
#[derive(Debug, Clone)]
pub struct EndedJob {
    /// What it was.
    pub job: JobDescription,
    /// Tries; 0: none was begun.
    pub attempts: u32,
    /// From when it was asked for first to its end.
    pub took: Duration,
    /// How it ended.
    pub outcome: Result<Compiled, JobFailure>,
}

/// What is kept of a handle.
#[derive(Debug, Clone, PartialEq)]
pub struct Compiled {
    /// Of the artifact.
    pub size_bytes: u64,
    /// Wall seconds in the executor.
    pub compile_s: f64,
    /// How the artifact was checked.
    pub verified: VerificationOutcome,
}

/// The jobs that ended last.
#[derive(Debug, Default)]
pub struct History {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    jobs: VecDeque<Arc<EndedJob>>,
    failures: VecDeque<Arc<EndedJob>>,
}

impl History {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each list is whole after each call: a panic leaves at worst a job in one of them.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, job: &Job, outcome: &Result<Handle, JobFailure>) {
        let ended = Arc::new(EndedJob::of(job, outcome));
        let mut inner = self.lock();
        if ended.outcome.is_err() {
            push(&mut inner.failures, Arc::clone(&ended), MAX_FAILURES);
        }
        push(&mut inner.jobs, ended, MAX_JOBS);
    }

    /// Up to `limit` jobs, the latest first.
    pub fn jobs(&self, limit: usize) -> Vec<Arc<EndedJob>> {
        self.lock().jobs.iter().take(limit).cloned().collect()
    }

    /// Up to `limit` jobs that failed, the latest first.
    pub fn failures(&self, limit: usize) -> Vec<Arc<EndedJob>> {
        self.lock().failures.iter().take(limit).cloned().collect()
    }
}

/// The beginning of a text, at most so many bytes.
pub fn head(text: &str, max_bytes: usize) -> &str {
    let end = (0..=max_bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

fn push(list: &mut VecDeque<Arc<EndedJob>>, job: Arc<EndedJob>, most: usize) {
    list.truncate(most - 1);
    list.push_front(job);
}

impl EndedJob {
    fn of(job: &Job, outcome: &Result<Handle, JobFailure>) -> Self {
        let compiled = |handle: &Handle| Compiled {
            size_bytes: handle.size_bytes,
            compile_s: handle.timings.total_s,
            verified: handle.verification.outcome,
        };
        let shortened = |failure: &JobFailure| JobFailure {
            message: head(&failure.message, MAX_MESSAGE_BYTES).to_owned(),
            ..failure.clone()
        };
        Self {
            job: JobDescription::of(job),
            attempts: job.state.borrow().attempt,
            took: job.queued.elapsed(),
            outcome: outcome.as_ref().map(compiled).map_err(shortened),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{queue::JobId, tests::spec};

    fn end(history: &History, number: u64, outcome: &Result<Handle, JobFailure>) {
        history.note(&Job::new(JobId(number), spec(1)), outcome);
    }

    #[test]
    fn failures_stay_when_many_jobs_end_well_and_both_are_bounded() {
        let history = History::default();
        let long = Err(JobFailure::new("COMPILE_ERROR", "é".repeat(MAX_MESSAGE_BYTES), false));
        end(&history, 0, &long);
        for number in 1..2 * MAX_JOBS as u64 {
            end(&history, number, &Ok(crate::tests::handle(1)));
        }
        assert_eq!(history.jobs(usize::MAX).len(), MAX_JOBS);
        assert_eq!(history.jobs(1)[0].job.id, format!("j{}", 2 * MAX_JOBS - 1));
        let failures = history.failures(usize::MAX);
        assert_eq!((failures.len(), failures[0].job.id.as_str()), (1, "j0"));
        assert_eq!(failures[0].outcome.as_ref().unwrap_err().message.len(), MAX_MESSAGE_BYTES);
        for number in 0..2 * MAX_FAILURES as u64 {
            end(&history, number, &long);
        }
        assert_eq!(history.failures(usize::MAX).len(), MAX_FAILURES);
        assert_eq!(history.failures(3).len(), 3);
    }
}
