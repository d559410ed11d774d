//! The connection of a Rust worker: asks the daemon to compile, fetches what comes back, loads it.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use piecewised_client::{
    Cache, Capabilities, Client, ClientOptions, CompileRequest, Endpoint, Event, EventKind, Keyring, cache_folder,
    read_graph_file,
};
use piecewised_graph::{
    Handle, ProgramName,
    model::Graph,
    request::{ArtifactFormat, DeviceKind, Toolchain},
};
use piecewised_plan::Plan;
use tch::Device;
use tokio_stream::StreamExt as _;

use crate::{
    Error, FailedEntry, LoadOptions, Piece, Result, initialise,
    libtorch::{base, libtorch_version},
    places::size_in,
};

/// What a worker may choose; [`Self::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Where pieces run, and how they are loaded.
    pub load: LoadOptions,
    /// Bounds of the connection, what this side shows the daemon (what is not named is taken from the environment), and whose code is loaded; a keyring that is left as it is by default is replaced by what `PIECEWISED_TRUSTED_KEYS` and
    /// the cache folder say.
    pub client: ClientOptions,
    /// Where artifacts are kept; `None`: as [`cache_folder`] says, `~/.cache/piecewised` if nothing else is set.
    pub cache_dir: Option<PathBuf>,
}

impl WorkerOptions {
    /// The defaults for a device.
    pub fn new(device: Device) -> Self {
        Self { load: LoadOptions::new(device), client: ClientOptions::default(), cache_dir: None }
    }
}

/// A connection to one daemon, for one device of this process. May be used by several tasks at once.
#[derive(Debug)]
pub struct Worker {
    client: Client,
    cache: Cache,
    load: LoadOptions,
    toolchain: Toolchain,
    device: DeviceKind,
}

/// A request for a piece as it is usually made: fast compile, nothing but the graph and its plan.
pub fn request(graph: Graph, plan: Plan) -> CompileRequest {
    CompileRequest::new(graph, plan, ArtifactFormat::Aoti)
}

impl Worker {
    /// Connects, and makes sure that the daemon compiles what this process can run: by the torch that it has, for its device.
    ///
    /// # Errors
    /// [`Error::Client`]; [`Error::Unsuitable`], which says what the daemon lacks; [`Error::Libtorch`] where this process lacks the device.
    pub async fn connect(endpoint: Endpoint, options: WorkerOptions) -> Result<Self> {
        let load = options.load;
        blocking(move || initialise(load.device)).await?;
        let folder = options
            .cache_dir
            .unwrap_or_else(|| cache_folder(|name| std::env::var(name).ok(), rustix::process::getuid().as_raw()));
        let mut client = options.client;
        if client.keyring.is_unset() {
            client.keyring = Keyring::resolve(None, |name| std::env::var(name).ok(), &folder)?;
        }
        client.credentials = client.credentials.resolve(|name| std::env::var(name).ok());
        let cache = blocking(move || Ok(Cache::open(&folder)?)).await?;
        let ready_timeout = client.ready_timeout;
        let client = Client::connect(endpoint, client).await?;
        let capabilities = ready(&client, ready_timeout).await?;
        let unsuitable = |problem| Error::Unsuitable { endpoint: client.endpoint().to_string(), problem };
        let toolchain = toolchain(&capabilities).map_err(unsuitable)?;
        let device = device(&capabilities, load.device).map_err(unsuitable)?;
        Ok(Self { cache, load, toolchain, device, client })
    }

    /// The connection itself, for what else a daemon can be asked.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Has a piece compiled and loads it, when every entry of its plan is ready. `on_event` is told what happens.
    ///
    /// The request's format, toolchain and device are replaced: they are this process's.
    ///
    /// # Errors
    /// [`Error::NotCompiled`] where some entry could not be; [`Error::Client`]; [`Error::Artifact`] where what came can't be loaded.
    pub async fn compile(&self, request: CompileRequest, mut on_event: impl FnMut(&Event)) -> Result<Piece> {
        let request = CompileRequest {
            format: ArtifactFormat::Aoti,
            toolchain: Some(self.toolchain.clone()),
            device: Some(self.device.clone()),
            ..request
        };
        let size = size_in(&request.graph);
        let mut stream = self.client.compile(request).await?;
        let mut handles: Vec<Option<Handle>> = vec![None; stream.entries().len()];
        let mut failed = Vec::new();
        while let Some(event) = stream.next().await {
            let event = event?;
            on_event(&event);
            match event.kind {
                EventKind::Ready { handle, .. } => handles[event.index] = Some(*handle),
                EventKind::Failed { reason, message, .. } => {
                    failed.push(FailedEntry { range: event.range, reason, message });
                }
                _ => {}
            }
        }
        if !failed.is_empty() {
            return Err(Error::NotCompiled { failed });
        }
        let handles: Vec<Handle> = handles.into_iter().flatten().collect();
        self.load_knowing(handles, size).await
    }

    /// Has the piece of a graph file compiled, which `piecewised.save_graph` wrote, and loads it.
    ///
    /// # Errors
    /// [`Error::GraphFile`]; else as [`Self::compile`].
    pub async fn compile_file(&self, path: impl Into<PathBuf>, on_event: impl FnMut(&Event)) -> Result<Piece> {
        let path = path.into();
        let request = blocking(move || Ok(read_graph_file(&path)?)).await?;
        self.compile(request, on_event).await
    }

    /// Loads every piece of a program that was completed under this name, in order: no graph is needed. Nothing is compiled.
    ///
    /// # Errors
    /// [`Error::Client`] with `NO_SUCH_MANIFEST` where there is none, or with `NO_SUCH_ARTIFACT` where its artifacts are gone; else as [`Self::load`].
    pub async fn program(&self, name: &ProgramName) -> Result<Vec<Piece>> {
        let (manifest, _) = self.client.manifest(name).await?;
        let mut pieces = Vec::with_capacity(manifest.pieces.len());
        for piece in manifest.pieces {
            pieces.push(self.load(piece.handles).await?);
        }
        Ok(pieces)
    }

    /// Fetches and loads what handles of one piece name, one handle for each entry of its plan.
    ///
    /// # Errors
    /// [`Error::Client`] where they can't be fetched; else as [`Piece::load`].
    pub async fn load(&self, handles: Vec<Handle>) -> Result<Piece> {
        self.load_knowing(handles, None).await
    }

    async fn load_knowing(&self, handles: Vec<Handle>, size: Option<(u32, u32)>) -> Result<Piece> {
        let mut folders = Vec::with_capacity(handles.len());
        for handle in &handles {
            folders.push(self.client.fetch(handle, &self.cache).await?.folder);
        }
        let load = self.load;
        blocking(move || Piece::load_knowing(&handles, &folders, &load, size)).await
    }
}

/// What the daemon can do, once it knows: it says so while it still looks at its toolchain.
async fn ready(client: &Client, timeout: Duration) -> Result<Capabilities> {
    let give_up_at = Instant::now() + timeout;
    loop {
        let capabilities = client.capabilities().await?;
        if capabilities.ready {
            return Ok(capabilities);
        }
        if Instant::now() > give_up_at {
            let problem = format!("it is not ready: {}", capabilities.not_ready_reason);
            return Err(Error::Unsuitable { endpoint: client.endpoint().to_string(), problem });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn toolchain(capabilities: &Capabilities) -> std::result::Result<Toolchain, String> {
    if !capabilities.formats.contains(&ArtifactFormat::Aoti) {
        return Err("it makes no AOTInductor packages (format \"aoti\"): it is older than this client".into());
    }
    let here = libtorch_version();
    let fits = |toolchain: &&Toolchain| base(&toolchain.torch_version) == here;
    capabilities.toolchains.iter().find(fits).cloned().ok_or_else(|| {
        let versions: Vec<&str> = capabilities.toolchains.iter().map(|one| one.torch_version.as_str()).collect();
        format!(
            "it compiles with torch {}, and this program has libtorch {here}; start the daemon with a Python that has torch {here}",
            versions.join(", ")
        )
    })
}

fn device(capabilities: &Capabilities, device: Device) -> std::result::Result<DeviceKind, String> {
    let kind = match device {
        Device::Cuda(_) => "cuda",
        _ => "cpu",
    };
    capabilities.devices.iter().find(|one| one.r#type == kind).cloned().ok_or_else(|| {
        let kinds: Vec<&str> = capabilities.devices.iter().map(|one| one.r#type.as_str()).collect();
        format!("it compiles for {}, and this worker runs on {kind}", kinds.join(", "))
    })
}

/// Files and libtorch block; a worker's other tasks go on.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
