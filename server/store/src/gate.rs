//! The one way from async code to blocking work: bounded, and writers cannot take all of it.

use std::sync::Arc;

use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::{StoreError, inner::panic_text};

/// What an operation mostly waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    /// Waits for the disk's syncs.
    Write,
}

#[derive(Debug)]
pub(crate) struct Gate {
    n_permits: u32,
    all: Arc<Semaphore>,
    writes: Arc<Semaphore>,
}

impl Gate {
    pub(crate) fn new(n_permits: usize) -> Self {
        let n_permits = n_permits.clamp(2, 1024);
        Self {
            n_permits: u32::try_from(n_permits).expect("at most 1024"),
            all: Arc::new(Semaphore::new(n_permits)),
            writes: Arc::new(Semaphore::new(n_permits / 2)),
        }
    }

    /// Runs `work` on a blocking thread. It runs to its end even if the caller goes away; the permit goes with it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        kind: Kind,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let write = match kind {
            Kind::Write => Some(self.writes.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?),
            Kind::Read => None,
        };
        let permit = self.all.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let work = move || {
            let _permits = (permit, write);
            work()
        };
        match spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => Err(StoreError::Task { reason: panic_text(&*error.into_panic()) }),
            Err(_) => Err(StoreError::Closed),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.all.is_closed()
    }

    /// Waits for everything that runs, and lets nothing in any more.
    pub(crate) async fn close(&self) {
        // An error: someone else closed it.
        if let Ok(permits) = self.all.acquire_many(self.n_permits).await {
            self.all.close();
            self.writes.close();
            permits.forget();
        }
    }
}
