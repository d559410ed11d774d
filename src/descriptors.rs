//! File descriptors: a connection takes one, and a daemon that has none left can neither read its store nor start executors.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is left for everything but connections: the store's files, executors' pipes, artifacts that are being fetched.
const RESERVE: u64 = 512;

/// Sees to it that each of so many listeners can have so many connections, by raising the process's soft limit as far as that needs; executors inherit it. Where the hard
/// limit does not let it, fewer connections may be open, which this says and returns.
pub(crate) fn make_room(max_connections: usize, n_listeners: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = room(max_connections, n_listeners);
    // `None` is no limit.
    if limit.current.is_none_or(|current| current >= wanted) {
        return max_connections;
    }
    let most = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum });
    let given = if raised.is_ok() { most } else { limit.current.unwrap_or(most) };
    let fitting = fitting(given, max_connections, n_listeners);
    if fitting < max_connections {
        tracing::warn!(
            max_connections,
            fitting,
            n_descriptors = given,
            "the system gives too few descriptors for so many connections at each listener; {wanted} would do (ulimit -n, LimitNOFILE=)"
        );
    }
    fitting
}

fn room(max_connections: usize, n_listeners: usize) -> u64 {
    (max_connections as u64).saturating_mul(n_listeners as u64).saturating_add(RESERVE)
}

/// How many connections each listener can have with so many descriptors; never none, and of few descriptors half.
fn fitting(n_descriptors: u64, max_connections: usize, n_listeners: usize) -> usize {
    let n_left = n_descriptors.saturating_sub(RESERVE).max(n_descriptors / 2);
    let each = usize::try_from(n_left / (n_listeners.max(1) as u64)).unwrap_or(usize::MAX);
    each.clamp(1, max_connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_something_to_the_rest() {
        assert_eq!(room(1024, 3), 3 * 1024 + RESERVE);
        assert_eq!(fitting(room(1024, 3), 1024, 3), 1024);
        assert_eq!(fitting(1024, 1024, 1), 512);
        assert_eq!(fitting(1024, 1024, 2), 256);
        assert_eq!(fitting(4096, 1024, 2), 1024);
        assert_eq!(fitting(64, 1024, 2), 16);
        assert_eq!(fitting(1, 1024, 3), 1);
    }
}
