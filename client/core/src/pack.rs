//! Writing an artifact's container again, from the folder that it was unpacked to.
//!
//! The container is deterministic (docs/artifact.md), so the bytes come out as the daemon sent them, and the caller checks
//! that by their digest. A file that was changed since is found by that check.

use std::{fs, io, path::Path};

use crate::manifest::{MANIFEST, Manifest};

const BLOCK: usize = 512;
/// Tar files end on a multiple of this.
const RECORD: usize = 20 * BLOCK;

/// How the writer of a container fills the fields for device numbers, which files don't have: Python's tarfile left off
/// writing zeros there.
pub(crate) const DEVICE_FIELDS: [&[u8; 8]; 2] = [&[0; 8], b"0000000\0"];

/// The container of the artifact in `folder`.
pub(crate) fn pack(folder: &Path, device_field: &[u8; 8]) -> io::Result<Vec<u8>> {
    let text = fs::read(folder.join(MANIFEST))?;
    let bad = |error: &dyn std::error::Error| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let manifest = Manifest::parse(&text, u64::MAX).map_err(|error| bad(&error))?;
    let mut container = Vec::new();
    add(&mut container, MANIFEST, &text, device_field)?;
    for file in &manifest.files {
        add(&mut container, &file.path, &fs::read(folder.join(&file.path))?, device_field)?;
    }
    // Two empty blocks are the end.
    let end = (container.len() + 2 * BLOCK).next_multiple_of(RECORD);
    container.resize(end, 0);
    Ok(container)
}

fn add(container: &mut Vec<u8>, path: &str, content: &[u8], device_field: &[u8; 8]) -> io::Result<()> {
    let (prefix, name) = split(path)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{path:?} does not fit a tar header")))?;
    let mut header = [0; BLOCK];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000000\0");
    // While the checksum is computed, its own field counts as spaces.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(329, device_field);
    put(337, device_field);
    put(345, prefix.as_bytes());
    let checksum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..155].copy_from_slice(format!("{checksum:06o}\0").as_bytes());
    container.extend(header);
    container.extend(content);
    container.resize(container.len().next_multiple_of(BLOCK), 0);
    Ok(())
}

/// A path as a header's prefix and name; `None` where it does not fit.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= 100 {
        return Some(("", path));
    }
    let at = path.match_indices('/').map(|(at, _)| at).find(|&at| at <= 155 && path.len() - at - 1 <= 100)?;
    Some((&path[..at], &path[at + 1..]))
}
