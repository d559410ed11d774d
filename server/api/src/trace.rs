//! Each call as a span of OpenTelemetry's, which continues the caller's trace (W3C Trace Context in the call's metadata), by OpenTelemetry's conventions for gRPC servers.
//!
//! Only OpenTelemetry's interface is used, which does nothing until the program installs an SDK and a propagator; where it doesn't, the layer is left out.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
};

use bytes::Bytes;
use http::{Extensions, HeaderMap};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use opentelemetry::{
    Context, KeyValue, global,
    propagation::Extractor,
    trace::{FutureExt as _, SpanKind, Status as SpanStatus, TraceContextExt as _, Tracer as _},
};
use piecewised_proto::v1;
use tonic::{
    Code, Status,
    body::Body,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};
use tonic_types::StatusExt as _;
use tower::{Layer, Service};

use crate::methods::Methods;

const TRACER: &str = "piecewised";
/// What stands for a method that there is not: names come from outside, and there must not be any number of them.
const OTHER: &str = "_OTHER";

/// Begins a span for each call, and ends it with the call. What is done for the call is done in its context.
#[derive(Debug, Clone)]
pub(crate) struct SpanLayer(pub(crate) Arc<Methods>);

impl<S> Layer<S> for SpanLayer {
    type Service = Spanned<S>;

    fn layer(&self, inner: S) -> Spanned<S> {
        Spanned { methods: Arc::clone(&self.0), inner }
    }
}

/// A service whose calls have spans.
#[derive(Debug, Clone)]
pub(crate) struct Spanned<S> {
    methods: Arc<Methods>,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Spanned<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let context = begin(&self.methods, &request);
        request.extensions_mut().insert(RequestSpan(context.clone()));
        let answer = self.inner.call(request).with_context(context.clone());
        let ending = Ending(Some(context));
        Box::pin(async move {
            let mut ending = ending;
            let answer = answer.await?;
            if let Some(status) = Status::from_header_map(answer.headers()) {
                // There is nothing but a status.
                ending.with(&status);
                return Ok(answer);
            }
            Ok(answer.map(|body| Body::new(SpannedBody { body, ending })))
        })
    }
}

fn begin(methods: &Methods, request: &http::Request<Body>) -> Context {
    let parent = global::get_text_map_propagator(|propagator| propagator.extract(&Carrier(request.headers())));
    let tracer = global::tracer(TRACER);
    let path = request.uri().path();
    let known = methods.of_path(path);
    let name = if known.is_some() { path.trim_start_matches('/').to_owned() } else { OTHER.to_owned() };
    let mut attributes = vec![KeyValue::new("rpc.system", "grpc")];
    match known {
        Some(method) => {
            attributes.push(KeyValue::new("rpc.service", method.service.clone()));
            attributes.push(KeyValue::new("rpc.method", method.name.clone()));
        }
        None => {
            attributes.push(KeyValue::new("rpc.method", OTHER));
            attributes.push(KeyValue::new("rpc.method_original", path.chars().take(100).collect::<String>()));
        }
    }
    attributes.extend(peer(request.extensions()));
    let span = tracer.span_builder(name).with_kind(SpanKind::Server).with_attributes(attributes);
    Context::new().with_span(span.start_with_context(&tracer, &parent))
}

/// From where it comes.
fn peer(extensions: &Extensions) -> Vec<KeyValue> {
    let tcp = match extensions.get::<TlsConnectInfo<TcpConnectInfo>>() {
        Some(tls) => Some(tls.get_ref()),
        None => extensions.get::<TcpConnectInfo>(),
    };
    match tcp.and_then(TcpConnectInfo::remote_addr) {
        None => vec![KeyValue::new("network.transport", "unix")],
        Some(address) => vec![
            KeyValue::new("network.transport", "tcp"),
            KeyValue::new("network.peer.address", address.ip().to_string()),
            KeyValue::new("network.peer.port", i64::from(address.port())),
        ],
    }
}

/// Ends a span with the call's status; where there is none since the caller has left, with CANCELLED.
#[derive(Debug)]
struct Ending(Option<Context>);

impl Ending {
    fn with(&mut self, status: &Status) {
        let Some(context) = self.0.take() else { return };
        let span = context.span();
        if span.is_recording() {
            span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(i32::from(status.code()))));
            if status.code() != Code::Ok {
                let reason = status.get_details_error_info().map(|info| info.reason);
                let reason = reason.unwrap_or_else(|| format!("{:?}", status.code()));
                span.set_attribute(KeyValue::new("error.type", reason));
                span.set_attribute(KeyValue::new("piecewised.message", status.message().to_owned()));
            }
            if is_servers_fault(status.code()) {
                span.set_status(SpanStatus::error(status.message().to_owned()));
            }
        }
        span.end();
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.0.is_some() {
            self.with(&Status::cancelled("the caller has left"));
        }
    }
}

/// By the conventions, what a caller did wrong is no error of the server's span.
fn is_servers_fault(code: Code) -> bool {
    use Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
    matches!(code, Unknown | DeadlineExceeded | Unimplemented | Internal | Unavailable | DataLoss)
}

/// An answer's body: its trailers have the status.
struct SpannedBody {
    body: Body,
    ending: Ending,
}

impl HttpBody for SpannedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                    self.ending.with(&status);
                }
            }
            Poll::Ready(Some(Err(status))) => self.ending.with(status),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The span of one call, to say more of it; in the request's extensions.
#[derive(Debug, Clone)]
pub(crate) struct RequestSpan(Context);

impl RequestSpan {
    /// That of a request; one that nobody records, where there is none.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_else(Self::none)
    }

    /// One that nobody records.
    pub(crate) fn none() -> Self {
        Self(Context::new())
    }

    /// What is asked for.
    pub(crate) fn asked(&self, label: &str, n_entries: usize) {
        let span = self.0.span();
        if span.is_recording() {
            span.set_attribute(KeyValue::new("piecewised.label", label.to_owned()));
            span.set_attribute(KeyValue::new("piecewised.entries", i64::try_from(n_entries).unwrap_or(i64::MAX)));
        }
    }

    /// What it came to.
    pub(crate) fn completed(&self, summary: &v1::Completed) {
        let span = self.0.span();
        if !span.is_recording() {
            return;
        }
        let counts = [
            ("piecewised.ready", summary.n_ready),
            ("piecewised.from_store", summary.n_from_store),
            ("piecewised.compiled", summary.n_compiled),
            ("piecewised.joined", summary.n_joined),
            ("piecewised.failed", summary.n_failed),
        ];
        span.set_attributes(counts.map(|(name, n)| KeyValue::new(name, i64::from(n))));
    }
}

/// A call's metadata, as propagators read it.
struct Carrier<'a>(&'a HeaderMap);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        // Propagators ask for what they know by name.
        Vec::new()
    }
}
