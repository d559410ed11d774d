//! What a store does in the background: writes what is held in memory, evicts, writes last uses, forgets old failures.
//!
//! One thread for each open store. It wakes up when a write asks for it, and every few seconds. What fails is tried again,
//! less and less often, and is not reported to anybody but the log: a caller that is affected gets its own error.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{StoreError, engine::Engine, inner::Inner};

/// How often it looks without being asked.
const TICK: Duration = Duration::from_secs(5);
/// Between two attempts to write what is held: this at first, doubled each time up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(20));
/// Between two writes of last uses, and how much later than the stored one a use must be to be written, in stamps (ns).
const SAVE_USES_EVERY: Duration = Duration::from_secs(30);
const USES_APART: u64 = 60_000_000_000;
/// How long no artifact is evicted for free space after that did not help.
const SPACE_PAUSE: Duration = Duration::from_secs(60);

/// Wakes the thread, and ends it.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    state: Mutex<State>,
    condvar: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_woken: bool,
    is_stopped: bool,
}

impl Signal {
    pub(crate) fn wake(&self) {
        self.state().is_woken = true;
        self.condvar.notify_all();
    }

    fn stop(&self) {
        self.state().is_stopped = true;
        self.condvar.notify_all();
    }

    /// Returns whether to go on.
    fn wait(&self, timeout: Duration) -> bool {
        let idle = |state: &mut State| !state.is_woken && !state.is_stopped;
        let (mut state, _) =
            self.condvar.wait_timeout_while(self.state(), timeout, idle).unwrap_or_else(PoisonError::into_inner);
        state.is_woken = false;
        !state.is_stopped
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread, ended with the last clone of the store.
#[derive(Debug)]
pub(crate) struct Keeper {
    inner: Mutex<Option<Arc<Inner>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    pub(crate) fn start(inner: Arc<Inner>) -> Result<Self, StoreError> {
        let kept = inner.clone();
        let thread = thread::Builder::new()
            .name("store-keeper".into())
            .spawn(move || keep(&kept))
            .map_err(StoreError::io("start", "a thread for the store"))?;
        Ok(Self { inner: Mutex::new(Some(inner)), thread: Mutex::new(Some(thread)) })
    }

    /// Ends the thread and waits for it.
    pub(crate) fn stop(&self) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(inner) = inner {
            inner.shared.is_closing.store(true, Relaxed);
            inner.signal.stop();
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's background work had ended with a panic");
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}

fn keep(inner: &Inner) {
    let mut retry = RETRY.0;
    let mut saved_at = Instant::now();
    let mut paused_until = None;
    loop {
        let has_held = inner.shared.held().len() > 0;
        if !inner.signal.wait(if has_held { retry } else { TICK }) {
            return;
        }
        let is_stored = said(inner.store_held()).unwrap_or(false);
        retry = if is_stored { RETRY.0 } else { (retry * 2).min(RETRY.1) };
        if inner.is_open_and(Engine::is_over_budget) {
            said(inner.run(Engine::trim_to_budget));
        }
        let lacks_space = inner.shared.layout.ensure_room(0, inner.shared.config.reserve_bytes).is_err();
        if lacks_space && paused_until.is_none_or(|until| Instant::now() >= until) {
            let helped = said(inner.run(Engine::trim_to_reserve)).unwrap_or(false);
            paused_until = (!helped).then(|| Instant::now() + SPACE_PAUSE);
        }
        if is_stored && !lacks_space {
            inner.shared.is_full.store(false, Relaxed);
        }
        if saved_at.elapsed() >= SAVE_USES_EVERY {
            saved_at = Instant::now();
            said(inner.run(|engine| engine.save_uses(USES_APART).and_then(|()| engine.forget_expired())));
        }
    }
}

fn said<T>(result: Result<T, StoreError>) -> Option<T> {
    result.inspect_err(|error| tracing::warn!(%error, "the store's background work failed; it is tried again")).ok()
}
