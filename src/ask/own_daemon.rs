//! A daemon for the time of one command: `piecewised serve` as a child, on a socket that only this command knows, drained at the end.

use std::{
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use piecewised_client::{Client, ClientOptions, Endpoint};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{exit::Exit, signals::Shutdown, surroundings::Surroundings};

/// Between two looks whether it listens.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// It ended otherwise than it was told to; its own words are on stderr.
#[derive(Debug, thiserror::Error)]
#[error("the daemon that was started ended with {status}; what it says is above")]
pub(crate) struct OwnDaemonEnded {
    status: ExitStatus,
}

impl OwnDaemonEnded {
    /// The daemon's own code, where it means something.
    pub(crate) fn exit(&self) -> Exit {
        [Exit::Usage, Exit::NoToolchain, Exit::InUse]
            .into_iter()
            .find(|exit| self.status.code() == Some(*exit as i32))
            .unwrap_or(Exit::Failure)
    }
}

/// A daemon that is this process's own.
#[derive(Debug)]
pub(super) struct OwnDaemon {
    process: Child,
    client: Client,
    /// Its socket is in there.
    _folder: TempDir,
}

impl OwnDaemon {
    /// Starts one on a store and waits until it listens.
    pub(super) async fn start(
        store: &Path,
        flags: &[String],
        surroundings: &Surroundings,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Self> {
        // Short: a socket's path may have some hundred characters.
        let folder = TempDir::with_prefix_in("piecewised-", surroundings.default_temp_dir());
        let folder = folder.context("cannot make a folder for the daemon's socket")?;
        let socket = folder.path().join("s");
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--socket").arg(&socket).arg("--store-dir").arg(store).args(flags);
        if surroundings.variable("PIECEWISED_LOG").is_none() {
            command.env("PIECEWISED_LOG", "warn");
        }
        // A terminal's Ctrl-C is for this process, which then has the daemon drain.
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).kill_on_drop(true);
        let mut process = command.spawn().context("cannot start a daemon")?;
        let client = loop {
            if let Some(status) = process.try_wait().context("cannot wait for the daemon")? {
                return Err(OwnDaemonEnded { status }.into());
            }
            if socket.exists()
                && let Ok(client) = Client::connect(Endpoint::Unix(socket.clone()), ClientOptions::default()).await
            {
                break client;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = shutdown.drain.cancelled() => anyhow::bail!("it was told to end before the daemon listened"),
            }
        };
        Ok(Self { process, client, _folder: folder })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Has it drain, and waits for its end: what it acknowledged is durable and the store is closed then.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        let asked = self.client.admin().drain().await;
        if asked.is_err() && self.process.try_wait().context("cannot wait for the daemon")?.is_none() {
            // It does not answer: it ends when this is dropped.
            asked.context("cannot have the daemon end in order")?;
        }
        let status = self.process.wait().await.context("cannot wait for the daemon")?;
        if status.success() { Ok(()) } else { Err(OwnDaemonEnded { status }.into()) }
    }
}
