//! A real daemon for these tests: the binary, without a Python interpreter, which needs none to say who may call.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use piecewised_client::{Client, ClientError, ClientOptions, Credentials, Endpoint};
use tempfile::TempDir;

/// Long enough for a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Daemon {
    pub(crate) folder: TempDir,
    process: Child,
}

impl Daemon {
    /// Starts one in the folder with these flags, and waits until it listens everywhere.
    pub(crate) fn start(folder: TempDir, flags: &[&str]) -> Self {
        // Others have to get to the socket.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let process = command(folder.path(), flags).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut daemon = Self { folder, process };
        let n_addresses = 1 + flags.iter().filter(|flag| ["--listen-tcp", "--listen-http"].contains(flag)).count();
        daemon.until("it listens", |daemon| daemon.log().matches("listening on ").count() >= n_addresses);
        daemon
    }

    /// What it says when it refuses to start, and its exit code.
    pub(crate) fn refused(flags: &[&str]) -> (i32, String) {
        let folder = tempfile::tempdir().unwrap();
        let Output { status, stderr, .. } = command(folder.path(), flags).output().unwrap();
        (status.code().unwrap(), String::from_utf8(stderr).unwrap())
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("s.sock")
    }

    pub(crate) fn unix(&self) -> Endpoint {
        Endpoint::Unix(self.socket())
    }

    /// Where it listens on TCP, by the name that its certificate has.
    pub(crate) fn tcp(&self) -> Endpoint {
        let log = self.log();
        let line = log.lines().find_map(|line| line.strip_prefix("listening on http")).unwrap();
        format!("http{}", line.replace("127.0.0.1", "localhost")).parse().unwrap()
    }

    /// Where it listens for HTTP.
    pub(crate) fn http(&self) -> String {
        let log = self.log();
        let line = log.lines().find_map(|line| line.strip_prefix("listening on http://")?.strip_suffix('/'));
        line.unwrap().to_owned()
    }

    /// A metric, as its name and labels are written.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect(self.http()).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("there is no {name} in {text}")).parse().unwrap()
    }

    /// Waits for something that the daemon does by itself.
    pub(crate) fn until(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let started = Instant::now();
        while !is_so(self) {
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "the daemon ended with {ended:?}: {}", self.log());
            assert!(started.elapsed() < PATIENCE, "{what} does not come: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a command of `piecewised` against the socket, as another user and group where they are given.
    pub(crate) fn ask(&self, words: &[&str], who: Option<(u32, u32)>) -> Result<String, String> {
        use std::os::unix::process::CommandExt as _;
        // Where others can execute it.
        let program = self.folder.path().join("piecewised");
        if !program.exists() {
            fs::copy(env!("CARGO_BIN_EXE_piecewised"), &program).unwrap();
        }
        let mut command = Command::new(&program);
        command.args(words).arg("--endpoint").arg(self.unix().to_string()).env_clear();
        if let Some((uid, gid)) = who {
            command.uid(uid).gid(gid);
        }
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn command(folder: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_piecewised"));
    command
        .arg("serve")
        .args(flags)
        .arg("--socket")
        .arg(folder.join("s.sock"))
        .arg("--store-dir")
        .arg(folder.join("store"));
    // Nothing of the caller's environment; and no python3 on the path.
    command.env_clear().env("PATH", "/nonexistent").env("TMPDIR", folder).stdin(Stdio::null());
    command
}

/// A client that shows these.
pub(crate) async fn client(endpoint: &Endpoint, credentials: &Credentials) -> Result<Client, ClientError> {
    let options = ClientOptions { credentials: credentials.clone(), ..ClientOptions::default() };
    Client::connect(endpoint.clone(), options).await
}

/// What becomes of asking for the status: nothing, or the reason why not.
pub(crate) async fn asked(endpoint: &Endpoint, credentials: &Credentials) -> Result<(), ClientError> {
    client(endpoint, credentials).await?.status().await.map(drop)
}
