//! The index's record of one handle or snapshot: the bytes under its key. Pure.
//!
//! A record carries its own checksum, bound to its key, so that neither a flipped bit nor a record under the wrong key
//! is ever taken for a handle. What is read at every open (which artifact, how large) stands before the JSON and is
//! read without parsing it.
//!
//! ```text
//! 0   1   version
//! 1   1   1: the JSON lies in the artifact's file, because it is long
//! 2   32  digest of the artifact
//! 34  8   its size
//! 42  8   stamp: that of the frame in the artifact's file
//! 50  16  checksum over the key and everything else here
//! 66      the handle, or the snapshot's description, as JSON
//! ```
//! Integers are little endian, the checksum is the start of a BLAKE3 hash.

use piecewised_graph::{Digest, Handle, Snapshot};

/// The longest JSON in a record. sled writes a leaf of up to some 20 records as one item, and moves items above 128 KiB
/// into files that it never syncs: a leaf must stay well below that.
pub(crate) const MAX_JSON_BYTES: usize = 4096;

const VERSION: u8 = 1;
const CHECKSUM_AT: usize = 50;
const CHECKSUM_LEN: usize = 16;
const JSON_AT: usize = CHECKSUM_AT + CHECKSUM_LEN;

/// A decoded record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    pub(crate) stamp: u64,
    /// `None`: in the artifact's file.
    pub(crate) json: Option<&'a [u8]>,
}

impl<'a> Record<'a> {
    /// A record of a handle in its JSON form.
    pub(crate) fn new(digest: Digest, size_bytes: u64, stamp: u64, json: &'a [u8]) -> Self {
        Self { digest, size_bytes, stamp, json: (json.len() <= MAX_JSON_BYTES).then_some(json) }
    }

    pub(crate) fn encode(&self, key: &Digest) -> Vec<u8> {
        let json = self.json.unwrap_or_default();
        let mut bytes = Vec::with_capacity(JSON_AT + json.len());
        bytes.extend([VERSION, u8::from(self.json.is_none())]);
        bytes.extend(self.digest.0);
        bytes.extend(self.size_bytes.to_le_bytes());
        bytes.extend(self.stamp.to_le_bytes());
        let checksum = checksum(key, &bytes, json);
        bytes.extend(checksum);
        bytes.extend(json);
        bytes
    }

    /// `None`: not a record of this key that is whole.
    pub(crate) fn decode(key: &Digest, bytes: &'a [u8]) -> Option<Self> {
        let (head, json) = bytes.split_at_checked(JSON_AT)?;
        let (head, found) = head.split_at(CHECKSUM_AT);
        if head[0] != VERSION || head[1] > 1 || found != checksum(key, head, json) {
            return None;
        }
        Some(Self {
            digest: Digest::from_slice(&head[2..34]).ok()?,
            size_bytes: u64::from_le_bytes(head[34..42].try_into().ok()?),
            stamp: u64::from_le_bytes(head[42..50].try_into().ok()?),
            json: (head[1] == 0).then_some(json),
        })
    }
}

/// The checksum that stands in a record.
pub(crate) fn checksum_of(record: &[u8]) -> Option<[u8; CHECKSUM_LEN]> {
    record.get(CHECKSUM_AT..JSON_AT)?.try_into().ok()
}

/// What a record is of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Stored {
    Handle(Box<Handle>),
    Snapshot(Snapshot),
}

impl Stored {
    /// From its JSON form, if it is under this key.
    pub(crate) fn parse(key: &Digest, json: &[u8]) -> Option<Self> {
        let handle = serde_json::from_slice(json).ok().map(|handle| Self::Handle(Box::new(handle)));
        let stored = handle.or_else(|| serde_json::from_slice(json).ok().map(Self::Snapshot))?;
        let is_its_own = match &stored {
            Self::Handle(handle) => handle.key == *key,
            Self::Snapshot(snapshot) => snapshot.key == *key && snapshot.snapshot.key() == *key,
        };
        is_its_own.then_some(stored)
    }

    /// From its JSON form, if it is the one of this key, digest and size.
    pub(crate) fn parse_of(key: &Digest, digest: &Digest, size_bytes: u64, json: &[u8]) -> Option<Self> {
        Self::parse(key, json).filter(|stored| stored.content() == (*digest, size_bytes))
    }

    /// Digest and size of the bytes that it names.
    pub(crate) fn content(&self) -> (Digest, u64) {
        match self {
            Self::Handle(handle) => (handle.digest, handle.size_bytes),
            Self::Snapshot(snapshot) => (snapshot.digest, snapshot.size_bytes),
        }
    }
}

fn checksum(key: &Digest, head: &[u8], json: &[u8]) -> [u8; CHECKSUM_LEN] {
    let hash = blake3::Hasher::new().update(&key.0).update(head).update(json).finalize();
    let mut checksum = [0; CHECKSUM_LEN];
    checksum.copy_from_slice(&hash.as_bytes()[..CHECKSUM_LEN]);
    checksum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_flipped_bits_do_not() {
        let key = Digest::of(b"key");
        for json in [&b"{}"[..], &[b' '; MAX_JSON_BYTES + 1]] {
            let record = Record::new(Digest::of(b"artifact"), 8, 9, json);
            assert_eq!(record.json.is_none(), json.len() > MAX_JSON_BYTES);
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
