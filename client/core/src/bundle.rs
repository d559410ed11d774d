//! One compiled entry as bytes that need nothing else: its handle and its artifact.
//!
//! Layout, integers little-endian: [`MAGIC`], version (u32), length of the handle (u64), length of the artifact (u64), the
//! handle as JSON, the artifact's container, BLAKE3 of everything before. What was cut off or altered is found before
//! anything of it is used.

use piecewised_graph::{Digest, Handle};

use crate::ClientError;

/// What every bundle begins with.
pub const MAGIC: &[u8; 16] = b"piecewised entry";
/// The version that this client reads and writes.
pub const BUNDLE_VERSION: u32 = 1;

const HEADER_BYTES: usize = MAGIC.len() + 4 + 8 + 8;
const CHECKSUM_BYTES: usize = 32;

/// The bundle of a handle and its artifact's container.
pub fn to_bundle(handle: &Handle, container: &[u8]) -> Vec<u8> {
    let text = serde_json::to_vec(handle).expect("the model has string keys only and no fallible serializer");
    let mut bundle = Vec::with_capacity(HEADER_BYTES + text.len() + container.len() + CHECKSUM_BYTES);
    bundle.extend(MAGIC);
    bundle.extend(BUNDLE_VERSION.to_le_bytes());
    bundle.extend((text.len() as u64).to_le_bytes());
    bundle.extend((container.len() as u64).to_le_bytes());
    bundle.extend(text);
    bundle.extend(container);
    bundle.extend(Digest::of(&bundle).0);
    bundle
}

/// The handle and the container of a bundle, both checked.
///
/// # Errors
/// [`ClientError::BadBundle`].
pub fn from_bundle(bundle: &[u8]) -> Result<(Handle, &[u8]), ClientError> {
    let bad = |problem: String| ClientError::BadBundle { problem };
    let truncated =
        |n_bytes: u64| bad(format!("it has {} bytes of {n_bytes}: it was cut off, or more was added", bundle.len()));
    if bundle.len() < HEADER_BYTES {
        return Err(truncated(HEADER_BYTES as u64));
    }
    if !bundle.starts_with(MAGIC) {
        return Err(bad("it does not begin as a value of to_bytes does".into()));
    }
    let number = |at: usize, n_bytes: usize| {
        bundle[at..at + n_bytes].iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte))
    };
    let version = number(MAGIC.len(), 4);
    if version != u64::from(BUNDLE_VERSION) {
        return Err(bad(format!("its version is {version}, this client reads version {BUNDLE_VERSION}")));
    }
    let (handle_bytes, artifact_bytes) = (number(MAGIC.len() + 4, 8), number(MAGIC.len() + 12, 8));
    let n_bytes =
        (HEADER_BYTES as u64 + CHECKSUM_BYTES as u64).saturating_add(handle_bytes).saturating_add(artifact_bytes);
    if n_bytes != bundle.len() as u64 {
        return Err(truncated(n_bytes));
    }
    let (content, checksum) = bundle.split_at(bundle.len() - CHECKSUM_BYTES);
    if Digest::of(content).0 != checksum {
        return Err(bad("its checksum is not that of its bytes: it was altered".into()));
    }
    // Fits: it is less than the bundle's own length.
    let (text, container) = content[HEADER_BYTES..].split_at(handle_bytes as usize);
    let handle: Handle = serde_json::from_slice(text).map_err(|error| bad(format!("its handle: {error}")))?;
    if Digest::of(container) != handle.digest {
        return Err(bad("its artifact is not the one that its handle names".into()));
    }
    Ok((handle, container))
}
