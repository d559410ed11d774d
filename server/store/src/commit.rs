//! Group commit: writers that come at the same time share one flush.
//!
//! Whoever finds nobody leading leads: takes what is queued up to a bound, applies it, flushes once, and hands each
//! writer its own result. No thread of its own, and nothing is left half done when a caller goes away, because writers
//! wait on blocking threads. The bound is what keeps sled recoverable after a power cut: flushes of up to some 300
//! records were never seen to fail, flushes of 3,000 were.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
};

use crate::{StoreError, inner::panic_text};

pub(crate) const MAX_GROUP_RECORDS: usize = 128;
const MAX_GROUP_BYTES: usize = 128 << 10;

type Outcome<E> = Result<E, String>;

struct Job<T, E> {
    op: T,
    n_bytes: usize,
    outcome: Arc<OnceLock<Outcome<E>>>,
}

struct State<T, E> {
    queue: VecDeque<Job<T, E>>,
    is_led: bool,
}

/// Groups operations `T`, each with an effect `E`.
pub(crate) struct Committer<T, E> {
    state: Mutex<State<T, E>>,
    turn: Condvar,
}

impl<T, E: Clone> Committer<T, E> {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new(State { queue: VecDeque::new(), is_led: false }), turn: Condvar::new() }
    }

    /// Queues `op` and returns once `apply` has made it durable, by this thread or another. `apply` gets operations in
    /// the order in which they were queued, one group at a time, and returns an effect for each.
    pub(crate) fn submit(
        &self,
        op: T,
        n_bytes: usize,
        apply: impl Fn(&[T]) -> Result<Vec<E>, StoreError>,
    ) -> Result<E, StoreError> {
        let outcome = Arc::new(OnceLock::new());
        let mut state = self.state();
        state.queue.push_back(Job { op, n_bytes, outcome: outcome.clone() });
        loop {
            if let Some(outcome) = outcome.get() {
                return outcome.clone().map_err(|reason| StoreError::Index { reason });
            }
            if state.is_led {
                state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.is_led = true;
            let group = take_group(&mut state.queue);
            drop(state);
            lead(group, &apply);
            state = self.state();
            state.is_led = false;
            self.turn.notify_all();
        }
    }

    /// Waits for the group under way, if there is one.
    pub(crate) fn settle(&self) {
        let mut state = self.state();
        while state.is_led {
            state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_group<T, E>(queue: &mut VecDeque<Job<T, E>>) -> Vec<Job<T, E>> {
    let mut n_bytes = 0;
    let mut group = Vec::new();
    while let Some(job) = queue.front() {
        n_bytes += job.n_bytes;
        if group.len() == MAX_GROUP_RECORDS || (n_bytes > MAX_GROUP_BYTES && !group.is_empty()) {
            break;
        }
        group.extend(queue.pop_front());
    }
    group
}

fn lead<T, E: Clone>(group: Vec<Job<T, E>>, apply: &impl Fn(&[T]) -> Result<Vec<E>, StoreError>) {
    let (ops, waiting): (Vec<_>, Vec<_>) = group.into_iter().map(|job| (job.op, job.outcome)).unzip();
    let result = match catch_unwind(AssertUnwindSafe(|| apply(&ops))) {
        Ok(Ok(effects)) => Ok(effects),
        Ok(Err(StoreError::Index { reason })) => Err(reason),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(panic_text(&*panic)),
    };
    for (i, outcome) in waiting.iter().enumerate() {
        let result = match &result {
            Ok(effects) => effects.get(i).cloned().ok_or_else(|| "an operation was left out".to_owned()),
            Err(reason) => Err(reason.clone()),
        };
        // Set here only, once for each job.
        let _ = outcome.set(result);
    }
}

impl<T, E> std::fmt::Debug for Committer<T, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committer").finish_non_exhaustive()
    }
}
