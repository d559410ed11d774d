//! The store's folder: its names, its rights, its format version, and what is set aside in it.
//!
//! Every name below the folder is made here, from constants, digests and dates; none comes from outside.
//! The folder is 0700 and files are 0600. Folders are synced where a name in them must survive a power cut.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use piecewised_graph::Digest;

use crate::{StoreError, notes::Note};

/// Version of everything on disk but sled's own files. Another one is set aside, never read.
pub(crate) const FORMAT_VERSION: u32 = 1;

const FORMAT_NAME: &str = "FORMAT";
const LOCK_NAME: &str = "lock";
const INDEX_NAME: &str = "db";
const ARTIFACTS_NAME: &str = "artifacts";
const TMP_NAME: &str = "tmp";
const SET_ASIDE_NAME: &str = "set-aside";
const CLEAN_NAME: &str = "clean";
const MANIFESTS_NAME: &str = "manifests";
const NOTES_NAME: &str = "notes";
/// A folder for precompiled headers within the store's: the store has nothing to do with what is in it, and leaves it where it is.
pub const HEADERS_FOLDER: &str = "precompiled_headers";
/// The daemon's, whose it is to read and write.
const SIGNING_KEY_NAME: &str = "signing-key.pem";
const OURS: [&str; 11] = [
    FORMAT_NAME,
    CLEAN_NAME,
    LOCK_NAME,
    INDEX_NAME,
    ARTIFACTS_NAME,
    MANIFESTS_NAME,
    NOTES_NAME,
    TMP_NAME,
    SET_ASIDE_NAME,
    HEADERS_FOLDER,
    SIGNING_KEY_NAME,
];

/// Damaged indexes that are kept for people to look at; older ones are deleted.
const N_DAMAGED_KEPT: usize = 3;

/// What the format file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Absent,
    Version(u32),
    /// Its checksum does not hold: it says nothing.
    Damaged,
}

/// The names in one store folder.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn lock_file(&self) -> PathBuf {
        self.root.join(LOCK_NAME)
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.root.join(INDEX_NAME)
    }

    pub(crate) fn artifacts(&self) -> PathBuf {
        self.root.join(ARTIFACTS_NAME)
    }

    pub(crate) fn shard(&self, first_byte: u8) -> PathBuf {
        self.artifacts().join(format!("{first_byte:02x}"))
    }

    pub(crate) fn artifact(&self, digest: &Digest) -> PathBuf {
        self.shard(digest.0[0]).join(digest.to_string())
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.root.join(MANIFESTS_NAME)
    }

    pub(crate) fn manifest(&self, name: &str) -> PathBuf {
        self.manifests().join(name)
    }

    /// Writes a manifest's file whole. On the disk when it returns.
    pub(crate) fn write_manifest(&self, name: &str, text: &str) -> Result<(), StoreError> {
        let folder = self.manifests();
        make_dir(&folder)?;
        self.write_whole(&folder, name, text).map_err(|error| match error {
            StoreError::Io { source, .. } if is_full(&source) => self.full(text.len() as u64, 0),
            error => error,
        })
    }

    /// Deletes a manifest's file, for good when it returns. Returns whether it was there.
    pub(crate) fn remove_manifest(&self, name: &str) -> Result<bool, StoreError> {
        let path = self.manifest(name);
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.manifests()).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(StoreError::io("delete", path)(error)),
        }
    }

    pub(crate) fn note(&self, note: Note) -> PathBuf {
        self.root.join(NOTES_NAME).join(note.file_name())
    }

    /// Writes a note whole. On the disk when it returns.
    pub(crate) fn write_note(&self, note: Note, text: &str) -> Result<(), StoreError> {
        let folder = self.root.join(NOTES_NAME);
        make_dir(&folder)?;
        self.write_whole(&folder, note.file_name(), text)
    }

    pub(crate) fn set_aside(&self) -> PathBuf {
        self.root.join(SET_ASIDE_NAME)
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join(TMP_NAME)
    }

    /// Makes sure that the folder is a store, or else creates it or takes an empty one, if that is wanted.
    pub(crate) fn claim_root(&self, create: bool) -> Result<(), StoreError> {
        if create {
            make_dir(&self.root)?;
        } else if !self.root.is_dir() {
            return Err(StoreError::Absent { path: self.root.clone() });
        }
        let names = names_in(&self.root)?;
        let has = |name: &str| names.iter().any(|found| found == name);
        let is_store = has(FORMAT_NAME) || (has(INDEX_NAME) && has(ARTIFACTS_NAME));
        let foreign = names.iter().find(|name| !OURS.contains(&name.as_str()) && *name != "lost+found");
        if let (false, Some(found)) = (is_store, foreign) {
            return Err(StoreError::NotAStore { path: self.root.clone(), found: found.clone() });
        }
        if !is_store && !create {
            return Err(StoreError::Absent { path: self.root.clone() });
        }
        let mode = fs::metadata(&self.root).map_err(StoreError::io("stat", &self.root))?.permissions().mode();
        if mode & 0o077 != 0
            && let Err(error) = fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700))
        {
            tracing::warn!(path = %self.root.display(), %error, "cannot make the store's folder private");
        }
        Ok(())
    }

    /// Deletes what writes that never ended left.
    pub(crate) fn empty_tmp(&self) {
        if let Err(error) = fs::remove_dir_all(self.tmp())
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.tmp().display(), %error, "cannot empty the folder for temporary files");
        }
    }

    /// Creates the folders of an open store where they are missing.
    pub(crate) fn make_dirs(&self) -> Result<(), StoreError> {
        make_dir(&self.tmp())?;
        make_dir(&self.artifacts())?;
        let mut is_new = false;
        for first_byte in 0..=u8::MAX {
            let shard = self.shard(first_byte);
            match DirBuilder::new().mode(0o700).create(&shard) {
                Ok(()) => is_new = true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(StoreError::io("create", shard)(error)),
            }
        }
        if is_new { sync_dir(&self.artifacts()) } else { Ok(()) }
    }

    pub(crate) fn read_format(&self) -> Result<Format, StoreError> {
        let path = self.root.join(FORMAT_NAME);
        match fs::read(&path) {
            Ok(bytes) => Ok(parse_format(&bytes).map_or(Format::Damaged, Format::Version)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Format::Absent),
            Err(error) => Err(StoreError::io("read", path)(error)),
        }
    }

    pub(crate) fn write_format(&self) -> Result<(), StoreError> {
        self.write_whole(&self.root, FORMAT_NAME, &format_text(FORMAT_VERSION))
    }

    /// Notes that everything is closed in order, and what the index holds.
    pub(crate) fn write_clean(&self, fingerprint: &str) -> Result<(), StoreError> {
        self.write_whole(&self.root, CLEAN_NAME, fingerprint)
    }

    /// The note of the last close, which is gone then; `None`: it was no close in order.
    pub(crate) fn take_clean(&self) -> Result<Option<String>, StoreError> {
        let path = self.root.join(CLEAN_NAME);
        let note = fs::read_to_string(&path).ok();
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.root).map(|()| note),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("delete", path)(error)),
        }
    }

    fn write_whole(&self, folder: &Path, name: &str, text: &str) -> Result<(), StoreError> {
        let path = folder.join(name);
        let mut file = tempfile::NamedTempFile::new_in(self.tmp()).map_err(StoreError::io("create", self.tmp()))?;
        file.write_all(text.as_bytes()).map_err(StoreError::io("write", &path))?;
        file.as_file().sync_all().map_err(StoreError::io("sync", &path))?;
        file.persist(&path).map_err(|error| StoreError::io("rename", &path)(error.error))?;
        sync_dir(folder)
    }

    /// Moves what a store of format `found` left into a dated folder.
    pub(crate) fn set_aside_format(&self, found: u32) -> Result<PathBuf, StoreError> {
        let target = self.dated(&format!("format-{found}"))?;
        make_dir(&target)?;
        for name in [CLEAN_NAME, INDEX_NAME, ARTIFACTS_NAME, MANIFESTS_NAME, NOTES_NAME, FORMAT_NAME] {
            move_into(&self.root.join(name), &target)?;
        }
        sync_dir(&target)?;
        sync_dir(&self.root)?;
        Ok(target)
    }

    /// Moves the index into a dated folder, and deletes the oldest of those kept so far.
    pub(crate) fn set_aside_index(&self) -> Result<PathBuf, StoreError> {
        self.prune_damaged();
        let target = self.dated("index")?;
        fs::rename(self.index(), &target).map_err(StoreError::io("rename", self.index()))?;
        sync_dir(&self.root)?;
        Ok(target)
    }

    /// Moves the index's snapshots into a dated folder; `None` where there are none.
    pub(crate) fn set_aside_snapshots(&self) -> Result<Option<PathBuf>, StoreError> {
        let snapshots: Vec<_> = names_in(&self.index())?.into_iter().filter(|name| name.starts_with("snap.")).collect();
        if snapshots.is_empty() {
            return Ok(None);
        }
        self.prune_damaged();
        let target = self.dated("index-snapshot")?;
        make_dir(&target)?;
        for name in snapshots {
            move_into(&self.index().join(name), &target)?;
        }
        sync_dir(&self.index())?;
        Ok(Some(target))
    }

    /// Moves the artifacts' folder into a dated folder.
    pub(crate) fn set_aside_artifacts(&self) -> Result<PathBuf, StoreError> {
        let target = self.dated("artifacts")?;
        fs::rename(self.artifacts(), &target).map_err(StoreError::io("rename", self.artifacts()))?;
        self.make_dirs()?;
        Ok(target)
    }

    /// # Errors
    /// [`StoreError::Full`] where `needed_bytes` would eat into the reserve.
    pub(crate) fn ensure_room(&self, needed_bytes: u64, reserve_bytes: u64) -> Result<(), StoreError> {
        let available_bytes = self.available_bytes()?;
        if available_bytes < needed_bytes.saturating_add(reserve_bytes) {
            return Err(StoreError::Full { path: self.root.clone(), needed_bytes, available_bytes, reserve_bytes });
        }
        Ok(())
    }

    /// The error that says that a write of so many bytes did not fit.
    pub(crate) fn full(&self, needed_bytes: u64, reserve_bytes: u64) -> StoreError {
        let available_bytes = self.available_bytes().unwrap_or(0);
        StoreError::Full { path: self.root.clone(), needed_bytes, available_bytes, reserve_bytes }
    }

    pub(crate) fn available_bytes(&self) -> Result<u64, StoreError> {
        let stat =
            rustix::fs::statvfs(&self.root).map_err(|error| StoreError::io("statvfs", &self.root)(error.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn dated(&self, what: &str) -> Result<PathBuf, StoreError> {
        let folder = self.root.join(SET_ASIDE_NAME);
        make_dir(&folder)?;
        let stem = format!("{}-{what}", utc_stamp(SystemTime::now()));
        let names = std::iter::once(stem.clone()).chain((2..).map(|n| format!("{stem}-{n}")));
        let mut free = names.map(|name| folder.join(name)).filter(|path| !path.exists());
        Ok(free.next().expect("the numbers do not end"))
    }

    fn prune_damaged(&self) {
        let folder = self.root.join(SET_ASIDE_NAME);
        let Ok(names) = names_in(&folder) else { return };
        let mut damaged: Vec<_> = names.into_iter().filter(|name| name.contains("-index")).collect();
        damaged.sort();
        let n_surplus = (damaged.len() + 1).saturating_sub(N_DAMAGED_KEPT);
        for name in damaged.into_iter().take(n_surplus) {
            if let Err(error) = fs::remove_dir_all(folder.join(&name)) {
                tracing::warn!(name, %error, "cannot delete an index that was set aside");
            }
        }
    }
}

/// Whether the disk, or somebody's share of it, has no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes the names in a folder survive a power cut.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(StoreError::io("sync", path))
}

fn make_dir(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(StoreError::io("create", path))?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => Ok(()),
    }
}

fn names_in(path: &Path) -> Result<Vec<String>, StoreError> {
    fs::read_dir(path)
        .and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned())).collect()
        })
        .map_err(StoreError::io("list", path))
}

fn move_into(from: &Path, folder: &Path) -> Result<(), StoreError> {
    let Some(name) = from.file_name() else { return Ok(()) };
    match fs::rename(from, folder.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("rename", from)(error)),
        _ => Ok(()),
    }
}

fn format_text(version: u32) -> String {
    let claim = format!("piecewised-store {version}");
    format!("{claim} {}\n", Digest::of(claim.as_bytes()))
}

fn parse_format(bytes: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(bytes).ok()?;
    let version = text.strip_prefix("piecewised-store ")?.split(' ').next()?.parse().ok()?;
    (format_text(version) == text).then_some(version)
}

/// `20260131T235959Z`: sorts by time.
pub(crate) fn utc_stamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, so that the leap day is a year's last: http://howardhinnant.github.io/date_algorithms.html
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn stamps_are_utc_dates() {
        let check = |seconds, expect: &str| assert_eq!(utc_stamp(UNIX_EPOCH + Duration::from_secs(seconds)), expect);
        check(0, "19700101T000000Z");
        check(951_782_399, "20000228T235959Z");
        check(951_782_400, "20000229T000000Z");
        check(1_767_225_599, "20251231T235959Z");
        check(1_772_323_200, "20260301T000000Z");
    }

    #[test]
    fn a_format_file_counts_only_with_its_checksum() {
        assert_eq!(parse_format(format_text(7).as_bytes()), Some(7));
        for i in 0..format_text(1).len() {
            let mut bytes = format_text(1).into_bytes();
            bytes[i] ^= 4;
            assert_eq!(parse_format(&bytes), None, "byte {i}");
        }
        assert_eq!(parse_format(b""), None);
    }
}
