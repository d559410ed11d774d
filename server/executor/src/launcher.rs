//! Starting the executors of one toolchain.

use std::{fmt, sync::Arc};

use crate::{Executor, ExecutorConfig, ExecutorError, Placement};

/// How a launcher starts executors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaunchKind {
    /// Forked from a process that has imported torch.
    Forked,
    /// Each is an interpreter of its own, which imports torch.
    Fresh {
        /// Why they are not forked, as a sentence.
        reason: String,
    },
}

/// Starts the executors of one toolchain. Cheap to clone.
#[derive(Clone)]
pub struct Launcher {
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<ExecutorConfig>,
}

impl Launcher {
    /// For the interpreter of `config`. Nothing is started yet.
    pub fn new(config: Arc<ExecutorConfig>) -> Self {
        Self { shared: Arc::new(Shared { config }) }
    }

    /// Starts an executor and waits until it is ready.
    ///
    /// # Errors
    /// [`ExecutorError::Spawn`], [`ExecutorError::NotReady`], [`ExecutorError::Unusable`] or [`ExecutorError::Protocol`]. Nothing
    /// of it is left then, nor where the future is dropped.
    pub async fn launch(&self, placement: &Placement) -> Result<Executor, ExecutorError> {
        Executor::spawn(&self.shared.config, placement).await
    }

    /// How executors are started now.
    pub fn kind(&self) -> LaunchKind {
        LaunchKind::Fresh { reason: "there is no process to fork from yet".into() }
    }

    /// The configuration that executors are started with.
    pub fn config(&self) -> &ExecutorConfig {
        &self.shared.config
    }

    /// Ends the process that executors are forked from. Executors that run go on.
    pub async fn shutdown(self) {}
}

impl fmt::Debug for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launcher")
            .field("python", &self.shared.config.python)
            .field("kind", &self.kind())
            .finish_non_exhaustive()
    }
}
