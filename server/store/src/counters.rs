//! Lifetime counters: in memory, written to the index now and then.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use std::time::{Duration, Instant};

/// Least time between two writes.
const SAVE_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) n_hits: AtomicU64,
    pub(crate) n_misses: AtomicU64,
    pub(crate) n_puts: AtomicU64,
    pub(crate) n_damaged_dropped: AtomicU64,
    saved_at: Mutex<Option<Instant>>,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn add_dropped(&self, n: usize) {
        self.n_damaged_dropped.fetch_add(n as u64, Relaxed);
    }

    pub(crate) fn totals(&self) -> [u64; 4] {
        [&self.n_hits, &self.n_misses, &self.n_puts, &self.n_damaged_dropped].map(|counter| counter.load(Relaxed))
    }

    /// Goes on from where an earlier process stopped.
    pub(crate) fn start_from(&self, totals: [u64; 4]) {
        for (counter, total) in
            [&self.n_hits, &self.n_misses, &self.n_puts, &self.n_damaged_dropped].into_iter().zip(totals)
        {
            counter.fetch_add(total, Relaxed);
        }
    }

    /// The totals, if it is time to write them.
    pub(crate) fn due(&self) -> Option<[u64; 4]> {
        let mut saved_at = self.saved_at.lock().unwrap_or_else(PoisonError::into_inner);
        if saved_at.is_some_and(|at| at.elapsed() < SAVE_EVERY) {
            return None;
        }
        *saved_at = Some(Instant::now());
        Some(self.totals())
    }
}
