//! Files that are read again when they change: certificates and tokens are replaced while the daemon runs.
//!
//! They are looked at once a second, by number, time and length, which works for every way of replacing a file (in place, by renaming, by a link that
//! an orchestrator turns). What cannot be used leaves what was there before, and is said.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, Weak},
    time::Duration,
};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// What some files say now. Clones share it.
#[derive(Debug)]
pub(crate) struct Watched<T>(Arc<RwLock<Arc<T>>>);

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Whatever changes when a file does.
#[derive(Debug, PartialEq, Eq)]
struct Stamp(Vec<Option<[i128; 5]>>);

impl Stamp {
    fn of(paths: &[PathBuf]) -> Self {
        let one = |path: &PathBuf| {
            let found = fs::metadata(path).ok()?;
            Some([
                found.dev().into(),
                found.ino().into(),
                found.mtime().into(),
                found.mtime_nsec().into(),
                found.len().into(),
            ])
        };
        Self(paths.iter().map(one).collect())
    }
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads the files, and again whenever one of them changes, as long as somebody has this. `what` names them in the log.
    ///
    /// # Errors
    /// Those of `load`, the first time.
    pub(crate) fn start<E: std::error::Error + Send + Sync + 'static>(
        what: &'static str,
        paths: Vec<PathBuf>,
        load: impl Fn() -> Result<T, E> + Send + 'static,
    ) -> Result<Self, E> {
        // Before the first read: a change in between is seen.
        let stamp = Stamp::of(&paths);
        let watched = Self(Arc::new(RwLock::new(Arc::new(load()?))));
        tokio::spawn(watch(what, paths, load, stamp, Arc::downgrade(&watched.0)));
        Ok(watched)
    }

    /// What they say now.
    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn watch<T, E>(
    what: &'static str,
    paths: Vec<PathBuf>,
    load: impl Fn() -> Result<T, E> + Send + 'static,
    mut stamp: Stamp,
    place: Weak<RwLock<Arc<T>>>,
) where
    T: Send + Sync + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(place) = place.upgrade() else { return };
        // A handful of small files, once a second.
        let now = Stamp::of(&paths);
        if now == stamp {
            continue;
        }
        stamp = now;
        match load() {
            Ok(value) => {
                *place.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                tracing::info!("{what} changed and were read again");
            }
            Err(error) => {
                tracing::error!("{what} changed and cannot be used; those from before stay in force: {error}")
            }
        }
    }
}

/// Refuses a file with secrets that others could have read or written.
///
/// # Errors
/// What is wrong with it, in words.
pub fn check_private(path: &Path) -> Result<(), String> {
    let found = fs::metadata(path).map_err(|error| error.to_string())?;
    // A group may read it: an orchestrator mounts secrets so, for a user who is not their owner.
    if found.mode() & 0o037 != 0 {
        return Err(format!(
            "its mode is {:04o}, so others may have read it or can change it; chmod 600 it, and replace what is in it if they may have",
            found.mode() & 0o777
        ));
    }
    Ok(())
}
