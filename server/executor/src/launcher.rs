//! Starting the executors of one toolchain: forked from its zygote, or, where that cannot be, each in an interpreter of its own.
//!
//! The zygote is started with the first executor, looked after from then on, and started again when it has died. What it cannot do
//! is said once in the log; executors are then started fresh, which takes seconds and memory and changes nothing else.
//!
//! Executors with a frontend are forked from a zygote of that frontend, which has imported it too: such an import takes seconds, and changes
//! torch, so that other executors must come from a process that never saw it.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Executor, ExecutorConfig, ExecutorError, Hello, Placement,
    process::become_subreaper,
    zygote::{Zygote, ZygoteError},
};

/// How often a zygote is looked after.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// A zygote that breaks this often without an executor in between is not started again.
const MAX_BREAKS: u32 = 3;

const CHANGED: &str = "the interpreter is not what it was when the daemon last ran";

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

/// Starts the executors of one toolchain. Cheap to clone; its zygote ends with the last clone.
#[derive(Clone)]
pub struct Launcher {
    /// Of executors without a frontend.
    shared: Arc<Shared>,
    /// By frontend.
    others: Arc<Mutex<HashMap<String, Arc<Shared>>>>,
    proof: Arc<Proof>,
}

/// What the interpreter is taken to be before one of its executors has said so.
struct Proof {
    expected: Option<Hello>,
    /// Whether an executor said what is expected; `None`: none has started yet.
    verdict: watch::Sender<Option<bool>>,
}

/// The executors of one frontend, or of none.
struct Shared {
    config: Arc<ExecutorConfig>,
    frontend: Option<String>,
    /// What the first executor of all said.
    hello: Arc<OnceLock<Arc<Hello>>>,
    kind: Mutex<LaunchKind>,
    /// Held while a zygote starts, so that there is one.
    slot: tokio::sync::Mutex<Slot>,
    keeper: OnceLock<AbortOnDropHandle<()>>,
}

#[derive(Default)]
struct Slot {
    zygote: Option<Arc<Zygote>>,
    n_breaks: u32,
    /// No zygote is started any more.
    is_given_up: bool,
}

impl Launcher {
    /// For the interpreter of `config`. Nothing is started yet.
    pub fn new(config: Arc<ExecutorConfig>) -> Self {
        Self::with_proof(config, Proof { expected: None, verdict: watch::Sender::new(Some(true)) })
    }

    /// As `new`, for an interpreter that is known from before: nothing is launched until [`Launcher::prove`] has heard the same as then.
    pub fn expecting(config: Arc<ExecutorConfig>, hello: Hello) -> Self {
        Self::with_proof(config, Proof { expected: Some(hello), verdict: watch::Sender::new(None) })
    }

    fn with_proof(config: Arc<ExecutorConfig>, proof: Proof) -> Self {
        let shared = Arc::new(Shared::new(config, None, Arc::default()));
        Self { shared, others: Arc::default(), proof: Arc::new(proof) }
    }

    /// Those of a frontend.
    fn of(&self, frontend: Option<&str>) -> Arc<Shared> {
        let Some(name) = frontend else { return Arc::clone(&self.shared) };
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || {
            let (config, hello) = (Arc::clone(&self.shared.config), Arc::clone(&self.shared.hello));
            Arc::new(Shared::new(config, Some(name.to_owned()), hello))
        };
        Arc::clone(others.entry(name.to_owned()).or_insert_with(made))
    }

    /// Starts an executor and waits until it is ready.
    ///
    /// # Errors
    /// [`ExecutorError::Spawn`], [`ExecutorError::NotReady`], [`ExecutorError::Unusable`] or [`ExecutorError::Protocol`]. Nothing
    /// of it is left then, nor where the future is dropped.
    pub async fn launch(&self, placement: &Placement) -> Result<Executor, ExecutorError> {
        let mut verdict = self.proof.verdict.subscribe();
        let agrees = verdict.wait_for(Option::is_some).await.is_ok_and(|verdict| *verdict == Some(true));
        if !agrees {
            return Err(ExecutorError::NotReady {
                python: self.shared.config.python.clone(),
                problem: CHANGED.into(),
                tail: String::new(),
                was_killed: false,
            });
        }
        self.start(placement).await
    }

    /// Starts the first executor, placed nowhere, which says what the interpreter can do.
    ///
    /// # Errors
    /// As [`Launcher::launch`]; [`ExecutorError::Unusable`] also where it says something else than was expected.
    pub async fn prove(&self) -> Result<Executor, ExecutorError> {
        let executor = self.start(&Placement::default()).await?;
        let agrees = self.proof.expected.as_ref().is_none_or(|expected| executor.hello().agrees_with(expected));
        self.proof.verdict.send_replace(Some(agrees));
        if agrees {
            return Ok(executor);
        }
        Err(ExecutorError::Unusable { python: self.shared.config.python.clone(), reason: CHANGED.into() })
    }

    async fn start(&self, placement: &Placement) -> Result<Executor, ExecutorError> {
        let shared = self.of(placement.frontend.as_deref());
        let executor = match shared.fork(placement).await? {
            Some(executor) => {
                shared.look_after();
                executor
            }
            None => {
                let known = shared.hello.get().cloned();
                Executor::start_fresh(&shared.config, placement, known).await?
            }
        };
        let _ = shared.hello.set(executor.shared_hello());
        Ok(executor)
    }

    /// Starts what executors of a frontend are forked from, so that the first of them needs not wait for that.
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    pub async fn prepare(&self, frontend: &str) -> Result<(), ExecutorError> {
        let shared = self.of(Some(frontend));
        shared.zygote().await?;
        shared.look_after();
        Ok(())
    }

    /// How executors without a frontend are started now.
    pub fn kind(&self) -> LaunchKind {
        self.shared.kind.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The process that executors without a frontend are forked from, where there is one.
    pub async fn zygote_pid(&self) -> Option<u32> {
        self.shared.slot.lock().await.zygote.as_ref().filter(|zygote| zygote.is_running()).map(|zygote| zygote.pid())
    }

    /// Whether there is a zygote that has done all that it does ahead for a first compile.
    pub async fn is_warm(&self) -> bool {
        let zygote = self.shared.slot.lock().await.zygote.clone();
        match zygote {
            Some(zygote) => zygote.check().await.unwrap_or(false),
            None => false,
        }
    }

    /// The configuration that executors are started with.
    pub fn config(&self) -> &ExecutorConfig {
        &self.shared.config
    }

    /// Ends the processes that executors are forked from. Executors that run go on; no further one can be launched by a clone of this but fresh.
    pub async fn shutdown(self) {
        // Nobody waits for a proof that will not come.
        self.proof.verdict.send_if_modified(|verdict| {
            let is_open = verdict.is_none();
            verdict.get_or_insert(false);
            is_open
        });
        let others: Vec<_> =
            self.others.lock().unwrap_or_else(PoisonError::into_inner).values().map(Arc::clone).collect();
        for shared in others.iter().chain([&self.shared]) {
            shared.shutdown().await;
        }
    }
}

impl Shared {
    fn new(config: Arc<ExecutorConfig>, frontend: Option<String>, hello: Arc<OnceLock<Arc<Hello>>>) -> Self {
        let kind = Mutex::new(LaunchKind::Fresh { reason: "no executor was started yet".into() });
        Self { config, frontend, hello, kind, slot: Default::default(), keeper: OnceLock::new() }
    }

    /// From now on a zygote that died is noticed.
    fn look_after(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        self.keeper.get_or_init(|| AbortOnDropHandle::new(tokio::spawn(keep(weak))));
    }

    async fn shutdown(&self) {
        let mut slot = self.slot.lock().await;
        slot.is_given_up = true;
        self.set_kind(LaunchKind::Fresh { reason: "the launcher was shut down".into() });
        if let Some(zygote) = slot.zygote.take() {
            zygote.end().await;
        }
    }

    /// An executor from the zygote; none where there is no zygote to be had.
    async fn fork(&self, placement: &Placement) -> Result<Option<Executor>, ExecutorError> {
        // Once more where the zygote died between two requests: that is noticed only by asking it.
        for _ in 0..2 {
            let Some(zygote) = self.zygote().await? else { return Ok(None) };
            match zygote.fork(&self.config, placement).await {
                Ok((process, pipes)) => {
                    let known = self.hello.get().cloned();
                    let executor = Executor::greet(process, pipes, &self.config, placement, known).await?;
                    self.slot.lock().await.n_breaks = 0;
                    return Ok(Some(executor));
                }
                Err(error) => self.note(Some(&zygote), error).await?,
            }
        }
        Ok(None)
    }

    /// The zygote, started where there is none.
    async fn zygote(&self) -> Result<Option<Arc<Zygote>>, ExecutorError> {
        let started = {
            let mut slot = self.slot.lock().await;
            if slot.is_given_up {
                return Ok(None);
            }
            if let Some(zygote) = slot.zygote.as_ref().filter(|zygote| zygote.is_running()) {
                return Ok(Some(Arc::clone(zygote)));
            }
            if let Some(dead) = slot.zygote.take() {
                let tail = dead.tail().await;
                let last = tail.lines().last().unwrap_or_default().to_owned();
                tracing::warn!(zygote = dead.pid(), last, "the zygote died; starting another");
            }
            let started = match become_subreaper() {
                Ok(()) => Zygote::start(&self.config, self.frontend.as_deref()).await,
                Err(error) => {
                    Err(ZygoteError::Refused(format!("the system does not give orphans to the daemon: {error}")))
                }
            };
            match started {
                Ok(zygote) => Ok(Arc::clone(slot.zygote.insert(Arc::new(zygote)))),
                Err(error) => Err(error),
            }
        };
        match started {
            Ok(zygote) => {
                self.set_kind(LaunchKind::Forked);
                Ok(Some(zygote))
            }
            Err(error) => {
                self.note(None, error).await?;
                Ok(None)
            }
        }
    }

    /// Draws the consequences of what went wrong; an error is the caller's.
    async fn note(&self, zygote: Option<&Arc<Zygote>>, error: ZygoteError) -> Result<(), ExecutorError> {
        let mut slot = self.slot.lock().await;
        // Of several that asked the same dead zygote, one counts.
        if let (Some(asked), Some(current)) = (zygote, &slot.zygote)
            && !Arc::ptr_eq(asked, current)
        {
            return Ok(());
        }
        let reason = match error {
            ZygoteError::Executor(error) => return Err(error),
            ZygoteError::Io(source) => {
                return Err(ExecutorError::Spawn { python: self.config.python.clone(), source });
            }
            ZygoteError::Refused(reason) => {
                slot.is_given_up = true;
                reason
            }
            ZygoteError::Broken(reason) => {
                slot.n_breaks += 1;
                slot.is_given_up = slot.n_breaks >= MAX_BREAKS;
                reason
            }
        };
        slot.zygote = None;
        if slot.is_given_up {
            tracing::warn!(python = %self.config.python.display(), frontend = self.frontend, "executors are started fresh and not forked: {reason}");
        } else {
            tracing::info!(python = %self.config.python.display(), frontend = self.frontend, "the zygote broke: {reason}");
        }
        self.set_kind(LaunchKind::Fresh { reason });
        Ok(())
    }

    fn set_kind(&self, kind: LaunchKind) {
        *self.kind.lock().unwrap_or_else(PoisonError::into_inner) = kind;
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // At once, although somebody may be asking it how it is, and would keep it until it has answered.
        if let Some(zygote) = self.slot.get_mut().zygote.take() {
            zygote.kill();
        }
    }
}

/// Notices a zygote that died or hangs before somebody needs it, and starts another.
async fn keep(launcher: Weak<Shared>) {
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let Some(shared) = launcher.upgrade() else { return };
        let Ok(Some(zygote)) = shared.zygote().await else { continue };
        drop(shared);
        let checked = zygote.check().await;
        if let (Err(error), Some(shared)) = (checked, launcher.upgrade()) {
            // There is nobody to tell but the log, which `note` does.
            let _ = shared.note(Some(&zygote), error).await;
        }
    }
}

impl fmt::Debug for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launcher")
            .field("python", &self.shared.config.python)
            .field("kind", &self.kind())
            .finish_non_exhaustive()
    }
}
