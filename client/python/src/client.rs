//! The connection for Python: compile, follow the events, fetch.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use piecewised_client::{
    Cache, Client as CoreClient, ClientError, ClientOptions, CompileRequest, CompileStream, Credentials, Delivery,
    Endpoint, Event, Fetched as CoreFetched, GraphFileError, Priority, TraceContext,
};
use piecewised_graph::{Frontend, Handle, ProgramName, SnapshotName, request::ArtifactFormat};
use pyo3::{
    exceptions::{PyRuntimeError, PyValueError},
    prelude::*,
    pybacked::PyBackedBytes,
    types::PyBytes,
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;

use crate::{
    cache::{default_folder, keyring},
    dispatch::plan,
    errors::{raise, raise_json},
    process::{OfProcess, Stop, wait, wait_unless},
};

/// A connection to a daemon, and the cache folder for what it sends. May be used by several threads, and in a forked child,
/// which connects anew.
#[pyclass(module = "piecewised._core", frozen)]
pub(crate) struct Client {
    endpoint: Endpoint,
    options: ClientOptions,
    cache_folder: PathBuf,
    connection: Mutex<OfProcess<CoreClient>>,
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (endpoint = None, *, connect_timeout_s = 5.0, ready_timeout_s = 60.0, budget_s = None, cache_dir = None, trusted_keys = None, ca = None, cert = None, key = None, token = None))]
    #[expect(clippy::too_many_arguments, reason = "Python's keyword arguments")]
    fn new(
        py: Python<'_>,
        endpoint: Option<&str>,
        connect_timeout_s: f64,
        ready_timeout_s: f64,
        budget_s: Option<f64>,
        cache_dir: Option<PathBuf>,
        trusted_keys: Option<&str>,
        ca: Option<PathBuf>,
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
        token: Option<PathBuf>,
    ) -> PyResult<Self> {
        // The one place of the client that reads the process environment.
        let environment = |name: &str| std::env::var(name).ok();
        let uid = rustix::process::getuid().as_raw();
        let endpoint = Endpoint::resolve(endpoint, environment, uid).map_err(|error| raise(py, &error.into()))?;
        let cache_folder = cache_dir.unwrap_or_else(default_folder);
        let options = ClientOptions {
            connect_timeout: seconds("connect_timeout_s", connect_timeout_s)?,
            ready_timeout: seconds("ready_timeout_s", ready_timeout_s)?,
            compile_budget: budget_s.map(|budget| seconds("budget_s", budget)).transpose()?,
            credentials: Credentials { ca, cert, key, token }.resolve(environment),
            keyring: keyring(py, trusted_keys, &cache_folder)?,
            ..ClientOptions::default()
        };
        let connection = connect(py, &endpoint, &options)?;
        Ok(Self { endpoint, options, cache_folder, connection: Mutex::new(OfProcess::new(connection)) })
    }

    #[getter]
    fn endpoint(&self) -> String {
        self.endpoint.to_string()
    }

    #[getter]
    fn cache_dir(&self) -> PathBuf {
        self.cache_folder.clone()
    }

    /// What the daemon can do, as JSON. `frontend`: what requests will be sent with; the daemon gets ready for it.
    #[pyo3(signature = (frontend = ""))]
    fn capabilities(&self, py: Python<'_>, frontend: &str) -> PyResult<String> {
        let client = self.connected(py)?;
        let capabilities =
            wait(py, async move { client.capabilities_for(frontend).await })?.map_err(|error| raise(py, &error))?;
        serde_json::to_string(&capabilities).map_err(|error| raise_json(py, "capabilities", &error))
    }

    /// What the daemon has done since it started, as JSON.
    fn status(&self, py: Python<'_>) -> PyResult<String> {
        let client = self.connected(py)?;
        let status = wait(py, async move { client.status().await })?.map_err(|error| raise(py, &error))?;
        serde_json::to_string(&status).map_err(|error| raise_json(py, "status", &error))
    }

    /// Tells the daemon of pieces that were compiled without it, by reason.
    fn report_fallbacks(&self, py: Python<'_>, reasons: BTreeMap<String, u64>) -> PyResult<()> {
        let client = self.connected(py)?;
        wait(py, async move { client.report_fallbacks(reasons).await })?.map_err(|error| raise(py, &error))
    }

    /// Asks to compile a graph for ranges and sizes; what comes back says what happens to each. `is_tiered`: tuned artifacts where the
    /// store has them, whatever tuning the options name. `is_strict`: a range that is not proven as a whole fails. `priority`:
    /// "interactive", "prefetch" (somebody will wait for it soon) or "background" (nobody does, and no budget bounds it). `frontend`: name,
    /// version, identity (JSON text) and payload of what takes part in the compile. `format`: "inductor" or "aoti". `trace`: `traceparent` and `tracestate` of the trace that
    /// the request belongs to.
    #[pyo3(signature = (
        graph, ranges, sizes, options, toolchain = None, device = None, hints = Vec::new(), program = None, stop = None, *,
        is_tiered = false, is_strict = false, priority = "interactive", frontend = None, label = "", format = "inductor",
        trace = (None, None)
    ))]
    #[expect(clippy::too_many_arguments, reason = "Python's keyword arguments")]
    fn compile(
        &self,
        py: Python<'_>,
        graph: &str,
        ranges: Vec<(i64, i64)>,
        sizes: Vec<i64>,
        options: &str,
        toolchain: Option<&str>,
        device: Option<&str>,
        hints: Vec<i64>,
        program: Option<&str>,
        stop: Option<&Stop>,
        is_tiered: bool,
        is_strict: bool,
        priority: &str,
        frontend: Option<(String, String, PyBackedBytes, PyBackedBytes)>,
        label: &str,
        format: &str,
        trace: (Option<String>, Option<String>),
    ) -> PyResult<Events> {
        let request = Asked {
            graph,
            ranges,
            sizes,
            options,
            toolchain,
            device,
            hints,
            program,
            is_tiered,
            is_strict,
            priority,
            frontend,
            label,
            format,
        }
        .request(py)?;
        let client = self.connected(py)?;
        let trace = TraceContext::from_headers(trace.0, trace.1);
        let stop = stop.map(Stop::subscribe);
        let stream = wait_unless(py, stop.clone(), async move { client.compile_traced(request, trace).await })?;
        Ok(Events {
            entries: stream.entries().iter().copied().map(<(i64, i64)>::from).collect(),
            stream: Mutex::new(Some(OfProcess::new(stream))),
            stop,
        })
    }

    /// The manifest of a program that was completed, as JSON, and its digest.
    fn manifest(&self, py: Python<'_>, program: &str) -> PyResult<(String, String)> {
        let name: ProgramName = program.parse().map_err(|error| raise(py, &ClientError::ProgramName(error)))?;
        let client = self.connected(py)?;
        let asked = wait(py, async move { client.manifest(&name).await })?;
        let (manifest, digest) = asked.map_err(|error| raise(py, &error))?;
        let text = serde_json::to_string(&manifest).map_err(|error| raise_json(py, "manifest", &error))?;
        Ok((text, digest.to_string()))
    }

    /// Makes the artifact that a handle names a folder of the cache.
    #[pyo3(signature = (handle, stop = None))]
    fn fetch(&self, py: Python<'_>, handle: &str, stop: Option<&Stop>) -> PyResult<Fetched> {
        let handle: Handle = parse(py, "handle", handle)?;
        let client = self.connected(py)?;
        let folder = self.cache_folder.clone();
        let fetching = async move {
            let cache = Cache::open(&folder)?;
            client.fetch(&handle, &cache).await
        };
        wait_unless(py, stop.map(Stop::subscribe), fetching).map(Fetched)
    }

    /// Has the daemon keep a frontend's snapshot for a toolchain (its fingerprint), in place of any of that name. Durable when this returns.
    #[pyo3(signature = (frontend, name, toolchain, data, stop = None))]
    fn put_snapshot(
        &self,
        py: Python<'_>,
        frontend: String,
        name: String,
        toolchain: String,
        data: PyBackedBytes,
        stop: Option<&Stop>,
    ) -> PyResult<()> {
        let name = snapshot_name(frontend, name, toolchain)?;
        let client = self.connected(py)?;
        let sending = async move { client.put_snapshot(&name, Bytes::from_owner(data)).await };
        wait_unless(py, stop.map(Stop::subscribe), sending)
    }

    /// The bytes of a frontend's snapshot; None: the daemon has none of that name.
    #[pyo3(signature = (frontend, name, toolchain, stop = None))]
    fn fetch_snapshot<'py>(
        &self,
        py: Python<'py>,
        frontend: String,
        name: String,
        toolchain: String,
        stop: Option<&Stop>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let name = snapshot_name(frontend, name, toolchain)?;
        let client = self.connected(py)?;
        let fetching = async move { client.fetch_snapshot(&name).await };
        let bytes = wait_unless(py, stop.map(Stop::subscribe), fetching)?;
        Ok(bytes.map(|bytes| PyBytes::new(py, &bytes)))
    }

    fn __repr__(&self) -> String {
        format!("piecewised.Client({:?})", self.endpoint.to_string())
    }
}

impl Client {
    /// The connection of this process.
    fn connected(&self, py: Python<'_>) -> PyResult<CoreClient> {
        // Never locked across a wait: the GIL is held here, and a second thread that waited for the lock with the GIL in its
        // hand would never be answered.
        let lock = || self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = lock().get() {
            return Ok(client.clone());
        }
        let client = connect(py, &self.endpoint, &self.options)?;
        *lock() = OfProcess::new(client.clone());
        Ok(client)
    }
}

fn connect(py: Python<'_>, endpoint: &Endpoint, options: &ClientOptions) -> PyResult<CoreClient> {
    let (endpoint, options) = (endpoint.clone(), options.clone());
    wait(py, async move { CoreClient::connect(endpoint, options).await })?.map_err(|error| raise(py, &error))
}

pub(crate) fn parse<T: DeserializeOwned + Send>(py: Python<'_>, what: &str, text: &str) -> PyResult<T> {
    py.detach(|| serde_json::from_str(text)).map_err(|error| raise_json(py, what, &error))
}

fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| PyValueError::new_err(format!("{name} must be a number of seconds from 0 up, not {value}")))
}

/// The events of one compile, each as JSON, in the order in which they happen. An iterator for one thread at a time.
#[pyclass(module = "piecewised._core", frozen)]
pub(crate) struct Events {
    entries: Vec<(i64, i64)>,
    /// Absent while a thread reads from it, and after its end.
    stream: Mutex<Option<OfProcess<CompileStream>>>,
    /// Ends a wait for the next event.
    stop: Option<watch::Receiver<bool>>,
}

#[pymethods]
impl Events {
    /// The plan's entries, which events name by position.
    #[getter]
    fn entries(&self) -> Vec<(i64, i64)> {
        self.entries.clone()
    }

    fn __iter__(events: Py<Self>) -> Py<Self> {
        events
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let lock = || self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut owned) = lock().take() else { return Ok(None) };
        let Some(stream) = owned.get_mut() else {
            return Err(PyRuntimeError::new_err("these events belong to the process that asked for them; ask again"));
        };
        // Where the wait is interrupted, `owned` is dropped, which tells the daemon that nobody listens any more.
        let event: Option<Event> = wait_unless(py, self.stop.clone(), async { stream.next().await.transpose() })?;
        match event {
            None => Ok(None),
            Some(event) => {
                *lock() = Some(owned);
                serde_json::to_string(&event).map(Some).map_err(|error| raise_json(py, "event", &error))
            }
        }
    }
}

/// An artifact in the cache folder.
#[pyclass(module = "piecewised._core", frozen)]
pub(crate) struct Fetched(CoreFetched);

#[pymethods]
impl Fetched {
    /// The materialised artifact.
    #[getter]
    fn folder(&self) -> PathBuf {
        self.0.folder.clone()
    }

    /// Whether it was there already.
    #[getter]
    fn was_local(&self) -> bool {
        self.0.was_local
    }

    /// From the call to the folder.
    #[getter]
    fn seconds(&self) -> f64 {
        self.0.seconds
    }

    /// Of the artifact.
    #[getter]
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes
    }
}

fn frontend(
    (name, version, identity, payload): (String, String, PyBackedBytes, PyBackedBytes),
) -> PyResult<(Frontend, Vec<u8>)> {
    let frontend =
        Frontend::new(name, version, identity.to_vec()).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok((frontend, payload.to_vec()))
}

fn snapshot_name(frontend: String, name: String, toolchain: String) -> PyResult<SnapshotName> {
    SnapshotName::new(frontend, name, toolchain).map_err(|error| PyValueError::new_err(error.to_string()))
}

fn priority(name: &str) -> PyResult<Priority> {
    match name {
        "interactive" => Ok(Priority::Interactive),
        "prefetch" => Ok(Priority::Prefetch),
        "background" => Ok(Priority::Background),
        other => Err(PyValueError::new_err(format!(
            "priority is \"interactive\", \"prefetch\" or \"background\", not {other:?}"
        ))),
    }
}

fn format(name: &str) -> PyResult<ArtifactFormat> {
    match name {
        "inductor" => Ok(ArtifactFormat::Inductor),
        "aoti" => Ok(ArtifactFormat::Aoti),
        other => Err(PyValueError::new_err(format!("format is \"inductor\" or \"aoti\", not {other:?}"))),
    }
}

/// A request for a compile, as Python gives it.
struct Asked<'a> {
    graph: &'a str,
    ranges: Vec<(i64, i64)>,
    sizes: Vec<i64>,
    options: &'a str,
    toolchain: Option<&'a str>,
    device: Option<&'a str>,
    hints: Vec<i64>,
    program: Option<&'a str>,
    is_tiered: bool,
    is_strict: bool,
    priority: &'a str,
    frontend: Option<(String, String, PyBackedBytes, PyBackedBytes)>,
    label: &'a str,
    format: &'a str,
}

impl Asked<'_> {
    fn request(self, py: Python<'_>) -> PyResult<CompileRequest> {
        let Self { hints, is_tiered, is_strict, .. } = self;
        Ok(CompileRequest {
            plan: plan(py, &self.ranges, &self.sizes)?,
            graph: parse(py, "graph", self.graph)?,
            options: parse(py, "options", self.options)?,
            format: format(self.format)?,
            delivery: Delivery { hints, is_tiered, is_strict },
            priority: priority(self.priority)?,
            toolchain: self.toolchain.map(|text| parse(py, "toolchain", text)).transpose()?,
            device: self.device.map(|text| parse(py, "device", text)).transpose()?,
            program: self.program.map(|text| parse(py, "program", text)).transpose()?,
            frontend: self.frontend.map(frontend).transpose()?,
            label: self.label.to_owned(),
        })
    }
}

/// Writes a request for a compile to a graph file; its arguments are those of `Client.compile`. Neither toolchain nor device are in it: they
/// are those of whoever reads it.
#[pyfunction]
#[pyo3(signature = (
    path, graph, ranges, sizes, options, hints = Vec::new(), program = None, *, is_tiered = false, is_strict = false,
    frontend = None, label = "", format = "inductor"
))]
#[expect(clippy::too_many_arguments, reason = "Python's keyword arguments")]
pub(crate) fn write_graph_file(
    py: Python<'_>,
    path: PathBuf,
    graph: &str,
    ranges: Vec<(i64, i64)>,
    sizes: Vec<i64>,
    options: &str,
    hints: Vec<i64>,
    program: Option<&str>,
    is_tiered: bool,
    is_strict: bool,
    frontend: Option<(String, String, PyBackedBytes, PyBackedBytes)>,
    label: &str,
    format: &str,
) -> PyResult<()> {
    let (toolchain, device, priority) = (None, None, "interactive");
    let asked = Asked {
        graph,
        ranges,
        sizes,
        options,
        toolchain,
        device,
        hints,
        program,
        is_tiered,
        is_strict,
        priority,
        frontend,
        label,
        format,
    };
    let request = asked.request(py)?;
    py.detach(|| piecewised_client::write_graph_file(&path, request)).map_err(|error| match error {
        GraphFileError::Io { source, .. } => source.into(),
        error => PyValueError::new_err(error.to_string()),
    })
}
