//! The daemon's side of a zygote (`zygote.py`): started once per toolchain, asked for executors over a socket.
//!
//! A request carries the executor's three pipes as file descriptors, and its environment. The exchange blocks, with a bound on
//! every wait, since the answer takes milliseconds and must not be left half-read by a future that is dropped.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, IoSlice, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::Pid,
};
use serde::Deserialize;
use tokio::process::ChildStderr;
use tracing::info_span;

use crate::{
    ExecutorConfig, ExecutorError, Placement,
    channel::{DYING, ENDING},
    confine, environment,
    journal::Journal,
    message::{self, shorten},
    process::{Pipes, Process, TheirPipes, command, describe},
};

/// For an answer of one that is well: a step of warming, on a machine that is busy, and a fork.
const ANSWER: Duration = Duration::from_secs(60);

const MAX_ANSWER_BYTES: u32 = 64 << 10;

/// A process that executors are forked from. Killed when dropped; the executors go on.
pub(crate) struct Zygote {
    process: Process,
    control: Mutex<UnixStream>,
    journal: Journal,
}

/// Why there is no zygote, or no executor from it.
#[derive(Debug)]
pub(crate) enum ZygoteError {
    /// The interpreter cannot compile at all, forked or not.
    Executor(ExecutorError),
    /// It compiles, and cannot be forked from.
    Refused(String),
    /// It ended, hangs or talks nonsense; another one may do better.
    Broken(String),
    /// There is something wrong with this process or with the disk, and nothing with the zygote.
    Io(io::Error),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FromZygote {
    Ready { import_s: f64, refusal: String },
    Unusable { reason: String },
    Forked { pid: i32 },
    Refused { reason: String },
    Well { is_warm: bool },
}

impl Zygote {
    /// Starts one and waits until it can fork. `frontend`: what it imports beside torch.
    pub(crate) async fn start(config: &ExecutorConfig, frontend: Option<&str>) -> Result<Self, ZygoteError> {
        let ours = config.clone();
        let spawn = |source| ZygoteError::Executor(ExecutorError::Spawn { python: config.python.clone(), source });
        let started = tokio::task::spawn_blocking(move || start(&ours)).await.map_err(io::Error::other);
        let (process, control, stderr) = started.flatten().map_err(spawn)?;
        // Until it is ready: should this future be dropped, so is the process.
        let span = info_span!(target: "executor", parent: None, "zygote", zygote = process.pid());
        let journal = Journal::keep(ChildStderr::from_std(stderr).map_err(spawn)?, span);
        let hello = message::hello(false, frontend).map_err(|error| ZygoteError::Broken(error.to_string()))?;
        let mut stream = control.try_clone().map_err(spawn)?;
        let deadline = config.ready_deadline;
        let answer = blocking(move || exchange(&mut stream, &hello, &[], &[], deadline)).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let status = match process.ended(ENDING).await {
                    Some(status) => describe(status),
                    None => format!("was not ready ({error})"),
                };
                let tail = journal.tail().await;
                let last = tail.lines().last().map(|line| format!("; the last it printed was: {line}"));
                return Err(ZygoteError::Broken(format!("it {status}{}", last.unwrap_or_default())));
            }
        };
        match answer {
            FromZygote::Ready { import_s, refusal } if refusal.is_empty() => {
                tracing::debug!(zygote = process.pid(), import_s, "executors are forked from now on");
                Ok(Self { process, control: Mutex::new(control), journal })
            }
            FromZygote::Ready { refusal: reason, .. } | FromZygote::Refused { reason } => {
                Err(ZygoteError::Refused(reason))
            }
            FromZygote::Unusable { reason } => Err(ZygoteError::Executor(ExecutorError::Unusable {
                python: config.python.clone(),
                reason: shorten(reason, 16 << 10),
            })),
            other => Err(ZygoteError::Broken(format!("it answered `hello` with {other:?}"))),
        }
    }

    /// Whether its process runs.
    pub(crate) fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Forks an executor, which is this process's child.
    pub(crate) async fn fork(
        self: &Arc<Self>,
        config: &ExecutorConfig,
        placement: &Placement,
    ) -> Result<(Process, Pipes), ZygoteError> {
        let (zygote, config, placement) = (Arc::clone(self), config.clone(), placement.clone());
        let forked = tokio::task::spawn_blocking(move || {
            let (folder, root) = environment::private_folder(&config, "executor-").map_err(ZygoteError::Io)?;
            let mut variables = environment::compose(&config, &placement, &root).map_err(ZygoteError::Io)?;
            if let Some(inner) = confine::Inner::of(&config, &root) {
                let text = serde_json::to_string(&inner).map_err(|error| ZygoteError::Io(error.into()))?;
                variables.insert(confine::VARIABLE.into(), text.into());
            }
            let (pipes, TheirPipes { stdin, stdout, stderr }) = Pipes::new().map_err(ZygoteError::Io)?;
            let fds = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
            match zygote.ask(br#"{"fork":{}}"#, &joined(&variables), &fds)? {
                FromZygote::Forked { pid } => {
                    let leader = Pid::from_raw(pid).ok_or_else(|| ZygoteError::Broken("no process number".into()))?;
                    // Not its parent: then nothing that it forks can be waited for.
                    let process =
                        Process::adopt(leader, folder).map_err(|error| ZygoteError::Refused(error.to_string()))?;
                    Ok((process, pipes))
                }
                other => Err(unexpected(other)),
            }
        });
        forked.await.map_err(|error| ZygoteError::Io(io::Error::other(error)))?
    }

    /// Whether it still answers and can fork; and whether it has done all of its warming.
    pub(crate) async fn check(self: &Arc<Self>) -> Result<bool, ZygoteError> {
        let zygote = Arc::clone(self);
        let checked = tokio::task::spawn_blocking(move || match zygote.ask(br#"{"check":{}}"#, &[], &[])? {
            FromZygote::Well { is_warm } => Ok(is_warm),
            other => Err(unexpected(other)),
        });
        checked.await.map_err(|error| ZygoteError::Io(io::Error::other(error)))?
    }

    /// Kills it.
    pub(crate) fn kill(&self) {
        self.process.kill();
    }

    /// Kills it and waits for its end.
    pub(crate) async fn end(&self) {
        self.process.kill();
        if self.process.gone(DYING).await.is_none() {
            tracing::warn!(zygote = self.pid(), "a killed zygote has not ended yet");
        }
    }

    /// The last that it printed.
    pub(crate) async fn tail(&self) -> String {
        self.journal.tail().await
    }

    fn ask(&self, text: &[u8], blob: &[u8], fds: &[BorrowedFd<'_>]) -> Result<FromZygote, ZygoteError> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        exchange(&mut control, text, blob, fds, ANSWER).map_err(|error| {
            // Half of an exchange may be in the socket.
            self.process.kill();
            ZygoteError::Broken(error.to_string())
        })
    }
}

fn unexpected(answer: FromZygote) -> ZygoteError {
    match answer {
        FromZygote::Refused { reason } => ZygoteError::Refused(reason),
        other => ZygoteError::Broken(format!("an answer to another question: {other:?}")),
    }
}

async fn blocking<T: Send + 'static>(what: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(what).await.map_err(io::Error::other)?
}

/// `NAME=value`, each with a NUL after it, which neither can hold.
fn joined(variables: &BTreeMap<OsString, OsString>) -> Vec<u8> {
    let mut blob = Vec::new();
    for (name, value) in variables {
        for part in [name.as_bytes(), b"=", value.as_bytes(), b"\0"] {
            blob.extend_from_slice(part);
        }
    }
    blob
}

fn start(config: &ExecutorConfig) -> io::Result<(Process, UnixStream, std::process::ChildStderr)> {
    let (folder, root) = environment::private_folder(config, "zygote-")?;
    let variables = environment::compose(config, &Placement::default(), &root)?;
    let (control, theirs) = UnixStream::pair()?;
    let (stderr, their_stderr) = io::pipe()?;
    // What it prints goes the way of what an executor prints.
    let streams =
        [Stdio::from(OwnedFd::from(theirs)), Stdio::from(their_stderr.try_clone()?), Stdio::from(their_stderr)];
    let work = root.join(environment::WORK);
    let command = command(&config.python, "piecewised_executor.zygote", &work, variables, streams)?;
    // Into the folders of those that it will fork: each of them binds itself to its own.
    Ok((Process::start(command, folder, config, &config.temp_root)?, control, OwnedFd::from(stderr).into()))
}

fn exchange(
    control: &mut UnixStream,
    text: &[u8],
    blob: &[u8],
    fds: &[BorrowedFd<'_>],
    limit: Duration,
) -> io::Result<FromZygote> {
    control.set_read_timeout(Some(limit))?;
    control.set_write_timeout(Some(limit))?;
    let n_text = u32::try_from(text.len()).map_err(io::Error::other)?;
    let frame = [&n_text.to_be_bytes(), &(blob.len() as u64).to_be_bytes()[..], text, blob].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("more file descriptors than a request has"));
    }
    let n_sent = sendmsg(&*control, &[IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL)?;
    control.write_all(&frame[n_sent..])?;

    let mut head = [0; 12];
    control.read_exact(&mut head)?;
    let [j0, j1, j2, j3, ..] = head;
    let n_answer = u32::from_be_bytes([j0, j1, j2, j3]);
    if n_answer > MAX_ANSWER_BYTES || head[4..] != [0; 8] {
        return Err(io::Error::other("an answer that is not understood"));
    }
    let mut answer = vec![0; n_answer as usize];
    control.read_exact(&mut answer)?;
    serde_json::from_slice(&answer).map_err(io::Error::other)
}
