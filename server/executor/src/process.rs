//! One executor's process group and private folder, from the start to the last trace.
//!
//! A thread per executor waits for the process, because that must not depend on anybody polling: when the leader has ended, for
//! whatever reason, the thread kills what it left of its group, reaps it, and removes the folder. The leader is reaped only under
//! the lock that [`Process::kill`] takes, so a signal never goes to a number that the system has given to somebody else.
//!
//! The parent-death signal is not used: it fires when the *thread* that started the child ends. An executor watches its stdin
//! instead, and kills its group when the daemon is gone.
//!
//! Left out: descendants that move to another process group. Nothing in torch does that.

use std::{
    fs, io,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::runtime::remove_persistently;

/// The executor's end of its three pipes.
pub(crate) struct Pipes {
    pub(crate) stdin: ChildStdin,
    pub(crate) stdout: ChildStdout,
    pub(crate) stderr: ChildStderr,
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

/// A running executor; killed with its group when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    group: Arc<Group>,
    stage: watch::Receiver<Stage>,
}

#[derive(Debug)]
struct Group {
    leader: Pid,
    /// Whether the leader was reaped, so that its number may be another process's.
    reaped: Mutex<bool>,
}

impl Process {
    /// Starts `command` as the leader of a group of its own; `folder` is removed when it has ended.
    pub(crate) fn start(mut command: Command, folder: TempDir, nice: u8) -> io::Result<(Self, Pipes)> {
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let pid = child.id();
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("the system made no pipes"));
        };
        let leader = Pid::from_child(&child);
        if nice > 0 {
            // Only a courtesy: without it the executor works all the same.
            let _ = rustix::process::setpriority_pgrp(Some(leader), i32::from(nice));
        }
        // When memory runs out, the system should take an executor and not the daemon or the inference engine.
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), "500");

        let group = Arc::new(Group { leader, reaped: Mutex::new(false) });
        let (tell, stage) = watch::channel(Stage::Running);
        let process = Self { group: group.clone(), stage };
        thread::Builder::new().name(format!("reap-{pid}")).spawn(move || reap(child, &group, folder, &tell))?;
        Ok((process, Pipes { stdin, stdout, stderr }))
    }

    /// The leader's process number.
    pub(crate) fn pid(&self) -> u32 {
        self.group.leader.as_raw_nonzero().get().unsigned_abs()
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
    fn kill(&self) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*reaped {
            // The only ways to fail are that nobody is left and that one changed its user; neither can be helped.
            let _ = rustix::process::kill_process_group(self.leader, Signal::KILL);
        }
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
fn reap(mut child: Child, group: &Group, folder: TempDir, tell: &watch::Sender<Stage>) {
    // NOWAIT: the leader stays a zombie, and its number its own, until the group was killed.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while matches!(rustix::process::waitid(WaitId::Pid(group.leader), options), Err(rustix::io::Errno::INTR)) {}
    let status = {
        let mut reaped = group.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = rustix::process::kill_process_group(group.leader, Signal::KILL);
        let status = child.wait();
        *reaped = true;
        // Waiting for one's own child fails only where somebody else reaped it; how it ended is lost then.
        status.unwrap_or_else(|_| ExitStatus::from_raw(0))
    };
    tell.send_replace(Stage::Ended(status));
    adopt_and_reap(group.leader);
    let path = folder.keep();
    if let Err(error) = remove_persistently(&path) {
        tracing::warn!(folder = %path.display(), %error, "cannot remove an executor's temporary folder");
    }
    tell.send_replace(Stage::Gone(status));
}

/// Reaps members of the group that became the daemon's children, as they do where it is process 1 of a container.
fn adopt_and_reap(group: Pid) {
    for _ in 0..100 {
        match rustix::process::waitid(WaitId::Pgid(Some(group)), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => thread::sleep(Duration::from_millis(20)),
            Err(_) => return,
        }
    }
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
        9 => ("SIGKILL", " (out of memory?)"),
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
            (9, "was killed by SIGKILL (out of memory?)"),
            (11 | 0x80, "was killed by SIGSEGV (a fault in native code: compiler or driver)"),
            (34, "was killed by signal 34"),
        ] {
            assert_eq!(describe(ExitStatus::from_raw(raw)), words);
        }
    }
}
