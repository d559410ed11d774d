//! Which processes at the other end of a socket are this daemon's own executors, or were started by them.
//!
//! They are its descendants: what an executor leaves behind when it ends is given to the daemon, which is a subreaper. A descendant alone need not be one:
//! where the daemon is the first process of a container, or took the place of a shell that had started others, those are its children too. But what
//! an executor starts has the executor's filters of system calls, and never fewer.

use std::{fs, process};

use super::{Confinement, Measure};

/// Parents between a process and the daemon; far more than there are.
const MAX_DEPTH: usize = 256;

/// How often it is tried again because a parent ended while it was looked at.
const MAX_TRIES: usize = 4;

impl Confinement {
    /// Whether a process is an executor or was started by one. One of the daemon's own user `uid` that has ended meanwhile counts as one: nobody is there to be
    /// answered, and what it left its connection to is not known. 0, which the system says for processes of other containers, is none.
    pub fn is_executor(&self, pid: u32, is_same_user: bool) -> bool {
        if self.in_force.is_empty() || pid == 0 {
            return false;
        }
        match descends(pid) {
            Some(true) if self.has(Measure::Network) => match (n_filters(pid), n_filters(process::id())) {
                (Some(theirs), Some(ours)) => theirs > ours,
                _ => true,
            },
            Some(descends) => descends,
            // Others' processes may be invisible.
            None => is_same_user,
        }
    }
}

/// Whether this process is above another; none: that cannot be found out.
fn descends(pid: u32) -> Option<bool> {
    let own = process::id();
    'tries: for _ in 0..MAX_TRIES {
        let mut at = pid;
        for _ in 0..MAX_DEPTH {
            if at == 0 {
                return Some(false);
            }
            at = match parent(at) {
                Some(parent) if parent == own => return Some(true),
                Some(parent) => parent,
                None if at == pid => return None,
                // It ended, and its children have another parent now.
                None => continue 'tries,
            };
        }
    }
    None
}

fn parent(pid: u32) -> Option<u32> {
    field(pid, "PPid:")
}

/// How many filters of system calls a process has; none: kernels before 5.9 do not say.
fn n_filters(pid: u32) -> Option<u32> {
    field(pid, "Seccomp_filters:")
}

fn field(pid: u32, name: &str) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        process::{Child, Command, Stdio},
    };

    use super::*;
    use crate::{ExecutorConfig, confine};

    /// A shell that tells the number of a process that it started itself, and waits for both.
    fn shell(config: &ExecutorConfig) -> (Child, u32) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 1000 & echo $!; read line; kill $!"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = confine::run(config, &config.temp_root, || command.spawn()).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (child, line.trim().parse().unwrap())
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn what_was_started_confined_is_an_executor_and_what_was_not_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let confinement = Confinement::strongest(Vec::new()).unwrap();
        let mut config = ExecutorConfig::new("python3", folder.path(), folder.path());
        let (free, started_by_free) = shell(&config);
        config.confinement = confinement.clone().into();
        let (confined, started_by_confined) = shell(&config);

        for pid in [confined.id(), started_by_confined] {
            assert!(confinement.is_executor(pid, true));
            assert!(!Confinement::off().is_executor(pid, true));
        }
        if confinement.has(Measure::Network) {
            assert!([free.id(), started_by_free].iter().all(|pid| !confinement.is_executor(*pid, true)));
        }
        for pid in [0, 1, process::id()] {
            assert!(!confinement.is_executor(pid, true));
        }
        let ended = confined.id();
        end(confined);
        assert!(confinement.is_executor(ended, true) && !confinement.is_executor(ended, false));
        end(free);
    }
}
