//! The index's record of one handle: the bytes under its key. Pure.
//!
//! A record carries its own checksum, bound to its key, so that neither a flipped bit nor a record under the wrong key
//! is ever taken for a handle. What is read at every open (which artifact, how large) stands before the JSON and is
//! read without parsing it.
//!
//! ```text
//! 0   1   version
//! 1   1   flags: 1 the artifact lies in the index; 2 the JSON lies in the artifact's file
//! 2   32  digest of the artifact
//! 34  8   its size, little endian
//! 42  16  checksum over the key and everything else here
//! 58      the handle as JSON; empty with flag 2
//! ```

use piecewised_graph::{Digest, Handle};

const VERSION: u8 = 1;
const IN_INDEX: u8 = 1;
const DETACHED: u8 = 2;
const CHECKSUM_AT: usize = 42;
const JSON_AT: usize = 58;

/// Where an artifact's bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Index,
    File,
}

/// A decoded record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    pub(crate) place: Place,
    /// `None`: in the artifact's file, because it is long.
    pub(crate) json: Option<&'a [u8]>,
}

impl<'a> Record<'a> {
    pub(crate) fn encode(&self, key: &Digest) -> Vec<u8> {
        let json = self.json.unwrap_or_default();
        let in_index = if self.place == Place::Index { IN_INDEX } else { 0 };
        let detached = if self.json.is_none() { DETACHED } else { 0 };
        let mut bytes = Vec::with_capacity(JSON_AT + json.len());
        bytes.extend([VERSION, in_index | detached]);
        bytes.extend(self.digest.0);
        bytes.extend(self.size_bytes.to_le_bytes());
        let checksum = checksum(key, &bytes, json);
        bytes.extend(checksum);
        bytes.extend(json);
        bytes
    }

    /// `None`: not a record of this key that is whole.
    pub(crate) fn decode(key: &Digest, bytes: &'a [u8]) -> Option<Self> {
        let (head, json) = bytes.split_at_checked(JSON_AT)?;
        let (head, found) = head.split_at(CHECKSUM_AT);
        let [version, flags, ..] = *head else { return None };
        if version != VERSION || flags & !(IN_INDEX | DETACHED) != 0 || found != checksum(key, head, json) {
            return None;
        }
        Some(Self {
            digest: Digest::from_slice(&head[2..34]).ok()?,
            size_bytes: u64::from_le_bytes(head[34..42].try_into().ok()?),
            place: if flags & IN_INDEX != 0 { Place::Index } else { Place::File },
            json: (flags & DETACHED == 0).then_some(json),
        })
    }
}

/// A handle from its JSON form, if it is the one that `key` and `digest` name.
pub(crate) fn parse_handle(key: &Digest, digest: &Digest, size_bytes: u64, json: &[u8]) -> Option<Handle> {
    let handle: Handle = serde_json::from_slice(json).ok()?;
    (handle.key == *key && handle.digest == *digest && handle.size_bytes == size_bytes).then_some(handle)
}

fn checksum(key: &Digest, head: &[u8], json: &[u8]) -> [u8; 16] {
    let hash = blake3::Hasher::new().update(&key.0).update(head).update(json).finalize();
    let mut checksum = [0; 16];
    checksum.copy_from_slice(&hash.as_bytes()[..16]);
    checksum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_flipped_bits_do_not() {
        let key = Digest::of(b"key");
        for (place, json) in [(Place::File, Some(&b"{}"[..])), (Place::Index, Some(b"{}")), (Place::File, None)] {
            let record = Record { digest: Digest::of(b"artifact"), size_bytes: 8, place, json };
            let bytes = record.encode(&key);
            assert_eq!(Record::decode(&key, &bytes), Some(record));
            assert_eq!(Record::decode(&Digest::of(b"another"), &bytes), None);
            for i in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[i / 8] ^= 1 << (i % 8);
                assert_eq!(Record::decode(&key, &flipped), None, "bit {i}");
                assert_eq!(Record::decode(&key, &bytes[..i / 8]), None, "cut at {}", i / 8);
            }
        }
    }
}
