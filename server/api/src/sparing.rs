//! Lines of the log that somebody outside can cause: so many a second, and how many there were beside.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

const SECOND: Duration = Duration::from_secs(1);

/// Counts the lines of one kind.
#[derive(Debug)]
pub(crate) struct Sparing {
    per_second: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the second began.
    since: Option<Instant>,
    /// In it.
    n_said: u32,
    /// Since the last line.
    n_unsaid: u64,
}

impl Sparing {
    pub(crate) fn new(per_second: u32) -> Self {
        Self { per_second, state: Mutex::default() }
    }

    /// Whether a line may be said now, and how many were not since the last one.
    pub(crate) fn say(&self) -> Option<u64> {
        self.say_at(Instant::now())
    }

    fn say_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none_or(|since| now.saturating_duration_since(since) >= SECOND) {
            (state.since, state.n_said) = (Some(now), 0);
        }
        if state.n_said == self.per_second {
            state.n_unsaid += 1;
            return None;
        }
        state.n_said += 1;
        Some(std::mem::take(&mut state.n_unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_counted_and_told_with_the_next() {
        let sparing = Sparing::new(2);
        let start = Instant::now();
        let at = |ms| sparing.say_at(start + Duration::from_millis(ms));
        assert_eq!([at(0), at(10), at(20), at(999)], [Some(0), Some(0), None, None]);
        assert_eq!([at(1000), at(1001), at(1999)], [Some(2), Some(0), None]);
        assert_eq!(at(5000), Some(1));
    }
}
