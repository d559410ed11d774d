//! One process group of ours and its private folder, from the start to the last trace.
//!
//! A thread per process waits for it, because that must not depend on anybody polling: when the leader has ended, for
//! whatever reason, the thread kills what it left of its group, reaps it, and removes the folder. The leader is reaped only under
//! the lock that [`Process::kill`] takes, so a signal never goes to a number that the system has given to somebody else.
//!
//! An executor that a zygote forked is the daemon's child too: [`become_subreaper`] makes the daemon the parent of what becomes an orphan among
//! its descendants. So both kinds end in the same ways, and what a group leaves behind can be reaped.
//!
//! The parent-death signal is not used. It fires when the *thread* that is the parent ends, and it reaches the leader alone, which is
//! then too dead to end its compilers. Executors watch for the daemon's end of their stdin instead, from two processes, and kill the whole
//! group (`guard.py`).
//!
//! Left out: descendants that move to another process group. Nothing in torch does that.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::{ExecutorConfig, confine, memory::Meter, runtime::remove_persistently};

/// The daemon's end of an executor's three pipes.
pub(crate) struct Pipes {
    pub(crate) stdin: ChildStdin,
    pub(crate) stdout: ChildStdout,
    pub(crate) stderr: ChildStderr,
}

/// The executor's end of them.
pub(crate) struct TheirPipes {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Pipes {
    /// Three new pipes.
    pub(crate) fn new() -> io::Result<(Self, TheirPipes)> {
        let (their_stdin, stdin) = io::pipe()?;
        let (stdout, their_stdout) = io::pipe()?;
        let (stderr, their_stderr) = io::pipe()?;
        let ours = Self {
            stdin: OwnedFd::from(stdin).into(),
            stdout: OwnedFd::from(stdout).into(),
            stderr: OwnedFd::from(stderr).into(),
        };
        let theirs = TheirPipes { stdin: their_stdin.into(), stdout: their_stdout.into(), stderr: their_stderr.into() };
        Ok((ours, theirs))
    }
}

/// Makes this process the parent of those of its descendants whose own parent ends. Without it they would be the init process's, and what a
/// zygote forks could not be waited for.
pub(crate) fn become_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// How far the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    /// The leader has ended and its group was killed.
    Ended(ExitStatus),
    /// The folder is removed too.
    Gone(ExitStatus),
}

/// A running process; killed with its group when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    group: Arc<Group>,
    stage: watch::Receiver<Stage>,
}

/// A process group that can be killed for as long as it is known to be ours, and what it holds of the machine's memory.
#[derive(Debug)]
pub(crate) struct Group {
    leader: Pid,
    /// Whether the leader was reaped, so that its number may be another process's.
    reaped: Mutex<bool>,
    pub(crate) meter: Meter,
}

impl Process {
    /// Starts `command` as the leader of a group of its own, confined to writing below `own`; `folder` is removed when it has ended.
    pub(crate) fn start(
        mut command: Command,
        folder: TempDir,
        config: &ExecutorConfig,
        own: &Path,
    ) -> io::Result<Self> {
        let child = confine::run(config, own, || command.process_group(0).spawn())?;
        let leader = Pid::from_child(&child);
        confine::limit(config, leader);
        let nice = config.nice;
        if nice > 0 {
            // Only a courtesy: without it the executor works all the same. What a zygote forks inherits it.
            let _ = rustix::process::setpriority_pgrp(Some(leader), i32::from(nice));
        }
        // When memory runs out, the system should take an executor and not the daemon or the inference engine.
        let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), "500");
        // It is waited for by its number, as those are that somebody else forked.
        drop(child);
        Self::watch(leader, folder)
    }

    /// Takes over a child of this process that leads a group of its own and that nobody else waits for.
    pub(crate) fn adopt(leader: Pid, folder: TempDir) -> io::Result<Self> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if let Err(error) = rustix::process::waitid(WaitId::Pid(leader), options) {
            // Nobody would reap it; its number is its own for as long as it runs, which it does, waiting for us.
            let _ = rustix::process::kill_process_group(leader, Signal::KILL);
            return Err(io::Error::other(format!("the forked process is not this one's child: {error}")));
        }
        Self::watch(leader, folder)
    }

    fn watch(leader: Pid, folder: TempDir) -> io::Result<Self> {
        let group = Arc::new(Group { leader, reaped: Mutex::new(false), meter: Meter::default() });
        let (tell, stage) = watch::channel(Stage::Running);
        let process = Self { group: group.clone(), stage };
        let name = format!("reap-{}", process.pid());
        thread::Builder::new().name(name).spawn(move || reap(&group, folder, &tell))?;
        Ok(process)
    }

    /// The leader's process number.
    pub(crate) fn pid(&self) -> u32 {
        self.group.leader.as_raw_nonzero().get().unsigned_abs()
    }

    /// Its group.
    pub(crate) fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// Kills the whole group; nothing happens where it has ended.
    pub(crate) fn kill(&self) {
        self.group.kill();
    }

    /// A handle that can only kill, for a guard that lives beside a borrow of this.
    pub(crate) fn killer(&self) -> Killer {
        Killer { group: Some(self.group.clone()) }
    }

    /// Whether the leader still runs.
    pub(crate) fn is_running(&self) -> bool {
        *self.stage.borrow() == Stage::Running
    }

    /// Waits until the leader has ended and its group was killed; none where that takes longer than `limit`.
    pub(crate) async fn ended(&self, limit: Duration) -> Option<ExitStatus> {
        self.reaches(limit, |stage| *stage != Stage::Running).await
    }

    /// Waits until nothing is left, the folder included; none where that takes longer than `limit`.
    pub(crate) async fn gone(&self, limit: Duration) -> Option<ExitStatus> {
        self.reaches(limit, |stage| matches!(stage, Stage::Gone(_))).await
    }

    async fn reaches(&self, limit: Duration, stage: impl FnMut(&Stage) -> bool) -> Option<ExitStatus> {
        let mut watched = self.stage.clone();
        let reached = tokio::time::timeout(limit, watched.wait_for(stage)).await.ok()?.ok()?;
        match *reached {
            Stage::Ended(status) | Stage::Gone(status) => Some(status),
            Stage::Running => None,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Group {
    /// Kills all of it; nothing happens where the leader was reaped.
    pub(crate) fn kill(&self) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*reaped {
            // The only ways to fail are that nobody is left and that one changed its user; neither can be helped.
            let _ = rustix::process::kill_process_group(self.leader, Signal::KILL);
        }
    }

    /// Its number.
    pub(crate) fn id(&self) -> i32 {
        self.leader.as_raw_nonzero().get()
    }
}

/// Kills the group when dropped, unless it was told not to.
pub(crate) struct Killer {
    group: Option<Arc<Group>>,
}

impl Killer {
    /// Lets the group live.
    pub(crate) fn defuse(mut self) {
        self.group = None;
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        if let Some(group) = &self.group {
            group.kill();
        }
    }
}

/// Waits for the leader and clears away everything of it.
fn reap(group: &Group, folder: TempDir, tell: &watch::Sender<Stage>) {
    // NOWAIT: the leader stays a zombie, and its number its own, until the group was killed.
    wait_for(group.leader, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    let status = {
        let mut reaped = group.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = rustix::process::kill_process_group(group.leader, Signal::KILL);
        let status = wait_for(group.leader, WaitIdOptions::EXITED);
        *reaped = true;
        // Waiting for one's own child fails only where somebody else reaped it; how it ended is lost then.
        status.unwrap_or_else(|| ExitStatus::from_raw(0))
    };
    tell.send_replace(Stage::Ended(status));
    adopt_and_reap(group.leader);
    let path = folder.keep();
    if let Err(error) = remove_persistently(&path) {
        tracing::warn!(folder = %path.display(), %error, "cannot remove an executor's temporary folder");
    }
    tell.send_replace(Stage::Gone(status));
}

fn wait_for(leader: Pid, options: WaitIdOptions) -> Option<ExitStatus> {
    loop {
        match rustix::process::waitid(WaitId::Pid(leader), options) {
            Ok(status) => return status.as_ref().map(as_exit_status),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

fn as_exit_status(status: &WaitIdStatus) -> ExitStatus {
    let raw = match (status.terminating_signal(), status.exit_status()) {
        (Some(signal), _) => signal,
        (None, Some(code)) => (code & 0xff) << 8,
        (None, None) => 0,
    };
    ExitStatus::from_raw(raw)
}

/// Reaps members of the group that became the daemon's children when their parents ended.
fn adopt_and_reap(group: Pid) {
    for _ in 0..100 {
        match rustix::process::waitid(WaitId::Pgid(Some(group)), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => thread::sleep(Duration::from_millis(20)),
            Err(_) => return,
        }
    }
}

/// A command that starts `module` of the executor's source with nothing but `variables` in its environment, in `folder`.
pub(crate) fn command(
    python: &Path,
    module: &str,
    folder: &Path,
    variables: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
    [stdin, stdout, stderr]: [Stdio; 3],
) -> io::Result<Command> {
    // Absolute, because the working directory is another one.
    let python = if python.components().count() > 1 { std::path::absolute(python)? } else { python.to_owned() };
    let mut command = Command::new(python);
    command
        .args(["-u", "-m", module])
        .current_dir(folder)
        .env_clear()
        .envs(variables)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr);
    Ok(command)
}

/// How a process ended, as the end of a sentence that starts with "the executor".
pub(crate) fn describe(status: ExitStatus) -> String {
    let Some(number) = status.signal() else {
        return match status.code() {
            Some(code) => format!("ended with exit code {code}"),
            None => format!("ended: {status}"),
        };
    };
    let (name, meaning) = match number {
        1 => ("SIGHUP", ""),
        2 => ("SIGINT", ""),
        3 => ("SIGQUIT", ""),
        4 => ("SIGILL", " (an instruction that this processor does not have)"),
        6 => ("SIGABRT", " (a failed check in native code)"),
        7 => ("SIGBUS", " (a fault in native code, or a full disk or shared memory)"),
        8 => ("SIGFPE", " (a fault in native code)"),
        9 => ("SIGKILL", ""),
        11 => ("SIGSEGV", " (a fault in native code: compiler or driver)"),
        13 => ("SIGPIPE", ""),
        14 => ("SIGALRM", ""),
        15 => ("SIGTERM", ""),
        24 => ("SIGXCPU", " (its limit of CPU time)"),
        25 => ("SIGXFSZ", " (its limit of file size)"),
        31 => ("SIGSYS", " (a system call that is not allowed here)"),
        _ => return format!("was killed by signal {number}"),
    };
    format!("was killed by {name}{meaning}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_told_in_words() {
        for (raw, words) in [
            (3 << 8, "ended with exit code 3"),
            (9, "was killed by SIGKILL"),
            (11 | 0x80, "was killed by SIGSEGV (a fault in native code: compiler or driver)"),
            (34, "was killed by signal 34"),
        ] {
            assert_eq!(describe(ExitStatus::from_raw(raw)), words);
        }
    }
}
