//! Writing in /proc, which CUDA needs: it names its threads there (`/proc/self/task/N/comm`, opened to be written anew). Where it may not, `cuInit` fails with
//! 304, "OS call failed" (driver 580.159.04).
//!
//! Rules on files name what is there when they are made, and the processes that start CUDA are not there yet. So all of /proc can be written where this
//! machine has an NVIDIA GPU, as far as the user may write there. Of other users' processes that is nothing, and of this user's what needs no look into their
//! memory, which Landlock forbids: their `oom_score_adj`, say. To root the kernel's settings are open too (`/proc/sys`, `/proc/sysrq-trigger`). They are made
//! read-only in a mount namespace, as container runtimes do it, and nothing that Landlock binds can mount.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, unshare};
use rustix::{
    fs::{Access, AtFlags, CWD},
    mount::{MountFlags, MountPropagationFlags},
};

use crate::placement;

const PROC: &str = "/proc";

/// What a process of the wrong kind could have the kernel run: whoever may write it may all.
const SETTING: &str = "/proc/sys/kernel/core_pattern";

/// How executors find /proc.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Procfs {
    /// Not to be written.
    #[default]
    Closed,
    /// To be written as far as the user may.
    Open,
    /// The same, in a mount namespace where the kernel's settings are read-only.
    Shielded,
}

impl Procfs {
    /// What this machine and this user need. Restricts the calling thread for good, where it has to be tried.
    ///
    /// # Errors
    /// A clause that says why executors cannot be given /proc.
    pub(super) fn needed() -> Result<Self, String> {
        if placement::is_for_cuda() { Self::for_cuda() } else { Ok(Self::Closed) }
    }

    /// Where it lies, if executors write there.
    pub(super) fn written(self) -> Option<PathBuf> {
        (self != Self::Closed).then(|| PROC.into())
    }

    /// What CUDA needs, whether or not there is a GPU.
    pub(super) fn for_cuda() -> Result<Self, String> {
        // Containers have them read-only already, and users other than root may not write them.
        if !is_writable(SETTING) {
            return Ok(Self::Open);
        }
        shield().map(|()| Self::Shielded).map_err(|error| {
            format!(
                "CUDA writes in /proc, where the daemon's user may write the kernel's settings, and they cannot be made read-only for executors ({error}); run \
                 the daemon as a user of its own"
            )
        })
    }
}

/// Has the calling thread, and what it starts, find in /proc nothing to write but what belongs to processes.
pub(super) fn shield() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What is mounted elsewhere later is seen, and what is mounted here is not seen elsewhere.
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    for entry in fs::read_dir(PROC)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let is_process = entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
        let path = entry.path();
        // Links lead to what belongs to processes.
        if is_process || kind.is_symlink() || (kind.is_file() && !is_writable(&path)) {
            continue;
        }
        rustix::mount::mount_bind(&path, &path)?;
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount_remount(&path, flags, "")?;
    }
    Ok(())
}

/// Whether this process may write it; not where it lies on a file system that is read-only.
fn is_writable(path: impl AsRef<Path>) -> bool {
    rustix::fs::accessat(CWD, path.as_ref(), Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}
