//! The first process of a container: whoever has the number 1 is given every process whose parent has ended, and has to wait for it, or it stays as a zombie.
//!
//! A daemon waits for its own executors only, so where it would be number 1 it is started as a child, and this process does nothing but pass signals on, wait for whatever is
//! given to it, and end as the daemon does. Elsewhere none of this is done.

use std::{env, io, process};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};

/// Signals that are the daemon's business.
const FORWARDED: [(SignalKind, Signal); 6] = [
    (SignalKind::terminate(), Signal::TERM),
    (SignalKind::interrupt(), Signal::INT),
    (SignalKind::hangup(), Signal::HUP),
    (SignalKind::quit(), Signal::QUIT),
    (SignalKind::user_defined1(), Signal::USR1),
    (SignalKind::user_defined2(), Signal::USR2),
];

/// Whether this process is the first one.
pub(crate) fn is_first() -> bool {
    process::id() == 1
}

/// Runs this program once more, with the same arguments, until it ends; the code to end with.
pub(crate) fn run() -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the child is there: none of its signals is missed.
        let mut ended = signal(SignalKind::child())?;
        let (tell, mut asked) = tokio::sync::mpsc::channel(16);
        for (kind, name) in FORWARDED {
            let (mut signals, tell) = (signal(kind)?, tell.clone());
            tokio::spawn(async move { while signals.recv().await.is_some() && tell.send(name).await.is_ok() {} });
        }
        let program = env::current_exe().context("cannot tell which program this is")?;
        let mut command = process::Command::new(&program);
        let child = command.args(env::args_os().skip(1)).spawn();
        let child = child.with_context(|| format!("cannot start {}", program.display()))?;
        let daemon = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a child has a number")?;
        loop {
            if let Some(status) = reap(daemon)? {
                return Ok(code(status));
            }
            tokio::select! {
                _ = ended.recv() => {}
                // It may have ended just now.
                Some(name) = asked.recv() => drop(kill_process(daemon, name)),
            }
        }
    })
}

/// Waits for all that have ended; how the daemon has, if it is among them.
fn reap(daemon: Pid) -> io::Result<Option<WaitStatus>> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == daemon => return Ok(Some(status)),
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// As shells say it.
fn code(status: WaitStatus) -> u8 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
