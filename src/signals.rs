//! SIGINT and SIGTERM: the first asks to drain, the second to end at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What the signals ask for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown {
    /// No new work; finish what runs.
    pub(crate) drain: CancellationToken,
    /// End now.
    pub(crate) now: CancellationToken,
}

impl Shutdown {
    /// Watches the signals from now on.
    ///
    /// # Errors
    /// Where the system lets no handler be installed.
    pub(crate) fn on_signals() -> io::Result<Self> {
        let shutdown = Self::default();
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        tokio::spawn(watch(interrupt, terminate, shutdown.clone()));
        Ok(shutdown)
    }
}

async fn watch(mut interrupt: Signal, mut terminate: Signal, shutdown: Shutdown) {
    for n_signals in 1.. {
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        if n_signals == 1 {
            tracing::info!("{name}: draining; once more to end at once");
            shutdown.drain.cancel();
        } else {
            tracing::warn!("{name} again: ending at once");
            shutdown.drain.cancel();
            shutdown.now.cancel();
        }
    }
}
