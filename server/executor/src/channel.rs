//! The pipes to one executor and the process behind them: frames both ways, and what is left to say when it has ended.

use std::{io, os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tracing::info_span;

use crate::{
    ExecutorError, MemoryShortage,
    frame::{self, Frame, FrameError, MAX_JSON_BYTES},
    journal::Journal,
    memory,
    message::FromExecutor,
    process::{Pipes, Process, describe},
};

/// How long an executor may take to end by itself once it was asked to, or once it closed its output.
pub(crate) const ENDING: Duration = Duration::from_secs(2);

/// How long a killed one is waited for. A process stuck in a driver may take longer; it is left to its thread then.
pub(crate) const DYING: Duration = Duration::from_secs(5);

/// The process with its three pipes.
pub(crate) struct Channel {
    pub(crate) process: Process,
    pub(crate) stdin: ChildStdin,
    pub(crate) stdout: ChildStdout,
    pub(crate) journal: Journal,
    /// What [`memory::n_killed_by_system`] was before the job.
    n_killed_by_system: u64,
}

/// Why there was no message.
pub(crate) enum Trouble {
    /// Its side of the pipes is closed.
    Ended,
    /// It sent something else.
    Nonsense(String),
}

/// How an executor came to its end.
pub(crate) struct PostMortem {
    /// As the end of a sentence that starts with "the executor".
    pub(crate) status: String,
    /// The last that it printed.
    pub(crate) tail: String,
    /// Whether it was killed, by the system or by a person, and did not fail by itself.
    pub(crate) was_killed: bool,
    /// Where it was for want of memory: whose, the limit, and what it held.
    pub(crate) shortage: Option<(MemoryShortage, Option<u64>, u64)>,
}

impl Channel {
    /// Around a process that has just been started.
    pub(crate) fn new(process: Process, Pipes { stdin, stdout, stderr }: Pipes) -> io::Result<Self> {
        // No parent: it outlives the job that it happens to be started for.
        let span = info_span!(target: "executor", parent: None, "executor", executor = process.pid());
        Ok(Self {
            journal: Journal::keep(ChildStderr::from_std(stderr)?, span),
            stdin: ChildStdin::from_std(stdin)?,
            stdout: ChildStdout::from_std(stdout)?,
            process,
            n_killed_by_system: memory::n_killed_by_system(),
        })
    }

    /// A job begins: what goes wrong from now on is looked at as its own.
    pub(crate) fn begin_job(&mut self) {
        self.n_killed_by_system = memory::n_killed_by_system();
        self.process.group().meter.begin();
    }

    /// The job has ended; the most memory that its group was seen to hold.
    pub(crate) async fn end_job(&self) -> u64 {
        let group = self.process.group();
        if group.meter.end() == 0 {
            // It was over before anybody looked.
            let group = group.clone();
            let _ = tokio::task::spawn_blocking(move || memory::sample_now(&group)).await;
        }
        self.process.group().meter.end()
    }

    /// What the group was last seen to hold, where the system has killed processes for want of memory since the job began.
    pub(crate) fn starved_by_system(&self) -> Option<u64> {
        (memory::n_killed_by_system() > self.n_killed_by_system).then(|| self.process.group().meter.last())
    }

    pub(crate) async fn send(&mut self, text: &[u8], blob: &[u8]) -> Result<(), Trouble> {
        frame::write(&mut self.stdin, text, blob).await.map_err(|_| Trouble::Ended)
    }

    pub(crate) async fn receive(&mut self, max_blob_bytes: u64) -> Result<(FromExecutor, bytes::Bytes), Trouble> {
        match frame::read(&mut self.stdout, MAX_JSON_BYTES, max_blob_bytes).await {
            Ok(Some(Frame { json, blob })) => {
                let message = serde_json::from_slice(&json).map_err(|error| {
                    let start: String = String::from_utf8_lossy(&json).chars().take(200).collect();
                    Trouble::Nonsense(format!("a message that is not understood ({error}): {start:?}"))
                })?;
                Ok((message, blob))
            }
            Ok(None) | Err(FrameError::Io(_) | FrameError::Truncated) => Err(Trouble::Ended),
            Err(error) => Err(Trouble::Nonsense(error.to_string())),
        }
    }

    /// How it ended. It is dead afterwards.
    pub(crate) async fn post_mortem(&self) -> PostMortem {
        let ended = self.process.ended(ENDING).await;
        let status = match ended {
            Some(status) => describe(status),
            None => {
                self.process.kill();
                self.process.ended(DYING).await;
                "closed its output without ending, and was killed".to_owned()
            }
        };
        let was_killed = ended.is_some_and(was_killed);
        PostMortem { status, tail: self.journal.tail().await, was_killed, shortage: self.shortage(ended) }
    }

    fn shortage(&self, ended: Option<ExitStatus>) -> Option<(MemoryShortage, Option<u64>, u64)> {
        if let Some((limit, used)) = self.process.group().meter.went_over() {
            return Some((MemoryShortage::Limit, Some(limit), used));
        }
        let was_killed = ended.is_some_and(was_killed);
        let used = self.starved_by_system().filter(|_| was_killed)?;
        Some((MemoryShortage::System, None, used))
    }

    /// Ends it, since what it sent is not in the protocol.
    pub(crate) async fn protocol(&self, problem: String) -> ExecutorError {
        self.process.kill();
        ExecutorError::Protocol { problem, tail: self.journal.tail().await }
    }
}

/// Whether it ended by the one signal with which the system kills.
fn was_killed(ended: ExitStatus) -> bool {
    ended.signal() == Some(rustix::process::Signal::KILL.as_raw())
}
