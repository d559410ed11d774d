//! What a job did and when, phase by phase: for the live page and for traces. In memory, and bounded for each job.
//!
//! Autotuning on a GPU changes between phases hundreds of times. What is kept are the longest steps: a short one that there is no room for becomes part
//! of the one before it, so that the steps of a job always cover its whole time.

use std::time::Duration;

/// Steps that are kept of a job.
const MAX_STEPS: usize = 64;

/// A stretch of a job, up to where the next one begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// "queued", "launch" (an executor is looked for, or forked), "started", a phase of the executor, "lease" or "store".
    pub phase: String,
    /// When it began, from when the job was queued.
    pub at: Duration,
    /// Of which try it is; 0: before the first.
    pub attempt: u32,
}

/// The steps of one job, in order; the first begins with the job.
#[derive(Debug, Clone)]
pub(crate) struct Steps(Vec<Step>);

impl Steps {
    pub(crate) fn new() -> Self {
        Self(vec![Step { phase: "queued".into(), at: Duration::ZERO, attempt: 0 }])
    }

    /// Begins another step.
    pub(crate) fn push(&mut self, phase: &str, at: Duration, attempt: u32) {
        if self.0.last().is_some_and(|last| last.phase == phase && last.attempt == attempt) {
            return;
        }
        if self.0.len() == MAX_STEPS {
            self.merge_shortest();
        }
        self.0.push(Step { phase: phase.to_owned(), at, attempt });
    }

    pub(crate) fn list(&self) -> Vec<Step> {
        self.0.clone()
    }

    /// Lets the shortest step that has ended, but for the first, be part of the one before it.
    fn merge_shortest(&mut self) {
        let length = |at: usize| self.0[at + 1].at.saturating_sub(self.0[at].at);
        let Some(shortest) = (1..self.0.len().saturating_sub(1)).min_by_key(|&at| length(at)) else { return };
        self.0.remove(shortest);
        // Two of one kind may have become neighbours by that.
        self.0.dedup_by(|next, before| next.phase == before.phase && next.attempt == before.attempt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn steps_follow_each_other() {
        let mut steps = Steps::new();
        for (phase, at, attempt) in [("launch", 1, 1), ("compile", 2, 1), ("compile", 3, 1), ("launch", 4, 2)] {
            steps.push(phase, s(at), attempt);
        }
        let found: Vec<_> =
            steps.list().into_iter().map(|step| (step.phase, step.at.as_secs(), step.attempt)).collect();
        let expected = [("queued", 0, 0), ("launch", 1, 1), ("compile", 2, 1), ("launch", 4, 2)];
        assert_eq!(found, expected.map(|(phase, at, attempt)| (phase.to_owned(), at, attempt)));
    }

    #[test]
    fn short_steps_give_way_to_long_ones() {
        let mut steps = Steps::new();
        steps.push("rebuild", s(10), 1);
        let mut now = Duration::from_secs(20);
        for _ in 0..1000 {
            steps.push("tune", now, 1);
            now += Duration::from_millis(3);
            steps.push("lease", now, 1);
            now += Duration::from_millis(1);
        }
        steps.push("pack", now, 1);
        steps.push("store", now + s(5), 1);
        let list = steps.list();
        assert!(list.len() <= MAX_STEPS, "{}", list.len());
        let at = |phase: &str| list.iter().find(|step| step.phase == phase).map(|step| step.at);
        assert_eq!((at("queued"), at("rebuild"), at("tune")), (Some(s(0)), Some(s(10)), Some(s(20))));
        assert_eq!((at("pack"), at("store")), (Some(now), Some(now + s(5))));
        assert!(list.windows(2).all(|two| two[0].at <= two[1].at && two[0].phase != two[1].phase));
    }
}
