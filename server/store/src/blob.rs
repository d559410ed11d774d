//! The format of an artifact's file. Pure.
//!
//! A header that says what the file holds, the artifact's bytes as they are, and frames: one for each handle that names
//! the artifact, appended as handles come and go. The files alone are enough to rebuild the index.
//!
//! ```text
//! header  0   8   magic            frame  0   1   kind: 1 handle, 2 handle removed
//!         8   4   version                 1   3   zero
//!         12  4   zero                    4   4   n: length of the JSON
//!         16  8   artifact's size         8   8   stamp: Unix time in ns, the latest wins
//!         24  32  artifact's digest       16  32  key
//!         56  32  checksum                48  n   the handle as JSON
//!                                         48+n 32 checksum, bound to the artifact's digest
//! ```
//! Integers are little endian, checksums BLAKE3 over what stands before them.

use std::collections::BTreeMap;

use piecewised_graph::Digest;

pub(crate) const HEADER_LEN: usize = 88;
/// The longest handle that is stored.
pub(crate) const MAX_HANDLE_BYTES: usize = 1 << 20;

const MAGIC: &[u8; 8] = b"pwstore\n";
const VERSION: u32 = 1;
const FRAME_HEAD_LEN: usize = 48;
const CHECKSUM_LEN: usize = 32;
const KIND_HANDLE: u8 = 1;
const KIND_REMOVED: u8 = 2;

/// One handle's coming or going.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) key: Digest,
    pub(crate) stamp: u64,
    /// `None`: the handle was removed.
    pub(crate) json: Option<Vec<u8>>,
}

/// The frames of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// Each key's last frame, removals left out.
    pub(crate) handles: BTreeMap<Digest, Frame>,
    /// Whether nothing but whole frames was found: otherwise an append was cut off, or a frame is damaged.
    pub(crate) is_clean: bool,
}

pub(crate) fn encode_header(digest: &Digest, size_bytes: u64) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&size_bytes.to_le_bytes());
    header[24..56].copy_from_slice(&digest.0);
    let checksum = blake3::hash(&header[..56]);
    header[56..].copy_from_slice(checksum.as_bytes());
    header
}

/// The artifact's digest and size; `None` where it is no header of ours or not whole.
pub(crate) fn decode_header(header: &[u8; HEADER_LEN]) -> Option<(Digest, u64)> {
    let digest = Digest::from_slice(&header[24..56]).ok()?;
    let size_bytes = u64_at(header, 16)?;
    (encode_header(&digest, size_bytes) == *header).then_some((digest, size_bytes))
}

pub(crate) fn encode_frame(artifact: &Digest, frame: &Frame) -> Vec<u8> {
    let json = frame.json.as_deref().unwrap_or_default();
    let kind = if frame.json.is_some() { KIND_HANDLE } else { KIND_REMOVED };
    let mut bytes = Vec::with_capacity(FRAME_HEAD_LEN + json.len() + CHECKSUM_LEN);
    bytes.extend([kind, 0, 0, 0]);
    bytes.extend(u32::try_from(json.len()).expect("handles are shorter than MAX_HANDLE_BYTES").to_le_bytes());
    bytes.extend(frame.stamp.to_le_bytes());
    bytes.extend(frame.key.0);
    bytes.extend(json);
    let checksum = frame_checksum(artifact, &bytes);
    bytes.extend(checksum);
    bytes
}

/// Reads all frames that are whole, also those behind bytes that are none. Of each key the latest stamp counts, wherever it
/// stands: what was held in memory for a while is written with the stamp of its time.
pub(crate) fn decode_tail(artifact: &Digest, mut bytes: &[u8]) -> Tail {
    let mut is_clean = true;
    let mut latest: BTreeMap<Digest, Frame> = BTreeMap::new();
    while !bytes.is_empty() {
        let Some((frame, rest)) = decode_frame(artifact, bytes) else {
            is_clean = false;
            bytes = &bytes[1..];
            continue;
        };
        if latest.get(&frame.key).is_none_or(|known| known.stamp <= frame.stamp) {
            latest.insert(frame.key, frame);
        }
        bytes = rest;
    }
    latest.retain(|_, frame| frame.json.is_some());
    Tail { handles: latest, is_clean }
}

fn decode_frame<'a>(artifact: &Digest, bytes: &'a [u8]) -> Option<(Frame, &'a [u8])> {
    if !matches!(bytes.get(..4)?, [KIND_HANDLE | KIND_REMOVED, 0, 0, 0]) {
        return None;
    }
    let n_json = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?) as usize;
    if n_json > MAX_HANDLE_BYTES {
        return None;
    }
    let (body, rest) = bytes.split_at_checked(FRAME_HEAD_LEN + n_json)?;
    let (found, rest) = rest.split_at_checked(CHECKSUM_LEN)?;
    if found != frame_checksum(artifact, body) {
        return None;
    }
    let json = &body[FRAME_HEAD_LEN..];
    let json = (body[0] == KIND_HANDLE).then(|| json.to_vec());
    Some((Frame { key: Digest::from_slice(&body[16..48]).ok()?, stamp: u64_at(body, 8)?, json }, rest))
}

fn frame_checksum(artifact: &Digest, body: &[u8]) -> [u8; CHECKSUM_LEN] {
    blake3::Hasher::new().update(&artifact.0).update(body).finalize().into()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_flipped_bits_do_not() {
        let header = encode_header(&Digest::of(b"artifact"), 8);
        assert_eq!(decode_header(&header), Some((Digest::of(b"artifact"), 8)));
        for i in 0..HEADER_LEN * 8 {
            let mut flipped = header;
            flipped[i / 8] ^= 1 << (i % 8);
            assert_eq!(decode_header(&flipped), None, "bit {i}");
        }
    }

    #[test]
    fn frames_fold_to_the_last_word_on_each_key() {
        let artifact = Digest::of(b"artifact");
        let frame = |key: &[u8], stamp, json: Option<&str>| Frame {
            key: Digest::of(key),
            stamp,
            json: json.map(|json| json.as_bytes().to_vec()),
        };
        let frames =
            [frame(b"a", 1, Some("1")), frame(b"b", 2, Some("2")), frame(b"a", 3, None), frame(b"b", 4, Some("4"))];
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| encode_frame(&artifact, frame)).collect();
        let tail = decode_tail(&artifact, &bytes);
        assert!(tail.is_clean);
        assert_eq!(tail.handles.into_values().collect::<Vec<_>>(), [frames[3].clone()]);

        let first = encode_frame(&artifact, &frames[0]).len();
        for cut in first + 1..2 * first {
            let tail = decode_tail(&artifact, &bytes[..cut]);
            assert!(!tail.is_clean);
            assert_eq!(tail.handles.into_values().collect::<Vec<_>>(), [frames[0].clone()]);
        }
        assert!(decode_tail(&Digest::of(b"another"), &bytes).handles.is_empty());

        let mut torn = bytes[..first + 70].to_vec();
        torn.extend(&bytes[3 * first - 1..]);
        let tail = decode_tail(&artifact, &torn);
        assert!(!tail.is_clean);
        assert_eq!(tail.handles.len(), 2);
        assert!(tail.handles.into_values().all(|frame| frame == frames[0] || frame == frames[3]));
    }
}
