//! What belongs to one process: the tokio runtime, waits and how they end, and values that must not be touched in a forked
//! child.
//!
//! A forked child inherits memory but no threads. Its copy of the parent's runtime would wait for workers that don't exist,
//! so a child makes its own on first use, and forgets what it inherited without running a destructor.

use std::{
    future::Future,
    process,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use piecewised_client::ClientError;
use pyo3::{exceptions::PyRuntimeError, prelude::*};
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
};

use crate::errors::raise;

/// How long a wait goes on without asking Python for signals. Ctrl-C feels immediate.
const SIGNALS_EVERY: Duration = Duration::from_millis(100);

/// The runtime and the process that made it. Only locked with the GIL held and without waiting, so that neither another
/// thread nor `os.fork` ever sees it locked.
static RUNTIME: Mutex<Option<(u32, &'static Runtime)>> = Mutex::new(None);

/// This process's runtime. Made once and never dropped: at exit its threads just end.
pub(crate) fn runtime(_py: Python<'_>) -> PyResult<&'static Runtime> {
    let mut slot = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = process::id();
    match *slot {
        Some((owner, runtime)) if owner == pid => Ok(runtime),
        _ => {
            let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("piecewised").enable_all().build();
            let runtime = runtime.map_err(|error| PyRuntimeError::new_err(format!("starting a thread: {error}")))?;
            let runtime: &'static Runtime = Box::leak(Box::new(runtime));
            *slot = Some((pid, runtime));
            Ok(runtime)
        }
    }
}

/// Waits for `work` without the GIL. A signal handler that raises (Ctrl-C) ends the wait and drops the work.
pub(crate) fn wait<T: Send>(py: Python<'_>, work: impl Future<Output = T> + Send) -> PyResult<T> {
    let runtime = runtime(py)?;
    let mut work = Box::pin(work);
    loop {
        let turn = py.detach(|| runtime.block_on(async { tokio::time::timeout(SIGNALS_EVERY, &mut work).await }));
        match turn {
            Ok(result) => return Ok(result),
            Err(_) => py.check_signals()?,
        }
    }
}

/// Ends waits from another thread: before the interpreter ends, no thread may be left waiting outside of it.
#[pyclass(module = "piecewised._core", frozen)]
pub(crate) struct Stop(watch::Sender<bool>);

#[pymethods]
impl Stop {
    #[new]
    fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Every wait that was given this ends, now and later, with ConnectionBroken.
    fn set(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    pub(crate) fn subscribe(&self) -> watch::Receiver<bool> {
        self.0.subscribe()
    }
}

/// As [`wait`], until somebody sets `stop`.
pub(crate) fn wait_unless<T: Send>(
    py: Python<'_>,
    stop: Option<watch::Receiver<bool>>,
    work: impl Future<Output = Result<T, ClientError>> + Send,
) -> PyResult<T> {
    let stopped = async move {
        match stop {
            Some(mut stop) => stop.wait_for(|stopped| *stopped).await.map(drop),
            None => std::future::pending().await,
        }
    };
    let work = async move {
        tokio::select! {
            result = work => result,
            _ = stopped => Err(ClientError::Broken { doing: "waiting", problem: "this process is ending".into() }),
        }
    };
    wait(py, work)?.map_err(|error| raise(py, &error))
}

/// A value of the process that made it. In a forked child it can't be reached and is never dropped.
pub(crate) struct OfProcess<T> {
    pid: u32,
    value: Option<T>,
}

impl<T> OfProcess<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { pid: process::id(), value: Some(value) }
    }

    /// The value, in the process that made it.
    pub(crate) fn get(&self) -> Option<&T> {
        if self.pid == process::id() { self.value.as_ref() } else { None }
    }

    /// The value to change, in the process that made it.
    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        if self.pid == process::id() { self.value.as_mut() } else { None }
    }
}

impl<T> Drop for OfProcess<T> {
    fn drop(&mut self) {
        if self.pid != process::id() {
            std::mem::forget(self.value.take());
        }
    }
}
