//! The client's folder of materialised artifacts, shared by every process of one user on one machine.
//!
//! `<cache>/artifacts/<digest>/` is always whole: an artifact is unpacked into a folder beside it and renamed. Of several
//! processes that do so at once one wins, and the others throw their own away. What is found is checked cheaply (every
//! file there, with its size) before it is used again, so that a disk that lost writes costs a transfer and not a crash.
//!
//! The folder holds code that workers load, so it must belong to the user alone.
//!
//! Deliberately absent: eviction. An operator empties the folder; a missing artifact is fetched again.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use piecewised_graph::Digest;

use crate::{
    ClientError,
    container::{ContainerError, unpack},
    manifest::{MANIFEST, Manifest},
    pack::{DEVICE_FIELDS, pack},
};

/// The variable that names the cache folder.
const CACHE_VARIABLE: &str = "PIECEWISED_CACHE_DIR";

/// Left behind by processes that were killed; nobody unpacks for so long.
const STALE_AFTER: Duration = Duration::from_secs(3600);
const SCRATCH_PREFIX: &str = ".unpacking-";

/// The cache folder to use: `PIECEWISED_CACHE_DIR`, else `$XDG_CACHE_HOME/piecewised`, else `~/.cache/piecewised`, else a
/// folder of the user's in `/tmp`.
pub fn cache_folder(environment: impl Fn(&str) -> Option<String>, uid: u32) -> PathBuf {
    let folder = |name: &str| environment(name).filter(|text| !text.is_empty()).map(PathBuf::from);
    if let Some(given) = folder(CACHE_VARIABLE) {
        return given;
    }
    let absolute = |name: &str| folder(name).filter(|path| path.is_absolute());
    if let Some(cache) = absolute("XDG_CACHE_HOME") {
        return cache.join("piecewised");
    }
    match absolute("HOME") {
        Some(home) => home.join(".cache/piecewised"),
        // Directly in /tmp: its sticky bit keeps others from renaming it.
        None => PathBuf::from(format!("/tmp/piecewised-cache-{uid}")),
    }
}

/// A folder of materialised artifacts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cache {
    artifacts: PathBuf,
}

impl Cache {
    /// Opens the cache folder, and makes it (mode 0700) where it doesn't exist.
    ///
    /// # Errors
    /// [`ClientError::CacheNotPrivate`], [`ClientError::Io`].
    pub fn open(folder: &Path) -> Result<Self, ClientError> {
        let artifacts = folder.join("artifacts");
        for path in [folder, &artifacts] {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(path).map_err(ClientError::io("creating", path))?;
            check_private(path)?;
        }
        let cache = Self { artifacts };
        cache.remove_stale();
        Ok(cache)
    }

    /// The folder of an artifact that is here, after a cheap check. What fails the check is removed.
    pub fn find(&self, digest: &Digest) -> Option<PathBuf> {
        let folder = self.folder(digest);
        if !folder.exists() {
            return None;
        }
        if looks_whole(&folder) {
            return Some(folder);
        }
        tracing::warn!(folder = %folder.display(), "an artifact in the cache folder is damaged; it is fetched again");
        self.remove(&folder);
        None
    }

    /// Unpacks a container whose digest was verified, from where `container` stands to its end.
    ///
    /// # Errors
    /// [`ClientError::BadContainer`], [`ClientError::Io`]; nothing is left behind.
    pub fn materialise(&self, digest: &Digest, container: File) -> Result<PathBuf, ClientError> {
        let size_bytes = container.metadata().map_err(ClientError::io("reading", "artifact"))?.len();
        self.unpack(digest, io::BufReader::new(container), size_bytes)
    }

    /// Makes a container a folder, unless it is there already.
    ///
    /// # Errors
    /// [`ClientError::DigestMismatch`] where these bytes are not the artifact; [`ClientError::BadContainer`],
    /// [`ClientError::Io`].
    pub fn install(&self, digest: &Digest, container: &[u8]) -> Result<PathBuf, ClientError> {
        let found = Digest::of(container);
        if found != *digest {
            return Err(ClientError::DigestMismatch { expected: *digest, found });
        }
        match self.find(digest) {
            Some(folder) => Ok(folder),
            None => self.unpack(digest, container, container.len() as u64),
        }
    }

    /// The container of an artifact that is here, byte for byte as it came. `None`: it isn't here, or no longer whole.
    pub fn container(&self, digest: &Digest) -> Option<Vec<u8>> {
        let folder = self.find(digest)?;
        let containers = DEVICE_FIELDS.iter().map(|field| pack(&folder, field));
        let whole = containers.filter_map(Result::ok).find(|container| Digest::of(container) == *digest);
        if whole.is_none() {
            tracing::warn!(folder = %folder.display(), "an artifact in the cache folder was changed");
            self.remove(&folder);
        }
        whole
    }

    fn unpack(&self, digest: &Digest, container: impl Read, size_bytes: u64) -> Result<PathBuf, ClientError> {
        let folder = self.folder(digest);
        let scratch = tempfile::Builder::new()
            .prefix(SCRATCH_PREFIX)
            .tempdir_in(&self.artifacts)
            .map_err(ClientError::io("creating a folder in", &self.artifacts))?;
        match unpack(container, size_bytes, scratch.path()) {
            Ok(_) => {}
            // A full disk is not the container's fault.
            Err(ContainerError::Write { path, source }) => {
                return Err(ClientError::Io { doing: "writing", path: scratch.path().join(path), source });
            }
            Err(source) => return Err(ClientError::BadContainer { digest: *digest, source }),
        }
        match fs::rename(scratch.path(), &folder) {
            Ok(()) => {
                // Renamed away: there is nothing to remove any more.
                let _ = scratch.keep();
                Ok(folder)
            }
            // Another process was faster. Its folder was whole when it was renamed, as ours is.
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                Ok(folder)
            }
            Err(source) => Err(ClientError::Io { doing: "renaming to", path: folder, source }),
        }
    }

    /// A file without a name, on the same file system, for an artifact on its way.
    pub(crate) fn scratch_file(&self) -> Result<File, ClientError> {
        tempfile::tempfile_in(&self.artifacts).map_err(ClientError::io("creating a file in", &self.artifacts))
    }

    fn folder(&self, digest: &Digest) -> PathBuf {
        self.artifacts.join(digest.to_string())
    }

    /// Takes a folder out of sight before its files go, so that nobody finds a half of it.
    fn remove(&self, folder: &Path) {
        let scratch = tempfile::Builder::new().prefix(SCRATCH_PREFIX).tempdir_in(&self.artifacts);
        let moved = scratch.and_then(|scratch| fs::rename(folder, scratch.path().join("removed")).map(|()| scratch));
        if let Err(error) = moved.and_then(tempfile::TempDir::close) {
            tracing::warn!(folder = %folder.display(), %error, "a damaged artifact can't be removed");
        }
    }

    fn remove_stale(&self) {
        let Ok(entries) = fs::read_dir(&self.artifacts) else { return };
        for entry in entries.flatten() {
            let is_scratch = entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX);
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let age = modified.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
            if is_scratch && age.is_some_and(|age| age > STALE_AFTER) {
                // Another process may be doing the same.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Every file that the manifest lists is there with its size.
fn looks_whole(folder: &Path) -> bool {
    let Ok(text) = fs::read(folder.join(MANIFEST)) else { return false };
    let Ok(manifest) = Manifest::parse(&text, u64::MAX) else { return false };
    manifest.files.iter().all(|file| {
        fs::symlink_metadata(folder.join(&file.path))
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() == file.size_bytes)
    })
}

pub(crate) fn check_private(path: &Path) -> Result<(), ClientError> {
    let metadata = fs::metadata(path).map_err(ClientError::io("reading", path))?;
    let not_private = |problem| Err(ClientError::CacheNotPrivate { path: path.into(), problem });
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return not_private("it belongs to another user");
    }
    if metadata.mode() & 0o022 != 0 {
        return not_private("others can write to it");
    }
    Ok(())
}
