//! Failures that are remembered: why a key could not be compiled, for a while.
//!
//! Each lies in the index under its key, with a checksum of its own; in memory there is only which keys have one, and
//! since when, so that the usual question, about a key that has none, costs nothing. They are not in the artifacts'
//! files: with a lost index they are forgotten, and the job is tried once more.
//!
//! ```text
//! 0   1   version
//! 1   16  checksum over the key and everything behind it
//! 17  8   stamp
//! 25  8   when it failed: Unix time in ms
//! 33  2   n: length of the reason
//! 35  n   the reason
//! 35+n    the message
//! ```
//! Integers are little endian, the checksum is the start of a BLAKE3 hash.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use piecewised_graph::Digest;
use serde::{Deserialize, Serialize};

use crate::{
    StoreError,
    counters::Counters,
    engine::{Engine, Op, Shared},
    index::Index,
    reconcile::Batch,
};

/// What is stored of a message. Like handles, failures must be small enough for a leaf of sled's (see [`crate::record`]).
const MAX_MESSAGE_BYTES: usize = 4096;
const MAX_REASON_BYTES: usize = 128;

const VERSION: u8 = 1;
const STAMP_AT: usize = 17;
const REASON_AT: usize = 35;

/// Keys forgotten in one step, and what each counts for in a group of changes.
const FORGET_AT_ONCE: usize = 64;
const FORGOTTEN_BYTES: usize = 1 << 10;

/// Why a key could not be compiled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureRecord {
    /// The reason, as in the protocol's `Failed.reason`. At most 128 bytes are stored.
    pub reason: String,
    /// For people: the compiler's own words. At most 4 KiB are stored; what is longer loses its middle.
    pub message: String,
    /// When it failed: Unix time in milliseconds. Its time to live counts from here.
    pub failed_unix_ms: u64,
}

/// What is known of a failure without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) stamp: u64,
    failed_unix_ms: u64,
}

impl Remembered {
    /// Also where the clock was set back by more than that since.
    fn is_expired(&self, ttl: Duration) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        now.abs_diff(self.failed_unix_ms.into()) >= ttl.as_millis()
    }
}

/// The keys that failed.
#[derive(Debug, Default)]
pub(crate) struct Failures(HashMap<Digest, Remembered>);

impl Failures {
    pub(crate) fn insert(&mut self, key: Digest, remembered: Remembered) {
        self.0.insert(key, remembered);
    }

    pub(crate) fn remove(&mut self, key: &Digest) {
        self.0.remove(key);
    }

    fn expired(&self, ttl: Duration) -> Vec<Digest> {
        self.0.iter().filter(|(_, remembered)| remembered.is_expired(ttl)).map(|(key, _)| *key).collect()
    }

    /// The oldest ones where there are more than `limit`: a sixteenth, so that it is not every failure's business.
    fn surplus(&self, limit: usize) -> Vec<Digest> {
        if self.0.len() <= limit {
            return Vec::new();
        }
        let n = (self.0.len() - limit).max(limit / 16);
        let mut by_age: Vec<_> = self.0.iter().map(|(key, remembered)| (remembered.stamp, *key)).collect();
        by_age.sort_unstable();
        by_age.into_iter().take(n).map(|(_, key)| key).collect()
    }
}

/// Takes what the index has, and drops what does not verify or is too old. `cleared` are keys whose failure is gone already.
pub(crate) fn load(
    shared: &Shared,
    index: &Index,
    found: Vec<(Vec<u8>, Option<Remembered>)>,
    cleared: &HashSet<Digest>,
) -> Result<Failures, StoreError> {
    let mut failures = Failures::default();
    let mut batch = Batch::new(index);
    for (bytes, remembered) in found {
        let key = Digest::from_slice(&bytes).ok();
        match key.zip(remembered) {
            None => {
                Counters::add(&shared.counters.n_damaged_dropped);
                batch.did(index.remove_failure(&bytes))?;
            }
            Some((key, remembered)) => {
                shared.saw_stamp(remembered.stamp);
                if remembered.is_expired(shared.config.failure_ttl) {
                    batch.did(index.remove_failure(&bytes))?;
                } else if !cleared.contains(&key) {
                    failures.insert(key, remembered);
                }
            }
        }
    }
    batch.flush()?;
    Ok(failures)
}

impl Engine {
    /// Whether a failure is remembered; answered from memory.
    pub(crate) fn has_failure(&self, key: &Digest) -> bool {
        let ttl = self.shared.config.failure_ttl;
        self.failures().0.get(key).is_some_and(|remembered| !remembered.is_expired(ttl))
    }

    /// The keys whose failure is remembered.
    pub(crate) fn failed_keys(&self) -> Vec<Digest> {
        let ttl = self.shared.config.failure_ttl;
        self.failures().0.iter().filter(|(_, remembered)| !remembered.is_expired(ttl)).map(|(key, _)| *key).collect()
    }

    pub(crate) fn n_failures(&self) -> u64 {
        self.failures().0.len() as u64
    }

    pub(crate) fn get_failure(&self, key: &Digest) -> Result<Option<FailureRecord>, StoreError> {
        if !self.has_failure(key) {
            return Ok(None);
        }
        let Some(bytes) = self.index.failure(key)? else { return Ok(None) };
        let found = decode(&key.0, &bytes).map(|(_, record)| record);
        if found.is_none() {
            tracing::warn!(%key, "a damaged failure is dropped");
            Counters::add(&self.shared.counters.n_damaged_dropped);
            self.forget(&[*key])?;
        }
        Ok(found)
    }

    pub(crate) fn put_failure(&self, key: &Digest, record: &FailureRecord) -> Result<(), StoreError> {
        let stamp = self.shared.stamp();
        let failure = encode(key, stamp, record);
        self.shared.layout.ensure_room(failure.len() as u64, self.shared.config.reserve_bytes)?;
        let n_bytes = failure.len();
        let remembered = Remembered { stamp, failed_unix_ms: record.failed_unix_ms };
        self.submit(Op::Fail { key: *key, failure, remembered }, n_bytes)?;
        let limit = self.shared.config.max_failures;
        if self.failures().0.len() > limit {
            self.forget_expired()?;
            let surplus = self.failures().surplus(limit);
            self.forget(&surplus)?;
        }
        Ok(())
    }

    pub(crate) fn forget_failures(&self, key: Option<Digest>) -> Result<u64, StoreError> {
        let keys: Vec<_> = match key {
            Some(key) => self.failures().0.contains_key(&key).then_some(key).into_iter().collect(),
            None => self.failures().0.keys().copied().collect(),
        };
        self.forget(&keys)?;
        Ok(keys.len() as u64)
    }

    pub(crate) fn forget_expired(&self) -> Result<(), StoreError> {
        let expired = self.failures().expired(self.shared.config.failure_ttl);
        self.forget(&expired)
    }

    fn forget(&self, keys: &[Digest]) -> Result<(), StoreError> {
        for keys in keys.chunks(FORGET_AT_ONCE) {
            self.submit(Op::Forget { keys: keys.to_vec() }, keys.len() * FORGOTTEN_BYTES)?;
        }
        Ok(())
    }
}

fn encode(key: &Digest, stamp: u64, record: &FailureRecord) -> Vec<u8> {
    let (reason, message) = (cut(&record.reason, MAX_REASON_BYTES), cut(&record.message, MAX_MESSAGE_BYTES));
    let mut body = Vec::with_capacity(REASON_AT + reason.len() + message.len());
    body.extend(stamp.to_le_bytes());
    body.extend(record.failed_unix_ms.to_le_bytes());
    body.extend(u16::try_from(reason.len()).expect("at most MAX_REASON_BYTES").to_le_bytes());
    body.extend(reason.as_bytes());
    body.extend(message.as_bytes());
    let mut bytes = vec![VERSION];
    bytes.extend(checksum(&key.0, &body));
    bytes.extend(body);
    bytes
}

fn decode(key: &[u8], bytes: &[u8]) -> Option<(Remembered, FailureRecord)> {
    let (&[VERSION], rest) = bytes.split_at_checked(1)? else { return None };
    let (found, body) = rest.split_at_checked(STAMP_AT - 1)?;
    if found != checksum(key, body) {
        return None;
    }
    let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let n_reason = u16::from_le_bytes(bytes.get(33..35)?.try_into().ok()?);
    let (reason, message) = bytes.get(REASON_AT..)?.split_at_checked(n_reason.into())?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let remembered = Remembered { stamp: u64_at(STAMP_AT)?, failed_unix_ms: u64_at(25)? };
    let (reason, message) = (text(reason)?, text(message)?);
    Some((remembered, FailureRecord { reason, message, failed_unix_ms: remembered.failed_unix_ms }))
}

/// What is known of a stored failure; `None`: it does not verify.
pub(crate) fn when(key: &[u8], bytes: &[u8]) -> Option<Remembered> {
    decode(key, bytes).map(|(remembered, _)| remembered)
}

fn checksum(key: &[u8], body: &[u8]) -> [u8; 16] {
    let hash = blake3::Hasher::new().update(b"failure").update(key).update(body).finalize();
    let mut checksum = [0; 16];
    checksum.copy_from_slice(&hash.as_bytes()[..16]);
    checksum
}

/// The text where it is short enough, otherwise its beginning and its end: a traceback's first and last lines say most.
fn cut(text: &str, max_bytes: usize) -> String {
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    let note = format!("\n[... of {} bytes, the middle is left out ...]\n", text.len());
    let room = max_bytes.saturating_sub(note.len());
    let head = (0..=room / 2).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let tail = (text.len() - room / 2..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    format!("{}{note}{}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_come_back_and_flipped_bits_do_not() {
        let key = Digest::of(b"key");
        let record =
            FailureRecord { reason: "COMPILE_ERROR".into(), message: "no such op: é".into(), failed_unix_ms: 7 };
        let bytes = encode(&key, 9, &record);
        assert_eq!(decode(&key.0, &bytes), Some((Remembered { stamp: 9, failed_unix_ms: 7 }, record)));
        assert_eq!(decode(&Digest::of(b"another").0, &bytes), None);
        for i in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[i / 8] ^= 1 << (i % 8);
            assert_eq!(decode(&key.0, &flipped), None, "bit {i}");
            assert_eq!(decode(&key.0, &bytes[..i / 8]), None, "cut at {}", i / 8);
        }
    }

    #[test]
    fn long_texts_lose_their_middle_and_stay_text() {
        assert_eq!(cut("short", 5), "short");
        for shift in 0..4 {
            let text = "x".repeat(shift) + &"ä€𝄞".repeat(2000) + "the end";
            let kept = cut(&text, MAX_MESSAGE_BYTES);
            assert!(kept.len() <= MAX_MESSAGE_BYTES && kept.len() > MAX_MESSAGE_BYTES - 16, "{}", kept.len());
            assert!(kept.starts_with(&text.chars().take(50).collect::<String>()));
            assert!(kept.ends_with("the end") && kept.contains("the middle is left out"));
        }
    }
}
