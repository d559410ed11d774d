//! How long a request's message may take to come, once its headers are here: one that comes byte by byte would hold one of its peer's calls, and what has come of it, for as
//! long as it likes.
//!
//! A call of one message has so long for all of it. Of a stream it is the first message, and each later one from its first byte on: how long a stream is silent between two
//! is its service's business. Only what is waited for counts: a daemon that is slow to read is not the caller's fault.

use std::{
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::{Code, Status, body::Body};

use crate::{methods::Methods, status::ApiError, tally::Tally};

/// gRPC's prefix of a message: one byte that says whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Bounds what comes.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    timeout: Duration,
    methods: Arc<Methods>,
    tally: Arc<Tally>,
}

impl Arrival {
    pub(crate) fn new(timeout: Duration, methods: Arc<Methods>, tally: Arc<Tally>) -> Self {
        Self { timeout, methods, tally }
    }

    /// Bounds the body of one request. For `MapRequestLayer`.
    pub(crate) fn bound(&self, request: http::Request<Body>) -> http::Request<Body> {
        let is_stream = self.methods.of_path(request.uri().path()).is_some_and(|method| method.is_client_streaming);
        let (timeout, tally) = (self.timeout, Arc::clone(&self.tally));
        request.map(|body| {
            Body::new(Timely { body, timeout, tally, messages: is_stream.then(Messages::default), deadline: None })
        })
    }
}

/// The error of a message that took too long.
pub(crate) fn slow(what: &str, timeout: Duration) -> ApiError {
    let seconds = timeout.as_secs();
    let message = format!(
        "{what} within {seconds} s of being waited for; send it at once, or have the operator raise message_timeout_s where the way here is slow"
    );
    ApiError::new(Code::DeadlineExceeded, "SLOW_MESSAGE", message).with("message_timeout_s", seconds.to_string())
}

/// A body that has to come in time.
struct Timely {
    body: Body,
    timeout: Duration,
    tally: Arc<Tally>,
    /// `None`: it is one message.
    messages: Option<Messages>,
    /// Once something is waited for.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for Timely {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(messages), Some(data)) = (&mut this.messages, frame.data_ref())
                    && messages.take(data)
                {
                    this.deadline = None;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending if this.messages.as_ref().is_none_or(Messages::is_one_coming) => {
                let timeout = this.timeout;
                let deadline = this.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                if deadline.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                this.tally.slow_message();
                let error = slow("the request's message did not come", timeout);
                tracing::info!("refused: {error:?}");
                Poll::Ready(Some(Err(error.into())))
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Where one message of a stream ends and the next begins.
#[derive(Debug, Default)]
struct Messages {
    prefix: Vec<u8>,
    /// Bytes of the message that are still to come, once its prefix is here.
    n_left: usize,
    n_whole: u64,
}

impl Messages {
    /// Whether bytes are waited for that somebody has to send now.
    fn is_one_coming(&self) -> bool {
        self.n_whole == 0 || !self.prefix.is_empty()
    }

    /// Notes what came; whether a message ended with it, or began.
    fn take(&mut self, mut data: &[u8]) -> bool {
        let n_before = self.n_whole;
        let began = self.prefix.is_empty() && n_before > 0;
        while !data.is_empty() {
            if self.prefix.len() < PREFIX_BYTES {
                let (prefix, rest) = data.split_at(data.len().min(PREFIX_BYTES - self.prefix.len()));
                self.prefix.extend_from_slice(prefix);
                data = rest;
                if let [_, a, b, c, d] = self.prefix[..] {
                    self.n_left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                }
            }
            let n_taken = data.len().min(self.n_left);
            self.n_left -= n_taken;
            data = &data[n_taken..];
            if self.prefix.len() == PREFIX_BYTES && self.n_left == 0 {
                self.prefix.clear();
                self.n_whole += 1;
            }
        }
        began || self.n_whole > n_before
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::BodyExt as _;
    use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

    use super::*;

    #[test]
    fn messages_are_told_apart_however_they_are_cut() {
        let mut bytes = Vec::new();
        for n in [3_u32, 0, 7, 1] {
            bytes.push(0);
            bytes.extend(n.to_be_bytes());
            bytes.extend(vec![9; n as usize]);
        }
        for n_bytes in 1..bytes.len() {
            let mut messages = Messages::default();
            assert!(messages.is_one_coming(), "the first");
            for chunk in bytes.chunks(n_bytes) {
                messages.take(chunk);
            }
            assert_eq!((messages.n_whole, messages.is_one_coming()), (4, false), "in chunks of {n_bytes}");
            messages.take(&[0]);
            assert!(messages.is_one_coming());
        }
    }

    /// What comes out of a body whose parts are sent by hand, with time that passes by itself.
    async fn outcome(path: &str, parts: Vec<(u64, &'static [u8])>, left_open: bool) -> (usize, Option<Status>) {
        let tally = Arc::new(Tally::default());
        let arrival = Arrival::new(Duration::from_secs(10), Arc::new(Methods::new().unwrap()), Arc::clone(&tally));
        let (send, receive) = tokio::sync::mpsc::channel(1);
        let sender = tokio::spawn(async move {
            for (seconds, part) in parts {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                let _ = send.send(Ok::<_, Infallible>(Frame::data(Bytes::from_static(part)))).await;
            }
            if left_open {
                send.closed().await;
            }
        });
        let body = Body::new(http_body_util::StreamBody::new(ReceiverStream::new(receive)));
        let request = http::Request::builder().uri(path).body(body).unwrap();
        let mut body = arrival.bound(request).into_body().into_data_stream();
        let (mut n_bytes, mut error) = (0, None);
        while let Some(data) = body.next().await {
            match data {
                Ok(data) => n_bytes += data.len(),
                Err(status) => {
                    error = Some(status);
                    break;
                }
            }
        }
        drop(body);
        sender.await.unwrap();
        assert_eq!(tally.slow_messages(), u64::from(error.is_some()));
        (n_bytes, error)
    }

    const ONE: &str = "/piecewised.v1.CompileService/Compile";
    const MANY: &str = "/piecewised.v1.CompileService/PutSnapshot";

    #[tokio::test(start_paused = true)]
    async fn a_message_in_time_passes_and_one_that_drips_does_not() {
        let (n, error) = outcome(ONE, vec![(4, &[0, 0, 0, 0, 2]), (5, &[1, 2])], false).await;
        assert!(n == 7 && error.is_none());
        for path in [ONE, MANY] {
            let (n, error) = outcome(path, vec![(4, &[0]), (4, &[0]), (4, &[0]), (4, &[0])], true).await;
            let error = error.unwrap();
            assert!(n == 2 && error.code() == Code::DeadlineExceeded, "{error}");
            assert!(error.message().starts_with("SLOW_MESSAGE: "), "{error}");
        }
        // A request's end belongs to it.
        assert!(outcome(ONE, vec![(0, &[0, 0, 0, 0, 0])], true).await.1.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_may_be_silent_between_its_messages_and_not_within_one() {
        const EMPTY: &[u8] = &[0, 0, 0, 0, 0];
        let (n, error) = outcome(MANY, vec![(5, EMPTY), (1000, EMPTY), (1000, EMPTY), (1000, EMPTY)], false).await;
        assert!(n == 20 && error.is_none());
        let (_, error) = outcome(MANY, vec![(5, EMPTY), (1000, &[0]), (4, &[0]), (4, &[0]), (4, &[0])], true).await;
        assert!(error.is_some());
        // Each has its own time.
        let parts = vec![(5, EMPTY), (0, &[0][..]), (8, &[0, 0, 0, 1]), (1, &[7, 0]), (8, &[0, 0, 0, 0])];
        assert!(outcome(MANY, parts, false).await.1.is_none());
    }
}
