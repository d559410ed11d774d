//! Reading an artifact's container, trusting nothing in it.
//!
//! The digest says only that the bytes are the ones the daemon meant; what they do to this machine's files is decided
//! here: regular files only, exactly those that the manifest lists, in its order, with its sizes and checksums, below the
//! folder that was given. What breaks a rule stops the reading; the caller throws the folder away.

use std::{
    fs::{self, File},
    io::{self, Read, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use sha2::{Digest as _, Sha256};
use tar::{Archive, Entry, EntryType};
use thiserror::Error;

use crate::manifest::{CONTAINER_VERSION, MANIFEST, Manifest, ManifestFile};

const MAX_MANIFEST_BYTES: u64 = 16 << 20;

/// Why a container is not used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// It isn't a tar, or it ends too early.
    #[error("it can't be read as a tar file: {0}")]
    NotATar(#[source] io::Error),
    /// A newer daemon's container.
    #[error(
        "its version is {found}, this client reads version {CONTAINER_VERSION}: use the piecewised package and the daemon of one release"
    )]
    UnknownVersion {
        /// As the manifest says.
        found: u32,
    },
    /// The first member is not the manifest, or the manifest breaks a rule.
    #[error("its manifest.json is not right: {problem}")]
    BadManifest {
        /// Which rule.
        problem: String,
    },
    /// A path that could lead outside.
    #[error("{path:?} is not a path that an artifact may hold: {problem}")]
    BadPath {
        /// As it stands there.
        path: String,
        /// Which rule.
        problem: &'static str,
    },
    /// A link, a device, a folder.
    #[error("member {path:?} is not a regular file (type {kind:?})")]
    NotAFile {
        /// Its path.
        path: String,
        /// The type's letter.
        kind: char,
    },
    /// The members are not those that the manifest lists.
    #[error("member {n} is {found}, the manifest says {expected}")]
    WrongMember {
        /// Its position, the manifest being 0.
        n: usize,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A member's size isn't the manifest's.
    #[error("member {path:?} has {found_bytes} bytes, the manifest says {expected_bytes}")]
    WrongSize {
        /// Its path.
        path: String,
        /// What is there.
        found_bytes: u64,
        /// What should be there.
        expected_bytes: u64,
    },
    /// A member's content isn't the manifest's.
    #[error("member {path:?} is damaged: its checksum is not the manifest's")]
    WrongChecksum {
        /// Its path.
        path: String,
    },
    /// The manifest lists more than the container can hold.
    #[error("its files are said to have {declared_bytes} bytes, in a container of {container_bytes}")]
    TooLarge {
        /// By the manifest, as far as it was added up.
        declared_bytes: u64,
        /// What there is.
        container_bytes: u64,
    },
    /// A file can't be written.
    #[error("writing {path:?}: {source}")]
    Write {
        /// Its path.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Unpacks a container into `folder`, which must exist and be empty.
///
/// # Errors
/// [`ContainerError`]; then the folder holds a part, and must not be used.
pub fn unpack(container: impl Read, container_bytes: u64, folder: &Path) -> Result<Manifest, ContainerError> {
    let mut archive = Archive::new(container.take(container_bytes));
    // Raw: extension headers (long names, PAX) come as members of their own, and are refused as such.
    let mut members = archive.entries().map_err(ContainerError::NotATar)?.raw(true);

    let mut first =
        next(&mut members)?.ok_or_else(|| ContainerError::BadManifest { problem: "it is missing".into() })?;
    let path = regular_path(&first)?;
    if path != MANIFEST {
        return Err(ContainerError::BadManifest { problem: format!("the first member is {path:?}") });
    }
    let text = read_manifest(&mut first)?;
    drop(first);
    let manifest = Manifest::parse(&text, container_bytes)?;

    for (i, expected) in manifest.files.iter().enumerate() {
        let wrong = |found| ContainerError::WrongMember { n: i + 1, found, expected: format!("{:?}", expected.path) };
        let mut member = next(&mut members)?.ok_or_else(|| wrong("missing".into()))?;
        let path = regular_path(&member)?;
        if path != expected.path {
            return Err(wrong(format!("{path:?}")));
        }
        write_member(&mut member, expected, folder)?;
    }
    if let Some(surplus) = next(&mut members)? {
        let found = format!("{:?}", String::from_utf8_lossy(&surplus.path_bytes()));
        return Err(ContainerError::WrongMember { n: manifest.files.len() + 1, found, expected: "the end".into() });
    }
    // Last, so that a folder with a manifest in it had all its files written.
    create(folder, MANIFEST).and_then(|mut file| file.write_all(&text)).map_err(writing(MANIFEST))?;
    Ok(manifest)
}

fn next<'a, R: Read>(members: &mut tar::Entries<'a, R>) -> Result<Option<Entry<'a, R>>, ContainerError> {
    members.next().transpose().map_err(ContainerError::NotATar)
}

fn regular_path<R: Read>(member: &Entry<'_, R>) -> Result<String, ContainerError> {
    let header = member.header();
    let path = String::from_utf8_lossy(&header.path_bytes()).into_owned();
    if header.entry_type() != EntryType::Regular {
        return Err(ContainerError::NotAFile { path, kind: header.entry_type().as_byte().into() });
    }
    Ok(path)
}

fn read_manifest<R: Read>(member: &mut Entry<'_, R>) -> Result<Vec<u8>, ContainerError> {
    let size_bytes = member.size();
    if size_bytes > MAX_MANIFEST_BYTES {
        return Err(ContainerError::BadManifest { problem: format!("it has {size_bytes} bytes") });
    }
    let mut text = Vec::new();
    member.read_to_end(&mut text).map_err(ContainerError::NotATar)?;
    if text.len() as u64 != size_bytes {
        return Err(ContainerError::NotATar(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(text)
}

fn write_member<R: Read>(
    member: &mut Entry<'_, R>,
    expected: &ManifestFile,
    folder: &Path,
) -> Result<(), ContainerError> {
    let wrong_size = |found_bytes| ContainerError::WrongSize {
        path: expected.path.clone(),
        found_bytes,
        expected_bytes: expected.size_bytes,
    };
    if member.size() != expected.size_bytes {
        return Err(wrong_size(member.size()));
    }
    let mut file = create(folder, &expected.path).map_err(writing(&expected.path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut written_bytes: u64 = 0;
    loop {
        let n = member.read(&mut buffer).map_err(ContainerError::NotATar)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        file.write_all(&buffer[..n]).map_err(writing(&expected.path))?;
        written_bytes += n as u64;
    }
    if written_bytes != expected.size_bytes {
        return Err(wrong_size(written_bytes));
    }
    if hex(&hasher.finalize()) != expected.sha256 {
        return Err(ContainerError::WrongChecksum { path: expected.path.clone() });
    }
    Ok(())
}

/// Creates a new file at a checked path, and the folders that lead to it. Everything below `folder` was made here, so no
/// component can be a link.
fn create(folder: &Path, path: &str) -> io::Result<File> {
    let path = folder.join(path);
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

fn writing(path: &str) -> impl FnOnce(io::Error) -> ContainerError {
    let path = path.to_owned();
    move |source| ContainerError::Write { path, source }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
