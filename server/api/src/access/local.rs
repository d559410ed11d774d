//! The process at the other end of a connection of the Unix socket: found out about once, when it is accepted, since that process may end.

use piecewised_executor::Confinement;
use tokio::net::{UnixStream, unix::UCred};

/// Who it is, in the extensions of each of its requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalInfo {
    /// None: the system does not say.
    pub(crate) credentials: Option<UCred>,
    /// Whether it is one of the daemon's own executors, or was started by one.
    pub(crate) is_executor: bool,
}

impl LocalInfo {
    /// Looks at who connected. `uid`: the daemon's own user.
    pub(crate) fn of(stream: &UnixStream, confinement: &Confinement, uid: u32) -> Self {
        let credentials = stream.peer_cred().ok();
        let is_executor = credentials.is_some_and(|it| {
            let pid = it.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
            confinement.is_executor(pid, it.uid() == uid)
        });
        Self { credentials, is_executor }
    }
}
