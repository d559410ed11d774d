//! One running executor: started, asked, ended.
//!
//! It is asked one thing at a time (`&mut self`), and is either ready for the next job or broken for good: a job that crashed,
//! ran out of time, was answered with nonsense or whose future was dropped leaves nothing that another job could read half of,
//! because the whole group is killed at that moment.

use std::{fmt, fs::Permissions, io, os::unix::fs::PermissionsExt, process::Command, time::Duration};

use piecewised_graph::check_segments;
use tokio::process::{ChildStdin, ChildStdout};
use tracing::{Instrument, info_span};

use crate::{
    CompileJob, CompileOutcome, ExecutorConfig, ExecutorError, Hello, JobHost, Placement, environment,
    frame::{self, Frame, FrameError, MAX_JSON_BYTES},
    journal::Journal,
    message::{self, FromExecutor, PROTOCOL, check_verification, shorten},
    process::{Pipes, Process, describe},
};

/// How long an executor may take to end by itself once it was asked to, or once it closed its output.
const ENDING: Duration = Duration::from_secs(2);

/// How long a killed one is waited for. A process stuck in a driver may take longer; it is left to its thread then.
const DYING: Duration = Duration::from_secs(5);

/// The most that is kept of a message for people.
const MAX_MESSAGE_BYTES: usize = 16 << 10;

/// A Python process that has imported torch and compiles one job at a time. Killed with its group when dropped.
pub struct Executor {
    hello: Hello,
    channel: Channel,
    is_broken: bool,
    job_deadline: Duration,
    max_artifact_bytes: u64,
}

/// The process with its three pipes.
struct Channel {
    process: Process,
    stdin: ChildStdin,
    stdout: ChildStdout,
    journal: Journal,
}

/// Why there was no message.
enum Trouble {
    /// Its side of the pipes is closed.
    Ended,
    /// It sent something else.
    Nonsense(String),
}

impl Executor {
    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    /// [`ExecutorError::Spawn`], [`ExecutorError::NotReady`], [`ExecutorError::Unusable`] or [`ExecutorError::Protocol`]. Nothing
    /// of it is left then, nor where the future is dropped.
    pub async fn spawn(config: &ExecutorConfig, placement: &Placement) -> Result<Self, ExecutorError> {
        let mut channel = Channel::open(config, placement)
            .await
            .map_err(|source| ExecutorError::Spawn { python: config.python.clone(), source })?;
        let not_ready = |problem, tail| ExecutorError::NotReady { python: config.python.clone(), problem, tail };
        match tokio::time::timeout(config.ready_deadline, channel.greet()).await {
            Ok(Ok(FromExecutor::Ready { protocol: PROTOCOL, hello })) => Ok(Self {
                hello: *hello,
                channel,
                is_broken: false,
                job_deadline: config.job_deadline,
                max_artifact_bytes: config.max_artifact_bytes,
            }),
            Ok(Ok(FromExecutor::Ready { protocol, .. })) => {
                Err(channel.protocol(format!("it speaks version {protocol}, this daemon {PROTOCOL}")).await)
            }
            Ok(Ok(FromExecutor::Unusable { reason })) => Err(ExecutorError::Unusable {
                python: config.python.clone(),
                reason: shorten(reason, MAX_MESSAGE_BYTES),
            }),
            Ok(Ok(other)) => Err(channel.protocol(format!("`{}` in answer to `hello`", other.name())).await),
            Ok(Err(Trouble::Nonsense(problem))) => Err(channel.protocol(problem).await),
            Ok(Err(Trouble::Ended)) => {
                let (status, tail) = channel.post_mortem().await;
                Err(not_ready(format!("it {status}"), tail))
            }
            Err(_) => {
                channel.process.kill();
                let problem = format!("it was not ready after {} s", config.ready_deadline.as_secs_f64());
                Err(not_ready(problem, channel.journal.tail().await))
            }
        }
    }

    /// What it said of itself when it became ready.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Its process number, which is its group's too.
    pub fn pid(&self) -> u32 {
        self.channel.process.pid()
    }

    /// Whether it can take a job: no earlier one broke it, and its process runs.
    pub fn is_usable(&self) -> bool {
        !self.is_broken && self.channel.process.is_running()
    }

    /// Compiles `job`; `host` hears of each phase as it begins, and grants leases.
    ///
    /// Everything that the executor prints meanwhile is logged within a span that carries the job's id, itself within the
    /// caller's. Dropping the future kills the executor.
    ///
    /// # Errors
    /// See [`ExecutorError`]; where [`ExecutorError::executor_can_go_on`] is false the executor is gone.
    pub async fn compile(
        &mut self,
        job: &CompileJob,
        host: &mut impl JobHost,
    ) -> Result<CompileOutcome, ExecutorError> {
        if self.is_broken {
            return Err(ExecutorError::Broken);
        }
        let text = message::compile(job).map_err(|error| ExecutorError::BadJob { problem: error.to_string() })?;
        if u32::try_from(text.len()).is_err() {
            return Err(ExecutorError::BadJob { problem: format!("its graph has {} bytes", text.len()) });
        }

        let span = info_span!(target: "executor", "compile", job = %job.id, executor = self.pid());
        self.channel.journal.set_span(span.clone());
        self.is_broken = true; // Until it has answered: should the future be dropped, it stays so.
        let killer = self.channel.process.killer();
        let result = self.converse(job, &text, host).instrument(span).await;
        if result.as_ref().err().is_none_or(ExecutorError::executor_can_go_on) {
            killer.defuse();
            self.is_broken = false;
        }
        result
    }

    /// Ends it: asks by closing its stdin, waits a moment, kills. Returns when its folder is gone too.
    pub async fn shutdown(self) {
        let Channel { process, stdin, stdout: _stdout, journal: _journal } = self.channel;
        drop(stdin);
        if process.ended(ENDING).await.is_none() {
            process.kill();
        }
        if process.gone(DYING).await.is_none() {
            tracing::warn!(executor = process.pid(), "a killed executor has not ended yet");
        }
    }

    async fn converse(
        &mut self,
        job: &CompileJob,
        text: &[u8],
        host: &mut impl JobHost,
    ) -> Result<CompileOutcome, ExecutorError> {
        let deadline = self.job_deadline.min(job.deadline);
        let channel = &mut self.channel;
        match tokio::time::timeout(deadline, channel.compile(job, text, self.max_artifact_bytes, host)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(Trouble::Nonsense(problem))) => Err(channel.protocol(problem).await),
            Ok(Err(Trouble::Ended)) => {
                let (status, tail) = channel.post_mortem().await;
                Err(ExecutorError::Crashed { status, tail })
            }
            Err(_) => {
                channel.process.kill();
                Err(ExecutorError::TimedOut { deadline, tail: channel.journal.tail().await })
            }
        }
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("pid", &self.pid())
            .field("python", &self.hello.toolchain.executable)
            .field("is_usable", &self.is_usable())
            .finish_non_exhaustive()
    }
}

impl Channel {
    async fn open(config: &ExecutorConfig, placement: &Placement) -> io::Result<Self> {
        let (config, placement) = (config.clone(), placement.clone());
        let (process, Pipes { stdin, stdout, stderr }) =
            tokio::task::spawn_blocking(move || start(&config, &placement)).await.map_err(io::Error::other)??;
        // No parent: it outlives the job that it happens to be started for.
        let span = info_span!(target: "executor", parent: None, "executor", executor = process.pid());
        Ok(Self {
            journal: Journal::keep(tokio::process::ChildStderr::from_std(stderr)?, span),
            stdin: ChildStdin::from_std(stdin)?,
            stdout: ChildStdout::from_std(stdout)?,
            process,
        })
    }

    async fn greet(&mut self) -> Result<FromExecutor, Trouble> {
        let text = message::hello().map_err(|error| Trouble::Nonsense(error.to_string()))?;
        self.send(&text).await?;
        Ok(self.receive(0).await?.0)
    }

    /// The whole exchange of one job. The outer error breaks the executor, the inner one is the job's own.
    async fn compile(
        &mut self,
        job: &CompileJob,
        text: &[u8],
        max_artifact_bytes: u64,
        host: &mut impl JobHost,
    ) -> Result<Result<CompileOutcome, ExecutorError>, Trouble> {
        self.send(text).await?;
        loop {
            let (answer, blob) = self.receive(max_artifact_bytes).await?;
            match answer {
                FromExecutor::Phase { job: id, phase } if id == job.id => {
                    tracing::debug!(target: "executor", phase, "phase");
                    host.on_phase(&shorten(phase, 64));
                }
                FromExecutor::Failed { job: id, reason, message } if id == job.id => {
                    let message = shorten(message, MAX_MESSAGE_BYTES);
                    return Ok(Err(ExecutorError::Failed { reason, message }));
                }
                FromExecutor::Done { job: id, mut outcome } if id == job.id => {
                    check_segments(&outcome.segments, &outcome.guard_symbols, job.range).map_err(|problem| {
                        Trouble::Nonsense(format!("`done` with segments that don't fit: {problem}"))
                    })?;
                    if blob.is_empty() {
                        return Err(Trouble::Nonsense("`done` without an artifact".into()));
                    }
                    check_verification(&outcome.verification, job.verify).map_err(Trouble::Nonsense)?;
                    outcome.artifact = blob;
                    return Ok(Ok(*outcome));
                }
                other => {
                    return Err(Trouble::Nonsense(format!("`{}` that is no answer to job {}", other.name(), job.id)));
                }
            }
        }
    }

    async fn send(&mut self, text: &[u8]) -> Result<(), Trouble> {
        frame::write(&mut self.stdin, text).await.map_err(|_| Trouble::Ended)
    }

    async fn receive(&mut self, max_blob_bytes: u64) -> Result<(FromExecutor, bytes::Bytes), Trouble> {
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

    /// How it ended, in words, and the last it printed. It is dead afterwards.
    async fn post_mortem(&self) -> (String, String) {
        let status = match self.process.ended(ENDING).await {
            Some(status) => describe(status),
            None => {
                self.process.kill();
                self.process.ended(DYING).await;
                "closed its output without ending, and was killed".to_owned()
            }
        };
        (status, self.journal.tail().await)
    }

    async fn protocol(&self, problem: String) -> ExecutorError {
        self.process.kill();
        ExecutorError::Protocol { problem, tail: self.journal.tail().await }
    }
}

/// Makes the private folder and starts the process in it.
fn start(config: &ExecutorConfig, placement: &Placement) -> io::Result<(Process, Pipes)> {
    let folder = tempfile::Builder::new()
        .prefix("executor-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(&config.temp_root)?;
    for name in environment::FOLDERS {
        std::fs::create_dir(folder.path().join(name))?;
    }
    // Absolute, because the working directory is another one.
    let source_dir = std::path::absolute(&config.source_dir)?;
    let root = std::path::absolute(folder.path())?;
    let python = if config.python.components().count() > 1 {
        std::path::absolute(&config.python)?
    } else {
        config.python.clone()
    };
    let headers_dir = config.headers_dir.as_deref().map(std::path::absolute).transpose()?;
    let variables = environment::compose(
        &config.environment,
        &config.extra_environment,
        &source_dir,
        &root,
        headers_dir.as_deref(),
        placement.n_compile_threads.or(config.n_compile_threads),
    );
    let mut command = Command::new(python);
    command
        .args(["-u", "-m", "piecewised_executor"])
        .current_dir(root.join(environment::WORK))
        .env_clear()
        .envs(variables);
    Process::start(command, folder, config.nice)
}
