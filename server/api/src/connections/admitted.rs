//! A connection that has its place, and has to begin with HTTP/2's preface in time.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};
use tonic::transport::server::Connected;

use super::{GREETING_DEADLINE, Place, Refusal};

/// HTTP/2's preface, and the head of the SETTINGS that have to follow it.
const GREETING_BYTES: usize = 24 + 9;

/// The connection. It gives its place back when it is dropped.
#[derive(Debug)]
pub(crate) struct Admitted<S, I> {
    io: S,
    place: Place,
    /// Who is at its other end, for the extensions of its requests.
    info: I,
    /// Until the greeting has come: when it has to, and what is missing of it.
    greeting: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S, I> Admitted<S, I> {
    /// Its time begins now.
    pub(crate) fn new(io: S, place: Place, info: I) -> Self {
        let deadline = Box::pin(tokio::time::sleep(GREETING_DEADLINE));
        Self { io, place, info, greeting: Some((deadline, GREETING_BYTES)) }
    }
}

impl<S, I: Clone + Send + Sync + 'static> Connected for Admitted<S, I> {
    type ConnectInfo = I;

    fn connect_info(&self) -> I {
        self.info.clone()
    }
}

impl<S: AsyncRead + Unpin, I: Unpin> AsyncRead for Admitted<S, I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let n_before = buffer.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buffer);
        let Some((deadline, n_missing)) = &mut this.greeting else { return read };
        match read {
            Poll::Ready(Ok(())) => {
                let n_read = buffer.filled().len() - n_before;
                *n_missing = n_missing.saturating_sub(n_read);
                if *n_missing == 0 || n_read == 0 {
                    this.greeting = None;
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending if deadline.as_mut().poll(cx).is_ready() => {
                this.greeting = None;
                let problem = format!("HTTP/2 was not begun within {} s", GREETING_DEADLINE.as_secs());
                this.place.refuse(Refusal::Silent, &problem);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, problem)))
            }
            other => other,
        }
    }
}

impl<S: AsyncWrite + Unpin, I: Unpin> AsyncWrite for Admitted<S, I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
