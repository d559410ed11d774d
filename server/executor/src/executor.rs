//! One running executor: started, asked, ended.
//!
//! It is asked one thing at a time (`&mut self`), and is either ready for the next job or broken for good: a job that crashed,
//! ran out of time or memory, was answered with nonsense or whose future was dropped leaves nothing that another job could read half of,
//! because the whole group is killed at that moment.

use std::{fmt, future::Future, io, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use piecewised_graph::check_segments;
use tokio::time::Instant;
use tracing::{Instrument, info_span};

use crate::{
    CompileJob, CompileOutcome, ExecutorConfig, ExecutorError, FailureReason, Hello, JobHost, MemoryShortage,
    Placement,
    channel::{Channel, DYING, ENDING, PostMortem, Trouble},
    environment, memory,
    message::{self, Failure, FromExecutor, PROTOCOL, check_verification, shorten},
    process::{Pipes, Process, command},
};

/// The most that is kept of a message for people.
const MAX_MESSAGE_BYTES: usize = 16 << 10;

/// A Python process that has imported torch and compiles one job at a time. Killed with its group when dropped.
pub struct Executor {
    hello: Arc<Hello>,
    channel: Channel,
    is_broken: bool,
    job_deadline: Duration,
    max_artifact_bytes: u64,
    runner: Option<PathBuf>,
}

/// Why a job's conversation ended without an answer.
enum Cut {
    Trouble(Trouble),
    Late,
}

impl From<Trouble> for Cut {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl Executor {
    /// Starts one in an interpreter of its own, and waits until it is ready. [`crate::Launcher::launch`] is faster.
    ///
    /// # Errors
    /// [`ExecutorError::Spawn`], [`ExecutorError::NotReady`], [`ExecutorError::Unusable`] or [`ExecutorError::Protocol`]. Nothing
    /// of it is left then, nor where the future is dropped.
    pub async fn spawn(config: &ExecutorConfig, placement: &Placement) -> Result<Self, ExecutorError> {
        Self::start_fresh(config, placement, None).await
    }

    /// The same; `known` is what an executor of the same toolchain said before.
    pub(crate) async fn start_fresh(
        config: &ExecutorConfig,
        placement: &Placement,
        known: Option<Arc<Hello>>,
    ) -> Result<Self, ExecutorError> {
        let (ours, place) = (config.clone(), placement.clone());
        let started = tokio::task::spawn_blocking(move || start(&ours, &place)).await;
        let (process, pipes) = started
            .map_err(io::Error::other)
            .flatten()
            .map_err(|source| ExecutorError::Spawn { python: config.python.clone(), source })?;
        Self::greet(process, pipes, config, placement, known).await
    }

    /// Waits until a process that was started or forked is ready.
    pub(crate) async fn greet(
        process: Process,
        pipes: Pipes,
        config: &ExecutorConfig,
        placement: &Placement,
        known: Option<Arc<Hello>>,
    ) -> Result<Self, ExecutorError> {
        memory::watch(process.group(), placement.max_memory_bytes);
        let mut channel = Channel::new(process, pipes)
            .map_err(|source| ExecutorError::Spawn { python: config.python.clone(), source })?;
        let not_ready = |problem, tail, was_killed| ExecutorError::NotReady {
            python: config.python.clone(),
            problem,
            tail,
            was_killed,
        };
        let greeting = async {
            let text = message::hello(known.is_some(), placement.frontend.as_deref())
                .map_err(|error| Trouble::Nonsense(error.to_string()))?;
            channel.send(&text, &[]).await?;
            Ok(channel.receive(0).await?.0)
        };
        match tokio::time::timeout(config.ready_deadline, greeting).await {
            Ok(Ok(FromExecutor::Ready { protocol: PROTOCOL, hello })) => {
                let Some(hello) = known.or(hello.map(|hello| Arc::new(*hello))) else {
                    return Err(channel.protocol("`ready` that does not say what it can do".into()).await);
                };
                Ok(Self {
                    hello,
                    channel,
                    is_broken: false,
                    job_deadline: config.job_deadline,
                    max_artifact_bytes: config.max_artifact_bytes,
                    runner: config.runner.clone(),
                })
            }
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
                let PostMortem { status, tail, was_killed, .. } = channel.post_mortem().await;
                Err(not_ready(format!("it {status}"), tail, was_killed))
            }
            Err(_) => {
                channel.process.kill();
                let problem = format!("it was not ready after {} s", config.ready_deadline.as_secs_f64());
                Err(not_ready(problem, channel.journal.tail().await, false))
            }
        }
    }

    /// What the toolchain can do, as its first executor said.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The same, to be kept.
    pub(crate) fn shared_hello(&self) -> Arc<Hello> {
        Arc::clone(&self.hello)
    }

    /// Its process number, which is its group's too.
    pub fn pid(&self) -> u32 {
        self.channel.process.pid()
    }

    /// Whether it can take a job: no earlier one broke it, and its process runs.
    pub fn is_usable(&self) -> bool {
        !self.is_broken && self.channel.process.is_running()
    }

    /// What its process group was last seen to hold of the machine's memory, in bytes; 0 where nobody has looked yet.
    pub fn memory_bytes(&self) -> u64 {
        self.channel.process.group().meter.last()
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
        let text = message::compile(job, self.runner.as_deref())
            .map_err(|error| ExecutorError::BadJob { problem: error.to_string() })?;
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
        let Channel { process, stdin, stdout: _stdout, journal: _journal, .. } = self.channel;
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
        channel.begin_job();
        let answer = talk(channel, job, text, self.max_artifact_bytes, deadline, host).await;
        let peak_memory_bytes = channel.end_job().await;
        match answer {
            Ok(Ok(outcome)) => Ok(CompileOutcome { peak_memory_bytes, ..outcome }),
            Ok(Err(error)) => Err(self.explain(error).await),
            Err(Cut::Trouble(Trouble::Nonsense(problem))) => Err(channel.protocol(problem).await),
            Err(Cut::Trouble(Trouble::Ended)) => {
                let PostMortem { status, tail, shortage, .. } = channel.post_mortem().await;
                Err(match shortage {
                    Some((what, limit_bytes, used_bytes)) => {
                        ExecutorError::OutOfMemory { what, limit_bytes, used_bytes, tail }
                    }
                    None => ExecutorError::Crashed { status, tail },
                })
            }
            Err(Cut::Late) => {
                channel.process.kill();
                Err(ExecutorError::TimedOut { deadline, tail: channel.journal.tail().await })
            }
        }
    }

    /// What a job's failure comes down to, with what the daemon knows of the machine; ends the executor where it cannot go on.
    async fn explain(&self, (reason, message): (Failure, String)) -> ExecutorError {
        let used_bytes = self.channel.process.group().meter.last();
        let is_starved = self.channel.starved_by_system().is_some();
        if reason == Failure::Interrupted && !is_starved {
            self.channel.process.kill();
            let status = format!("was interrupted: {message}");
            return ExecutorError::Crashed { status, tail: self.channel.journal.tail().await };
        }
        let what = match reason {
            // A compiler that the system killed is told as an error of the compile's, and an artifact's process as a crash of the artifact's.
            Failure::OfTheJob(FailureReason::CompileError | FailureReason::VerificationFailed) if is_starved => {
                Some(MemoryShortage::System)
            }
            Failure::Interrupted => Some(MemoryShortage::System),
            Failure::OfTheJob(reason) => return ExecutorError::Failed { reason, message },
            Failure::OutOfMemory => Some(MemoryShortage::Allocation(message.clone())),
            Failure::DeviceFault => None,
        };
        self.channel.process.kill();
        let tail = self.channel.journal.tail().await;
        match what {
            Some(what) => ExecutorError::OutOfMemory { what, limit_bytes: None, used_bytes, tail },
            None => ExecutorError::DeviceFault { message, tail },
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

type Answer = Result<CompileOutcome, (Failure, String)>;

/// The whole exchange of one job. The outer error breaks the executor, the inner one is the job's own.
async fn talk<H: JobHost>(
    channel: &mut Channel,
    job: &CompileJob,
    text: &[u8],
    max_artifact_bytes: u64,
    deadline: Duration,
    host: &mut H,
) -> Result<Answer, Cut> {
    // Of a deadline beyond what a clock can hold, some hundred years are as good.
    let far = Duration::from_secs(1 << 32);
    let mut ends = Instant::now() + deadline.min(far);
    let payload = job.frontend.as_ref().map_or(&[][..], |(_, payload)| payload);
    in_time(ends, channel.send(text, payload)).await?;
    let mut held: Option<H::Lease> = None;
    loop {
        let (answer, blob) = in_time(ends, channel.receive(max_artifact_bytes)).await?;
        match answer {
            FromExecutor::Phase { job: id, phase } if id == job.id => {
                tracing::debug!(target: "executor", phase, "phase");
                host.on_phase(&shorten(phase, 64));
            }
            FromExecutor::Lease { job: id, mode } if id == job.id && held.is_none() => {
                let asked = Instant::now();
                held = Some(tokio::select! {
                    lease = host.lease(mode) => lease,
                    // It sends nothing while it waits, so that only its end tells of its end.
                    _ = channel.process.ended(far) => return Err(Trouble::Ended.into()),
                });
                ends += asked.elapsed();
                let text = message::leased(&job.id).map_err(|error| Trouble::Nonsense(error.to_string()))?;
                in_time(ends, channel.send(&text, &[])).await?;
            }
            FromExecutor::Release { job: id } if id == job.id && held.take().is_some() => {}
            FromExecutor::Failed { job: id, reason, message } if id == job.id => {
                return Ok(Err((reason, shorten(message, MAX_MESSAGE_BYTES))));
            }
            FromExecutor::Done { job: id, mut outcome } if id == job.id => {
                check_segments(&outcome.segments, &outcome.guard_symbols, job.range)
                    .map_err(|problem| Trouble::Nonsense(format!("`done` with segments that don't fit: {problem}")))?;
                if blob.is_empty() {
                    return Err(Trouble::Nonsense("`done` without an artifact".into()).into());
                }
                check_verification(&outcome.verification, job.verify).map_err(Trouble::Nonsense)?;
                outcome.artifact = blob;
                return Ok(Ok(*outcome));
            }
            other => {
                let problem = format!("`{}` that is no answer to job {}", other.name(), job.id);
                return Err(Trouble::Nonsense(problem).into());
            }
        }
    }
}

async fn in_time<T>(ends: Instant, what: impl Future<Output = Result<T, Trouble>>) -> Result<T, Cut> {
    Ok(tokio::time::timeout_at(ends, what).await.map_err(|_| Cut::Late)??)
}

/// Makes the private folder and starts the process in it.
fn start(config: &ExecutorConfig, placement: &Placement) -> io::Result<(Process, Pipes)> {
    let (folder, root) = environment::private_folder(config, "executor-")?;
    let variables = environment::compose(config, placement, &root)?;
    let (pipes, theirs) = Pipes::new()?;
    let streams = [Stdio::from(theirs.stdin), Stdio::from(theirs.stdout), Stdio::from(theirs.stderr)];
    let work = root.join(environment::WORK);
    let command = command(&config.python, "piecewised_executor", &work, variables, streams)?;
    Ok((Process::start(command, folder, config, &root)?, pipes))
}
