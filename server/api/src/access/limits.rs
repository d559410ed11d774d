//! How much one peer may ask of the daemon at a time, whatever it asks for: calls that are open, and calls that are begun.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimits {
    /// Calls that are open at a time.
    pub max_streams: usize,
    /// Calls that are begun, a second; as many may come at once.
    pub max_requests_per_s: u32,
}

/// Peers that are remembered without an open call, before they are looked through.
const MAX_IDLE: usize = 1024;

/// What peers use.
#[derive(Debug)]
pub(crate) struct Usage {
    limits: PeerLimits,
    peers: Mutex<HashMap<Arc<str>, Peer>>,
}

#[derive(Debug)]
struct Peer {
    n_open: usize,
    /// Calls that may be begun now, as of `at`.
    credit: f64,
    at: Instant,
}

/// Why a call is not begun.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TooMuch {
    Streams { limit: usize },
    Requests { limit: u32, retry_after: Duration },
}

/// A call that is open, until it is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    usage: Arc<Usage>,
    peer: Arc<str>,
}

impl Usage {
    pub(crate) fn new(limits: PeerLimits) -> Arc<Self> {
        Arc::new(Self { limits, peers: Mutex::default() })
    }

    /// Begins a call.
    pub(crate) fn begin(self: &Arc<Self>, peer: &Arc<str>, now: Instant) -> Result<Open, TooMuch> {
        let PeerLimits { max_streams, max_requests_per_s } = self.limits;
        let most = f64::from(max_requests_per_s);
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= MAX_IDLE && !peers.contains_key(peer) {
            peers.retain(|_, peer| peer.n_open > 0 || peer.credit(now, most) < most);
        }
        let used = peers.entry(Arc::clone(peer)).or_insert(Peer { n_open: 0, credit: most, at: now });
        used.credit = used.credit(now, most);
        used.at = now;
        if used.n_open >= max_streams {
            return Err(TooMuch::Streams { limit: max_streams });
        }
        if used.credit < 1.0 {
            let retry_after = Duration::from_secs_f64((1.0 - used.credit) / most);
            return Err(TooMuch::Requests { limit: max_requests_per_s, retry_after });
        }
        used.credit -= 1.0;
        used.n_open += 1;
        Ok(Open { usage: Arc::clone(self), peer: Arc::clone(peer) })
    }
}

impl Peer {
    fn credit(&self, now: Instant, most: f64) -> f64 {
        (self.credit + now.saturating_duration_since(self.at).as_secs_f64() * most).min(most)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut peers = self.usage.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get_mut(&self.peer) {
            peer.n_open -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_so_many_calls_open_and_begins_so_many_a_second() {
        let usage = Usage::new(PeerLimits { max_streams: 2, max_requests_per_s: 4 });
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let start = Instant::now();
        let first = usage.begin(&one, start).unwrap();
        let second = usage.begin(&one, start).unwrap();
        assert_eq!(usage.begin(&one, start).unwrap_err(), TooMuch::Streams { limit: 2 });
        // Another peer is not its business.
        usage.begin(&other, start).unwrap();
        drop((first, second));
        drop(usage.begin(&one, start).unwrap());
        drop(usage.begin(&one, start).unwrap());
        let retry_after = Duration::from_millis(250);
        assert_eq!(usage.begin(&one, start).unwrap_err(), TooMuch::Requests { limit: 4, retry_after });
        drop(usage.begin(&one, start + retry_after).unwrap());
        assert!(usage.begin(&one, start + retry_after).is_err());
        // What was not used is not saved up beyond a second's.
        let later = start + Duration::from_secs(100);
        for _ in 0..4 {
            drop(usage.begin(&one, later).unwrap());
        }
        assert!(usage.begin(&one, later).is_err());
    }

    #[test]
    fn peers_that_are_gone_are_forgotten() {
        let usage = Usage::new(PeerLimits { max_streams: 1, max_requests_per_s: 1 });
        let start = Instant::now();
        for n in 0..MAX_IDLE {
            drop(usage.begin(&format!("peer {n}").into(), start).unwrap());
        }
        drop(usage.begin(&"new".into(), start + Duration::from_secs(2)).unwrap());
        assert_eq!(usage.peers.lock().unwrap().len(), 1);
    }
}
