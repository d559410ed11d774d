//! The daemon's private folder: the executors' source and their temporary folders.
//!
//! It is made anew at each start, mode 0700, and removed when dropped. One that a killed daemon left behind is known by its lock
//! file, which nobody holds any more, and removed by the next daemon that starts.
//!
//! Left out: anything that must survive a restart.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

const PREFIX: &str = "piecewised-run-";
const LOCK: &str = "lock";

/// A private folder that ends with its owner.
#[derive(Debug)]
pub struct RuntimeFolder {
    path: PathBuf,
    /// Given up after the folder is removed: one that is not locked is anybody's to remove.
    _lock: File,
}

impl RuntimeFolder {
    /// Makes one in `base`, after removing those there whose daemon is gone.
    ///
    /// # Errors
    /// Where `base` cannot be written to.
    pub fn create(base: &Path) -> io::Result<Self> {
        fs::create_dir_all(base)?;
        sweep(base);
        // Again, should a daemon that starts at the same moment take the new folder for a dead one's before it is locked.
        for _ in 0..8 {
            let folder =
                tempfile::Builder::new().prefix(PREFIX).permissions(Permissions::from_mode(0o700)).tempdir_in(base)?;
            let made = File::create(folder.path().join(LOCK)).and_then(|lock| {
                lock.try_lock()?;
                // Gone between the two: an unlinked file can be locked too.
                fs::metadata(folder.path().join(LOCK))?;
                Ok(lock)
            });
            if let Ok(lock) = made {
                return Ok(Self { path: folder.keep(), _lock: lock });
            }
        }
        Err(io::Error::other(format!("cannot make a private folder in {}", base.display())))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder in it, made where it is missing.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn subfolder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.path().join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

impl Drop for RuntimeFolder {
    fn drop(&mut self) {
        if let Err(error) = remove_persistently(&self.path) {
            tracing::warn!(folder = %self.path.display(), %error, "cannot remove the private folder; the next daemon will");
        }
    }
}

/// Removes a folder, also against a killed process that is still finishing a write there. Blocks for up to a second.
pub(crate) fn remove_persistently(path: &Path) -> io::Result<()> {
    for _ in 0..50 {
        match fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
    fs::remove_dir_all(path)
}

/// Removes the folders of daemons that are gone. What cannot be looked at or removed is left alone.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    let uid = rustix::process::geteuid().as_raw();
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == uid);
        if !is_ours {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join(LOCK)) else { continue };
        if lock.try_lock().is_ok() {
            match fs::remove_dir_all(entry.path()) {
                Ok(()) => {
                    tracing::info!(folder = %entry.path().display(), "removed what an earlier daemon left behind")
                }
                Err(error) => {
                    tracing::warn!(folder = %entry.path().display(), %error, "cannot remove a dead daemon's folder")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_private_and_ends_with_its_owner() {
        let base = tempfile::tempdir().unwrap();
        let folder = RuntimeFolder::create(base.path()).unwrap();
        let path = folder.path().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_daemons_folder_is_removed_and_a_living_ones_is_not() {
        let base = tempfile::tempdir().unwrap();
        let living = RuntimeFolder::create(base.path()).unwrap();
        let dead = base.path().join("piecewised-run-dead");
        fs::create_dir_all(dead.join("executors/executor-x")).unwrap();
        File::create(dead.join(LOCK)).unwrap();
        let other = base.path().join("piecewised-something-else");
        fs::create_dir(&other).unwrap();

        let second = RuntimeFolder::create(base.path()).unwrap();
        assert!(!dead.exists());
        assert!(living.path().exists() && second.path().exists() && other.exists());
    }
}
