//! The artifacts' files: written whole or not at all, checked before they are read.
//!
//! A file appears under its name only after its bytes are on the disk. Callers hold the artifact's lock while they
//! create, append to or unlink its file; reading needs none.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use piecewised_graph::Digest;

use crate::{
    StoreError,
    blob::{self, Frame, HEADER_LEN, Tail},
    layout::{Layout, is_full, sync_dir},
};

/// More bytes of frames than this and the file is written anew with the live ones.
const MAX_TAIL_BYTES: u64 = 256 << 10;
/// More than this is not read: no run of frames gets there.
const MAX_TAIL_READ: u64 = 64 << 20;

/// What tells that a file was replaced or written to since it was verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file's state against the digest and size it should have.
#[derive(Debug)]
pub(crate) enum Check {
    Whole(File),
    /// With the identity that was judged; `None`: there is no file.
    Damaged(Option<Identity>),
}

/// All artifact files of a store.
#[derive(Debug)]
pub(crate) struct Blobs {
    layout: Layout,
    /// Files whose digest was checked by this process, as they were then.
    verified: Mutex<HashMap<Digest, Identity>>,
    n_verified: AtomicU64,
}

impl Blobs {
    pub(crate) fn new(layout: Layout) -> Self {
        Self { layout, verified: Mutex::default(), n_verified: AtomicU64::new(0) }
    }

    pub(crate) fn n_verified(&self) -> u64 {
        self.n_verified.load(Relaxed)
    }

    /// The names of all artifact files.
    pub(crate) fn list(&self) -> Result<Vec<Digest>, StoreError> {
        let mut digests = Vec::new();
        for first_byte in 0..=u8::MAX {
            let shard = self.layout.shard(first_byte);
            for entry in fs::read_dir(&shard).map_err(StoreError::io("list", &shard))? {
                let name = entry.map_err(StoreError::io("list", &shard))?.file_name();
                match name.to_str().and_then(|name| name.parse::<Digest>().ok()) {
                    Some(digest) if digest.0[0] == first_byte => digests.push(digest),
                    _ => tracing::debug!(folder = %shard.display(), ?name, "not an artifact; left alone"),
                }
            }
        }
        Ok(digests)
    }

    /// Writes the file, over any that is there. On the disk when it returns.
    pub(crate) fn create(&self, digest: &Digest, artifact: &[u8], frames: &[Frame]) -> Result<(), StoreError> {
        let (path, tmp) = (self.layout.artifact(digest), self.layout.tmp());
        self.forget(digest);
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(&tmp)?;
            file.write_all(&blob::encode_header(digest, artifact.len() as u64))?;
            file.write_all(artifact)?;
            for frame in frames {
                file.write_all(&blob::encode_frame(digest, frame))?;
            }
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error).map(drop)
        };
        let mut written = write();
        if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            self.layout.make_dirs()?;
            written = write();
        }
        written.map_err(|error| self.write_error(&path, artifact.len() as u64, error))?;
        sync_dir(&self.layout.shard(digest.0[0]))
    }

    /// Writes the file from a source of unknown length, if what comes from it has this digest. On the disk when it returns.
    /// Returns the artifact's size, or what is wrong with the source; nothing is left of it then.
    pub(crate) fn receive(
        &self,
        digest: &Digest,
        source: &mut impl io::Read,
        frames: &[Frame],
        reserve_bytes: u64,
    ) -> Result<Result<u64, String>, StoreError> {
        const STEP: usize = 1 << 20;
        let path = self.layout.artifact(digest);
        let failed = |error| self.write_error(&path, 0, error);
        self.forget(digest);
        let mut file = tempfile::NamedTempFile::new_in(self.layout.tmp()).map_err(failed)?;
        file.write_all(&[0; HEADER_LEN]).map_err(failed)?;
        let (mut hasher, mut size_bytes, mut buffer) = (blake3::Hasher::new(), 0_u64, vec![0; STEP]);
        loop {
            let n = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) => return Ok(Err(error.to_string())),
            };
            self.layout.ensure_room(n as u64, reserve_bytes)?;
            hasher.update(&buffer[..n]);
            file.write_all(&buffer[..n]).map_err(failed)?;
            size_bytes += n as u64;
        }
        if hasher.finalize() != digest.0 {
            return Ok(Err("it does not have its digest".into()));
        }
        for frame in frames {
            file.write_all(&blob::encode_frame(digest, frame)).map_err(failed)?;
        }
        file.as_file().write_all_at(&blob::encode_header(digest, size_bytes), 0).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        sync_dir(&self.layout.shard(digest.0[0]))?;
        Ok(Ok(size_bytes))
    }

    /// Adds a frame at the end. `false`: the file cannot take it and wants to be written anew.
    pub(crate) fn append(&self, digest: &Digest, size_bytes: u64, frame: &Frame) -> Result<bool, StoreError> {
        let path = self.layout.artifact(digest);
        let append = || {
            let file = OpenOptions::new().write(true).custom_flags(NO_FOLLOW).open(&path)?;
            let len = file.metadata()?.len();
            let frames_at = HEADER_LEN as u64 + size_bytes;
            let is_long = len > frames_at + MAX_TAIL_BYTES && frame.json.is_some();
            if len < frames_at || is_long {
                return Ok(false);
            }
            file.write_all_at(&blob::encode_frame(digest, frame), len)?;
            file.sync_all()?;
            Ok(true)
        };
        self.forget(digest);
        match append() {
            Err(error) if is_damage(&error) => Ok(false),
            result => result.map_err(|error| self.write_error(&path, 0, error)),
        }
    }

    /// What the file says of itself: its artifact's size and its handles. `None`: no file, or not one of ours.
    pub(crate) fn describe(&self, digest: &Digest) -> Result<Option<(u64, Tail)>, StoreError> {
        let path = self.layout.artifact(digest);
        let describe = || {
            let file = open(&path)?;
            let len = file.metadata()?.len();
            let mut header = [0; HEADER_LEN];
            file.read_exact_at(&mut header, 0)?;
            match blob::decode_header(&header) {
                Some((found, size_bytes))
                    if found == *digest && size_bytes <= len.saturating_sub(HEADER_LEN as u64) =>
                {
                    Ok(Some((size_bytes, read_tail(&file, digest, HEADER_LEN as u64 + size_bytes, len)?)))
                }
                _ => Ok(None),
            }
        };
        match describe() {
            Err(error) if is_damage(&error) => Ok(None),
            result => result.map_err(StoreError::io("read", &path)),
        }
    }

    /// Whether a file of at least the right length is there: what a lookup can afford.
    pub(crate) fn looks_whole(&self, digest: &Digest, size_bytes: u64) -> bool {
        fs::symlink_metadata(self.layout.artifact(digest))
            .is_ok_and(|found| found.is_file() && found.len() >= HEADER_LEN as u64 + size_bytes)
    }

    /// Opens the file and checks its digest, unless this process did so and the file is as it was.
    pub(crate) fn check(&self, digest: &Digest, size_bytes: u64) -> Result<Check, StoreError> {
        let path = self.layout.artifact(digest);
        let check = || {
            let file = open(&path)?;
            let identity = Identity::of(&file.metadata()?);
            if self.verified().get(digest) == Some(&identity) {
                return Ok(Check::Whole(file));
            }
            self.n_verified.fetch_add(1, Relaxed);
            match holds(&file, digest, size_bytes) {
                Ok(true) => {
                    self.verified().insert(*digest, identity);
                    Ok(Check::Whole(file))
                }
                Ok(false) => Ok(Check::Damaged(Some(identity))),
                Err(error) if is_damage(&error) => Ok(Check::Damaged(Some(identity))),
                Err(error) => Err(error),
            }
        };
        match check() {
            Err(error) if is_damage(&error) => Ok(Check::Damaged(self.identity(digest))),
            result => result.map_err(StoreError::io("read", &path)),
        }
    }

    /// The file as it is now; `None`: there is none.
    pub(crate) fn identity(&self, digest: &Digest) -> Option<Identity> {
        fs::symlink_metadata(self.layout.artifact(digest)).ok().map(|metadata| Identity::of(&metadata))
    }

    /// Deletes the file, for good when it returns. Open readers keep theirs.
    pub(crate) fn unlink(&self, digest: &Digest) -> Result<(), StoreError> {
        if self.unlink_lazily(digest)? { sync_dir(&self.layout.shard(digest.0[0])) } else { Ok(()) }
    }

    /// Deletes the file; a power cut may bring it back. Returns whether there was one.
    pub(crate) fn unlink_lazily(&self, digest: &Digest) -> Result<bool, StoreError> {
        let path = self.layout.artifact(digest);
        self.forget(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(StoreError::io("delete", path)(error)),
        }
    }

    fn forget(&self, digest: &Digest) {
        self.verified().remove(digest);
    }

    fn verified(&self) -> MutexGuard<'_, HashMap<Digest, Identity>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_error(&self, path: &Path, needed_bytes: u64, error: io::Error) -> StoreError {
        if is_full(&error) { self.layout.full(needed_bytes, 0) } else { StoreError::io("write", path)(error) }
    }
}

const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(NO_FOLLOW).open(path)
}

/// Errors that say something of the file, not of the moment.
fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, UnexpectedEof};
    let eio = rustix::io::Errno::IO.raw_os_error();
    let eloop = rustix::io::Errno::LOOP.raw_os_error();
    matches!(error.kind(), NotFound | UnexpectedEof | IsADirectory | NotADirectory)
        || error.raw_os_error().is_some_and(|code| code == eio || code == eloop)
}

fn holds(mut file: &File, digest: &Digest, size_bytes: u64) -> io::Result<bool> {
    let mut header = [0; HEADER_LEN];
    file.read_exact(&mut header)?;
    if blob::decode_header(&header) != Some((*digest, size_bytes)) {
        return Ok(false);
    }
    let mut hasher = blake3::Hasher::new();
    let mut rest = size_bytes;
    let mut buffer = vec![0; usize::try_from(size_bytes).unwrap_or(usize::MAX).min(256 << 10)];
    while rest > 0 {
        let n = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact(&mut buffer[..n])?;
        hasher.update(&buffer[..n]);
        rest -= n as u64;
    }
    Ok(hasher.finalize() == digest.0)
}

fn read_tail(file: &File, digest: &Digest, frames_at: u64, len: u64) -> io::Result<Tail> {
    let n = len.saturating_sub(frames_at);
    if n > MAX_TAIL_READ {
        return Ok(Tail { handles: BTreeMap::new(), is_clean: false });
    }
    let mut bytes = vec![0; usize::try_from(n).expect("below MAX_TAIL_READ")];
    file.read_exact_at(&mut bytes, frames_at)?;
    Ok(blob::decode_tail(digest, &bytes))
}
