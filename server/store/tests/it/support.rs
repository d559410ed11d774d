//! What the tests share: handles and artifacts made from numbers, and this program started again as another process.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use piecewised_graph::{
    Digest, Handle, Segment, Timings,
    request::{ArtifactFormat, DeviceKind, Toolchain},
};
use piecewised_store::{OpenReport, Store, StoreConfig};
use tempfile::TempDir;

/// Bytes that nothing else has, the same for the same seed.
pub(crate) fn bytes(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// Artifacts of very different sizes, small ones more often.
pub(crate) fn artifact(seed: u64) -> Bytes {
    let sizes = [0, 1, 700, 4096, 4097, 20_000, 20_000, 60_000, 300_000];
    bytes(seed, sizes[usize::try_from(seed % 9).unwrap()])
}

pub(crate) fn key(n: u64) -> Digest {
    Digest::of(format!("key {n}").as_bytes())
}

pub(crate) fn handle(key: Digest, artifact: &[u8]) -> Handle {
    Handle {
        key,
        graph_digest: Digest::of(b"graph"),
        range: None,
        digest: Digest::of(artifact),
        size_bytes: artifact.len() as u64,
        format: ArtifactFormat::Inductor,
        toolchain: Toolchain {
            fingerprint: Digest::of(b"toolchain").to_string(),
            python_version: "3.11".into(),
            torch_version: "2.11.0+cu130".into(),
            torch_git_version: "70d99e998b4955e0049d13a98d77ae1b14db1f45".into(),
            triton_version: "3.6.0".into(),
            cuda_version: "13.0".into(),
            executable: "/usr/bin/python3".into(),
        },
        device: DeviceKind { r#type: "cuda".into(), name: "NVIDIA H200".into(), capability: "9.0".into() },
        segments: vec![Segment { range: None, entry: "whole".into(), guards: Vec::new() }],
        dispatch_argument: Some(0),
        hint: Some(16),
        returns_tuple: true,
        n_arguments: 7,
        timings: Timings::default(),
        created_unix_ms: 1_760_000_000_000,
        guard_symbols: Vec::new(),
        verification: Default::default(),
        tuning: Default::default(),
        latencies: Vec::new(),
        key_record: Default::default(),
        signature: None,
    }
}

/// A handle whose JSON is too long for the index.
pub(crate) fn long_handle(key: Digest, artifact: &[u8]) -> Handle {
    let segment =
        |n| Segment { range: None, entry: format!("part-{n:03}-with-a-name-of-some-length"), guards: Vec::new() };
    Handle { segments: (0..200).map(segment).collect(), ..handle(key, artifact) }
}

pub(crate) fn config(path: &Path) -> StoreConfig {
    StoreConfig { reserve_bytes: 0, ..StoreConfig::new(path) }
}

pub(crate) async fn open(path: &Path) -> (Store, OpenReport) {
    Store::open(config(path)).await.unwrap()
}

/// All of an artifact, in pieces.
pub(crate) async fn read(store: &Store, digest: &Digest) -> Option<Vec<u8>> {
    let reader = store.open_artifact(digest).await.unwrap()?;
    let mut all = Vec::new();
    loop {
        let piece = reader.read_at(all.len() as u64, 64 << 10).await.unwrap();
        if piece.is_empty() {
            assert_eq!(reader.total_bytes(), all.len() as u64);
            return Some(all);
        }
        all.extend_from_slice(&piece);
    }
}

/// That `handle` is there with its artifact.
pub(crate) async fn assert_stored(store: &Store, handle: &Handle, artifact: &[u8]) {
    assert_eq!(store.get(&handle.key).await.unwrap().as_ref(), Some(handle));
    assert!(read(store, &handle.digest).await.as_deref() == Some(artifact), "{}", handle.digest);
}

/// The artifact files there are, by name, sorted.
pub(crate) fn artifact_files(store: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for shard in fs::read_dir(store.join("artifacts")).unwrap() {
        for file in fs::read_dir(shard.unwrap().path()).unwrap() {
            names.push(file.unwrap().file_name().into_string().unwrap());
        }
    }
    names.sort();
    names
}

/// Every regular file below `path`.
pub(crate) fn files_below(path: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

pub(crate) fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Says on the terminal that something could not be tried here.
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn skipped(what: &str, why: &str) {
    eprintln!("SKIPPED {what}: {why}");
}

/// Random numbers, the same for the same seed.
pub(crate) struct Dice(blake3::OutputReader);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(blake3::Hasher::new().update(b"dice").update(&seed.to_le_bytes()).finalize_xof())
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % end.max(1)
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// A temporary folder in memory where there is one: for tests of many writes that do not depend on a disk.
pub(crate) fn memory_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A file system mounted on a folder of its own, and unmounted at the end.
pub(crate) struct Mount {
    dir: TempDir,
}

impl Mount {
    /// Mounts as `mount` does with these arguments and a folder; the error says why that cannot be done here.
    pub(crate) fn new(args: &[&str]) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        run("mount", args.iter().map(OsStr::new).chain([dir.path().as_os_str()]))?;
        Ok(Self { dir })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run("umount", [OsStr::new("-l"), self.dir.path().as_os_str()]);
    }
}

/// Runs a program to its end; the error is what it says.
pub(crate) fn run(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    let said = || format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    if output.status.success() { Ok(()) } else { Err(said()) }
}

const CHILD_PATH: &str = "PIECEWISED_STORE_TEST_CHILD";

/// Starts this program again with nothing to do but the test `name`, which finds the path by [`child_path`].
pub(crate) fn start_child(name: &str, path: &Path, stderr: impl Into<Stdio>) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env(CHILD_PATH, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap()
}

/// In a child: the path that it was started with.
pub(crate) fn child_path() -> Option<PathBuf> {
    std::env::var_os(CHILD_PATH).map(PathBuf::from)
}

/// Waits for what another process or thread is about to do.
pub(crate) fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if is_there() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{what} does not come");
}
