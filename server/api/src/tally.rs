//! What this room itself counts for metrics: bytes that were fetched, what clients say of their local compiles, and messages that
//! came too slowly.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Reasons that are counted apart; further ones are [`OTHER`]. A metric's labels must be bounded, and these come from outside.
const MAX_REASONS: usize = 64;
const MAX_REASON_BYTES: usize = 64;
pub(crate) const OTHER: &str = "OTHER";

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    n_fetches: AtomicU64,
    fetched_bytes: AtomicU64,
    slow_messages: AtomicU64,
    fallbacks: Mutex<BTreeMap<String, u64>>,
}

impl Tally {
    /// A fetch that began.
    pub(crate) fn fetch(&self) {
        self.n_fetches.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes that were sent for it.
    pub(crate) fn sent(&self, n_bytes: usize) {
        self.fetched_bytes.fetch_add(n_bytes as u64, Ordering::Relaxed);
    }

    /// A message that was given up since it came too slowly.
    pub(crate) fn slow_message(&self) {
        self.slow_messages.fetch_add(1, Ordering::Relaxed);
    }

    /// Pieces that a client compiled by itself, and why.
    pub(crate) fn fallback(&self, reason: &str, n_pieces: u64) {
        let is_name = !reason.is_empty()
            && reason.len() <= MAX_REASON_BYTES
            && reason.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
        let mut fallbacks = self.fallbacks.lock().unwrap_or_else(PoisonError::into_inner);
        let is_room = fallbacks.len() < MAX_REASONS || fallbacks.contains_key(reason);
        let counted = fallbacks.entry(if is_name && is_room { reason } else { OTHER }.to_owned()).or_default();
        *counted = counted.saturating_add(n_pieces);
    }

    /// Fetches, and the bytes that were sent for them.
    pub(crate) fn fetched(&self) -> (u64, u64) {
        (self.n_fetches.load(Ordering::Relaxed), self.fetched_bytes.load(Ordering::Relaxed))
    }

    /// Messages that came too slowly.
    pub(crate) fn slow_messages(&self) -> u64 {
        self.slow_messages.load(Ordering::Relaxed)
    }

    /// Local compiles by reason.
    pub(crate) fn fallbacks(&self) -> BTreeMap<String, u64> {
        self.fallbacks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_bounded_and_names() {
        let tally = Tally::default();
        for n in 0..2 * MAX_REASONS {
            tally.fallback(&format!("REASON_{n}"), 1);
        }
        for text in ["", "lower", "A\nB", "A\"} 1", &"A".repeat(65)] {
            tally.fallback(text, 1);
        }
        tally.fallback("REASON_0", u64::MAX);
        let fallbacks = tally.fallbacks();
        assert_eq!(fallbacks.len(), MAX_REASONS + 1);
        assert_eq!((fallbacks["REASON_0"], fallbacks[OTHER]), (u64::MAX, MAX_REASONS as u64 + 5));
    }
}
