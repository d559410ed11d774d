//! A connection of the Unix socket, and what is found out about the process at its other end: once, when it is accepted, since that process may end.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use piecewised_executor::Confinement;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixStream, unix::UCred},
};
use tonic::transport::server::Connected;

/// A connection.
#[derive(Debug)]
pub(crate) struct Local {
    stream: UnixStream,
    info: LocalInfo,
}

/// Who is at its other end, in the extensions of each of its requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalInfo {
    /// None: the system does not say.
    pub(crate) credentials: Option<UCred>,
    /// Whether it is one of the daemon's own executors, or was started by one.
    pub(crate) is_executor: bool,
}

impl Local {
    /// Looks at who connected. `uid`: the daemon's own user.
    pub(crate) fn new(stream: UnixStream, confinement: &Arc<Confinement>, uid: u32) -> Self {
        let credentials = stream.peer_cred().ok();
        let is_executor = credentials.is_some_and(|it| {
            let pid = it.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
            confinement.is_executor(pid, it.uid() == uid)
        });
        Self { stream, info: LocalInfo { credentials, is_executor } }
    }
}

impl Connected for Local {
    type ConnectInfo = LocalInfo;

    fn connect_info(&self) -> LocalInfo {
        self.info
    }
}

impl AsyncRead for Local {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Local {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
