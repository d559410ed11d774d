//! Lifetime counters: in memory, written to the index now and then.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use std::time::{Duration, Instant};

/// Least time between two writes.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// The lifetime counters as they are stored. New ones go to the end: an older store has fewer.
pub(crate) type Totals = [u64; 6];

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) n_hits: AtomicU64,
    pub(crate) n_misses: AtomicU64,
    pub(crate) n_puts: AtomicU64,
    pub(crate) n_damaged_dropped: AtomicU64,
    pub(crate) n_evicted: AtomicU64,
    pub(crate) evicted_bytes: AtomicU64,
    saved_at: Mutex<Option<Instant>>,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn add_dropped(&self, n: usize) {
        self.n_damaged_dropped.fetch_add(n as u64, Relaxed);
    }

    pub(crate) fn add_evicted(&self, n_bytes: u64) {
        self.n_evicted.fetch_add(1, Relaxed);
        self.evicted_bytes.fetch_add(n_bytes, Relaxed);
    }

    pub(crate) fn totals(&self) -> Totals {
        self.all().map(|counter| counter.load(Relaxed))
    }

    /// Goes on from where an earlier process stopped.
    pub(crate) fn start_from(&self, totals: Totals) {
        for (counter, total) in self.all().into_iter().zip(totals) {
            counter.fetch_add(total, Relaxed);
        }
    }

    fn all(&self) -> [&AtomicU64; 6] {
        [&self.n_hits, &self.n_misses, &self.n_puts, &self.n_damaged_dropped, &self.n_evicted, &self.evicted_bytes]
    }

    /// The totals, if it is time to write them.
    pub(crate) fn due(&self) -> Option<Totals> {
        let mut saved_at = self.saved_at.lock().unwrap_or_else(PoisonError::into_inner);
        if saved_at.is_some_and(|at| at.elapsed() < SAVE_EVERY) {
            return None;
        }
        *saved_at = Some(Instant::now());
        Some(self.totals())
    }
}
