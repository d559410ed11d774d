//! What the tests of this crate share: a real daemon, a worker of it, and graphs that it compiles for them.
#![allow(dead_code, clippy::unwrap_used, reason = "each test binary uses its part; a failure here is the test's")]

use std::{
    env, fs,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use piecewised_client::{Client, ClientOptions, CompileRequest, Endpoint, EventKind};
use piecewised_graph::Handle;
use piecewised_plan::{Plan, Range};
use piecewised_tch::{GraphBuilder, Worker, WorkerOptions, request};
use tch::{Device, Kind, Tensor};
use tokio_stream::StreamExt as _;

/// The daemon that all tests of a binary ask. Artifacts are kept between one and the next.
pub(crate) struct Daemon {
    process: Child,
    pub(crate) folder: PathBuf,
}

/// A test's use of the daemon: it ends with the last that does.
pub(crate) struct Shared(Option<Arc<Daemon>>);

/// What runs, while somebody uses it. Held while a daemon starts or ends, since the next one lies in the same folder.
static RUNNING: Mutex<Option<Arc<Daemon>>> = Mutex::new(None);

impl Deref for Shared {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        self.0.as_ref().unwrap()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        self.0 = None;
        if running.as_ref().is_some_and(|daemon| Arc::strong_count(daemon) == 1) {
            *running = None;
        }
    }
}

pub(crate) fn variable(name: &str) -> PathBuf {
    env::var_os(name).map(PathBuf::from).unwrap_or_else(|| panic!("{name} is not set; `make test-rust` sets it"))
}

/// The daemon, started unless another test has.
pub(crate) fn daemon() -> Shared {
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    Shared(Some(running.get_or_insert_with(|| Arc::new(start())).clone()))
}

fn start() -> Daemon {
    start_of(&variable("PIECEWISED_TEST_PYTHON"), "", &[])
}

/// A daemon of a test's own, for another interpreter, with other flags.
pub(crate) fn daemon_of(python: &Path, flags: &[&str]) -> Daemon {
    start_of(python, "-own", flags)
}

fn start_of(python: &Path, suffix: &str, flags: &[&str]) -> Daemon {
    // Short: a socket's path has to fit 108 bytes.
    let folder = env::temp_dir().join(format!("pw-tch-{}{suffix}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let log = fs::File::create(folder.join("log")).unwrap();
    let process = Command::new(variable("PIECEWISED_TEST_DAEMON"))
        .arg("serve")
        .arg("--python")
        .arg(python)
        .arg("--socket")
        .arg(folder.join("socket"))
        .arg("--store-dir")
        .arg(folder.join("store"))
        // As the other tests' daemons: each would make the same.
        .arg("--headers-dir")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/test-headers"))
        .args(flags)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut started = Daemon { process, folder };
    let until = Instant::now() + Duration::from_secs(60);
    while !started.folder.join("socket").exists() {
        let has_ended = started.process.try_wait().unwrap().is_some();
        assert!(!has_ended && Instant::now() < until, "the daemon does not listen:\n{}", started.log());
        thread::sleep(Duration::from_millis(20));
    }
    started
}

impl Daemon {
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.folder.join("socket"))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    pub(crate) fn options(&self) -> WorkerOptions {
        self.options_for(Device::Cpu)
    }

    pub(crate) fn options_for(&self, device: Device) -> WorkerOptions {
        let client = ClientOptions { ready_timeout: Duration::from_secs(120), ..ClientOptions::default() };
        WorkerOptions { client, cache_dir: Some(self.folder.join("cache")), ..WorkerOptions::new(device) }
    }

    pub(crate) async fn worker(&self) -> Worker {
        Worker::connect(self.endpoint(), self.options()).await.unwrap()
    }

    /// The handles of a request, and the folders of their artifacts.
    pub(crate) async fn artifacts(&self, request: CompileRequest) -> (Vec<Handle>, Vec<PathBuf>) {
        // Waits until the daemon is ready.
        self.worker().await;
        let client = Client::connect(self.endpoint(), ClientOptions::default()).await.unwrap();
        let cache = piecewised_client::Cache::open(&self.folder.join("cache")).unwrap();
        let mut stream = client.compile(request).await.unwrap();
        let mut handles = vec![None; stream.entries().len()];
        while let Some(event) = stream.next().await {
            let event = event.unwrap();
            match event.kind {
                EventKind::Ready { handle, .. } => handles[event.index] = Some(*handle),
                EventKind::Failed { message, .. } => panic!("{message}"),
                _ => {}
            }
        }
        let handles: Vec<Handle> = handles.into_iter().map(Option::unwrap).collect();
        let mut folders = Vec::new();
        for handle in &handles {
            folders.push(client.fetch(handle, &cache).await.unwrap().folder);
        }
        (handles, folders)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // As a service manager does, so that its executors end with it.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// `x[n, 16]` is scaled in place; returns gelu(x @ weight) and the rows' sums.
pub(crate) fn scaled() -> CompileRequest {
    scaled_on(Device::Cpu)
}

pub(crate) fn scaled_on(device: Device) -> CompileRequest {
    let mut graph = GraphBuilder::new(device);
    let n = graph.symbol("n");
    let x = graph.tensor("x", Kind::Float, [n, 16.into()]);
    let weight = graph.tensor("weight", Kind::Float, [16.into(), 16.into()]);
    let x = graph.call_method("mul_", &x, [2.0.into()]);
    let product = graph.call("torch.matmul", [(&x).into(), weight.into()]);
    let gated = graph.call_with("torch._C._nn.gelu", [product.into()], [("approximate", "tanh".into())]);
    let sums = graph.call("torch.sum", [x.into(), 1.into()]);
    request(graph.finish([gated, sums]).unwrap(), plan(&[(1, 8), (9, 64)], &[4]))
}

/// The same by tch, of a copy: the two outputs, and `x` afterwards.
pub(crate) fn scaled_eagerly(x: &Tensor, weight: &Tensor) -> [Tensor; 3] {
    let x = x * 2.0;
    [x.matmul(weight).gelu("tanh"), x.sum_dim_intlist(1, false, Kind::Float), x]
}

pub(crate) fn plan(ranges: &[(i64, i64)], sizes: &[i64]) -> Plan {
    let ranges: Vec<Range> = ranges.iter().map(|&(start, end)| Range::new(start, end).unwrap()).collect();
    Plan::new(&ranges, sizes).unwrap()
}

pub(crate) fn random(sizes: &[i64]) -> Tensor {
    Tensor::randn(sizes, (Kind::Float, Device::Cpu))
}

pub(crate) fn assert_close(found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size());
    assert!(found.allclose(expected, 1e-4, 1e-5, false), "{found} instead of {expected}");
}

/// A copy of an artifact's folder, to be changed.
pub(crate) fn copied(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let status = Command::new("cp").arg("-r").arg(folder.join(".")).arg(copy.path()).status().unwrap();
    assert!(status.success());
    copy
}

/// Changes the manifest of an artifact.
pub(crate) fn change_manifest(folder: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let path = folder.join("manifest.json");
    let mut manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
}
