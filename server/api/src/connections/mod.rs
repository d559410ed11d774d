//! Connections: how many may be open, of all and of one peer, and how long one may take to say what it wants.
//!
//! Each listener has its own count, so that who fills one (the HTTP port, which knows no authentication) keeps nobody from the others. One connection too many is closed at
//! once, counted, and logged with at most one line a second. Left out: what is done on a connection, which the calls' own limits bound.

mod admitted;
mod origin;

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

pub(crate) use admitted::Admitted;
use origin::Origin;

use crate::sparing::Sparing;

/// How long a connection may take until the peer has said what it speaks: TLS's handshake, HTTP/2's preface, the headers of a request of HTTP/1.1.
pub(crate) const GREETING_DEADLINE: Duration = Duration::from_secs(10);
/// After an accept that failed: no descriptors are left, say; others end, and then it goes on.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Of one listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections that are open at a time.
    pub max_connections: usize,
    /// Of one peer: a process on the Unix socket, a machine otherwise.
    pub max_per_peer: usize,
}

/// Why a connection was closed before it was of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// So many are open.
    Full,
    /// So many of its peer are.
    PeerFull,
    /// It did not say in time what it speaks.
    Silent,
    /// TLS's handshake failed.
    Tls,
}

impl Refusal {
    const ALL: [Self; 4] = [Self::Full, Self::PeerFull, Self::Silent, Self::Tls];

    fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::PeerFull => "peer_full",
            Self::Silent => "silent",
            Self::Tls => "tls",
        }
    }
}

/// The connections of one listener.
#[derive(Debug)]
pub(crate) struct Connections {
    listener: &'static str,
    limits: ConnectionLimits,
    open: Mutex<Open>,
    /// Of those that are refused.
    lines: Sparing,
}

#[derive(Debug, Default)]
struct Open {
    n_all: usize,
    peers: HashMap<Origin, usize>,
    n_refused: [u64; Refusal::ALL.len()],
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    connections: Arc<Connections>,
    origin: Origin,
}

impl Connections {
    pub(crate) fn new(listener: &'static str, limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self { listener, limits, open: Mutex::default(), lines: Sparing::new(1) })
    }

    /// The listener's name: "unix", "tcp" or "http".
    pub(crate) fn listener(&self) -> &'static str {
        self.listener
    }

    /// Those that are open.
    pub(crate) fn n_open(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).n_all
    }

    /// Those that were refused, by reason.
    pub(crate) fn refused(&self) -> [(&'static str, u64); Refusal::ALL.len()] {
        let n_refused = self.open.lock().unwrap_or_else(PoisonError::into_inner).n_refused;
        Refusal::ALL.map(|refusal| (refusal.name(), n_refused[refusal as usize]))
    }

    /// The next connection that has a place; those that have none are closed.
    pub(crate) async fn next<L: Accepts>(self: &Arc<Self>, listener: &L) -> (L::Stream, Place) {
        loop {
            match listener.accept_one().await {
                Ok((stream, origin)) => match self.enter(origin) {
                    Ok(place) => return (stream, place),
                    Err(refusal) => {
                        let ConnectionLimits { max_connections, max_per_peer } = self.limits;
                        self.refuse(refusal, || match refusal {
                            Refusal::PeerFull => format!("{max_per_peer} connections of {origin} are open already (max_connections_per_peer)"),
                            _ => format!("{max_connections} connections are open already (max_connections); the last came from {origin}"),
                        });
                        // Counted by now: who sees it closed can be told of that.
                        drop(stream);
                    }
                },
                Err(error) => {
                    tracing::warn!(listener = self.listener, "a connection was not accepted: {error}");
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
        }
    }

    fn enter(self: &Arc<Self>, origin: Origin) -> Result<Place, Refusal> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // First the peer's: a peer that is full is told apart from a daemon that is.
        if open.peers.get(&origin).is_some_and(|n| *n >= self.limits.max_per_peer) {
            return Err(Refusal::PeerFull);
        }
        if open.n_all >= self.limits.max_connections {
            return Err(Refusal::Full);
        }
        open.n_all += 1;
        *open.peers.entry(origin).or_default() += 1;
        Ok(Place { connections: Arc::clone(self), origin })
    }

    /// Counts one that was not served, and says so, unless that was just said of another.
    fn refuse(&self, refusal: Refusal, words: impl FnOnce() -> String) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).n_refused[refusal as usize] += 1;
        let Some(n_more) = self.lines.say() else { return };
        let words = words();
        let (listener, reason) = (self.listener, refusal.name());
        tracing::info!(target: "audit", listener, reason, n_more, "a connection was refused: {words}");
    }
}

impl Place {
    /// Says that its connection was not served after all.
    pub(crate) fn refuse(&self, refusal: Refusal, problem: &str) {
        self.connections.refuse(refusal, || format!("{}: {problem}", self.origin));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.n_all -= 1;
        if let Some(n) = open.peers.get_mut(&self.origin) {
            *n -= 1;
            if *n == 0 {
                open.peers.remove(&self.origin);
            }
        }
    }
}

/// What connections come from.
pub(crate) trait Accepts: Sync {
    type Stream: Send;

    /// The next one, and who is at its other end.
    fn accept_one(&self) -> impl Future<Output = io::Result<(Self::Stream, Origin)>> + Send;
}

impl Accepts for UnixListener {
    type Stream = UnixStream;

    async fn accept_one(&self) -> io::Result<(UnixStream, Origin)> {
        let (stream, _) = self.accept().await?;
        let origin = stream.peer_cred().map_or(Origin::Unknown, |found| Origin::of_process(found.pid(), found.uid()));
        Ok((stream, origin))
    }
}

impl Accepts for TcpListener {
    type Stream = TcpStream;

    async fn accept_one(&self) -> io::Result<(TcpStream, Origin)> {
        let (stream, address) = self.accept().await?;
        // Events are small, and waited for.
        let _ = stream.set_nodelay(true);
        Ok((stream, Origin::of_address(address.ip())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(pid: i32) -> Origin {
        Origin::of_process(Some(pid), 7)
    }

    #[test]
    fn a_peer_has_so_many_and_all_have_so_many() {
        let connections = Connections::new("unix", ConnectionLimits { max_connections: 3, max_per_peer: 2 });
        let first = connections.enter(origin(1)).unwrap();
        let second = connections.enter(origin(1)).unwrap();
        assert_eq!(connections.enter(origin(1)).unwrap_err(), Refusal::PeerFull);
        let third = connections.enter(origin(2)).unwrap();
        assert_eq!(connections.enter(origin(3)).unwrap_err(), Refusal::Full);
        drop(first);
        let fourth = connections.enter(origin(3)).unwrap();
        assert_eq!(connections.n_open(), 3);
        drop((second, third, fourth));
        assert_eq!(connections.n_open(), 0);
        assert!(connections.open.lock().unwrap().peers.is_empty(), "peers that are gone are forgotten");
    }

    #[test]
    fn refusals_are_counted_and_said_once_a_second() {
        let connections = Connections::new("http", ConnectionLimits { max_connections: 1, max_per_peer: 1 });
        let mut n_said = 0;
        for _ in 0..1000 {
            connections.refuse(Refusal::Full, || {
                n_said += 1;
                String::new()
            });
        }
        connections.refuse(Refusal::Tls, String::new);
        assert_eq!(connections.refused(), [("full", 1000), ("peer_full", 0), ("silent", 0), ("tls", 1)]);
        assert!((1..1000).contains(&n_said), "{n_said}");
    }
}
