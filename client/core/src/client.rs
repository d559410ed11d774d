//! The calls: ask what the daemon can do, compile a piece, fetch what was compiled.

use std::{
    collections::BTreeMap,
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::uri::PathAndQuery;
use piecewised_graph::{
    Frontend,
    model::Graph,
    request::{ArtifactFormat, CompileOptions, DeviceKind, Toolchain},
};
use piecewised_plan::{Plan, Range};
use piecewised_proto::{
    codec::EncodedCodec,
    v1::{self, client::compile_service_client::CompileServiceClient},
};
use piecewised_wire::{
    Delivery, device_to_proto, frontend_to_proto, graph_to_proto, options_to_proto, plan_to_proto, toolchain_to_proto,
};
use prost::Message as _;
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::Streaming;

use crate::{
    Capabilities, ClientError, Credentials, Endpoint, Event, EventKind, Keyring, ProgramPiece, TraceContext,
    answer::Answer,
    connect::{Connection, connect},
};

/// The call's path.
const COMPILE: &str = "/piecewised.v1.CompileService/Compile";

/// So much later than we, the daemon gives up: the budget is ours to keep, and the error ours to make.
const GRACE: Duration = Duration::from_secs(5);

/// Bounds of a client. The defaults fit a worker that starts beside a daemon on the same node.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long to wait for a daemon that says it isn't ready yet, or whose queue is full.
    pub ready_timeout: Duration,
    /// How long a compile that somebody waits for may take, from the request to its last event; `None`: as long as it takes.
    pub compile_budget: Option<Duration>,
    /// How long one artifact's transfer may stand still, and how often it is taken up again.
    pub fetch: FetchOptions,
    /// What this side shows the daemon.
    pub credentials: Credentials,
    /// Whose code is loaded. The default takes the key of each daemon on the first use of its Unix socket, and forgets it with the process.
    pub keyring: Keyring,
}

/// Bounds of a transfer.
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// Larger artifacts are refused before the first byte.
    pub max_artifact_bytes: u64,
    /// How many times in a row a broken transfer is taken up again without a single byte of progress.
    pub max_retries: u32,
    /// The wait before the first retry; each further one waits twice as long.
    pub backoff: Duration,
    /// The longest time without a chunk.
    pub stall_timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            ready_timeout: Duration::from_secs(60),
            compile_budget: None,
            fetch: FetchOptions {
                max_artifact_bytes: 8 << 30,
                max_retries: 5,
                backoff: Duration::from_millis(50),
                stall_timeout: Duration::from_secs(60),
            },
            credentials: Credentials::default(),
            keyring: Keyring::default(),
        }
    }
}

/// A connection to one daemon. Cheap to clone; connects again by itself.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) service: CompileServiceClient<Connection>,
    pub(crate) channel: Connection,
    pub(crate) options: ClientOptions,
    endpoint: Endpoint,
}

/// Which jobs go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// Somebody waits for it now.
    #[default]
    Interactive,
    /// Somebody will, soon: after what somebody waits for.
    Prefetch,
    /// What runs already would run better with it: when nothing else waits. No budget bounds it.
    Background,
}

/// One piece to compile.
#[derive(Debug, Clone)]
pub struct CompileRequest {
    /// The piece.
    pub graph: Graph,
    /// For which sizes.
    pub plan: Plan,
    /// The compiler's options and the process's settings.
    pub options: CompileOptions,
    /// How the artifact is packed.
    pub format: ArtifactFormat,
    /// Hints, and how the results are to be delivered.
    pub delivery: Delivery,
    /// What goes before it.
    pub priority: Priority,
    /// The caller's own, so that it never gets what it can't load.
    pub toolchain: Option<Toolchain>,
    /// What the caller runs on.
    pub device: Option<DeviceKind>,
    /// Which piece of which program it is; `None`: a piece by itself.
    pub program: Option<ProgramPiece>,
    /// What takes part in the compile, and its payload.
    pub frontend: Option<(Frontend, Vec<u8>)>,
    /// What the caller calls the piece; empty: nothing.
    pub label: String,
}

impl CompileRequest {
    /// As it is usually made: a fast compile that somebody waits for, by whatever toolchain and for whatever device the daemon has, nothing but the graph and
    /// its plan.
    pub fn new(graph: Graph, plan: Plan, format: ArtifactFormat) -> Self {
        Self {
            graph,
            plan,
            format,
            options: CompileOptions::default(),
            delivery: Delivery::default(),
            priority: Priority::default(),
            toolchain: None,
            device: None,
            program: None,
            frontend: None,
            label: String::new(),
        }
    }
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::BadCredentials`].
    pub async fn connect(endpoint: Endpoint, options: ClientOptions) -> Result<Self, ClientError> {
        let channel = connect(&endpoint, options.connect_timeout, &options.credentials).await?;
        Ok(Self { service: CompileServiceClient::new(channel.clone()), channel, options, endpoint })
    }

    /// Where the daemon is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What the daemon can do.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Broken`].
    pub async fn capabilities(&self) -> Result<Capabilities, ClientError> {
        self.capabilities_for("").await
    }

    /// The same, of a caller whose requests will have this frontend: the daemon gets ready for it.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Broken`].
    pub async fn capabilities_for(&self, frontend: &str) -> Result<Capabilities, ClientError> {
        let request = v1::GetCapabilitiesRequest { frontend: frontend.to_owned() };
        let response = self.service.clone().get_capabilities(request).await;
        let response = response.map_err(|status| ClientError::from_status(&status, "asking for its capabilities"))?;
        Ok(response.into_inner().into())
    }

    /// Tells the daemon of pieces that were compiled without it, by reason (`UNSUPPORTED_GRAPH`), for its metrics.
    ///
    /// # Errors
    /// [`ClientError::Refused`] (of a daemon that does not know this call yet, among others), [`ClientError::Broken`].
    pub async fn report_fallbacks(&self, reasons: BTreeMap<String, u64>) -> Result<(), ClientError> {
        let fallback = |(reason, n_pieces)| v1::Fallback { reason, n_pieces };
        let request = v1::ReportFallbacksRequest { fallbacks: reasons.into_iter().map(fallback).collect() };
        let answer = self.service.clone().report_fallbacks(request).await;
        answer.map_err(|status| ClientError::from_status(&status, "telling it of local compiles"))?;
        Ok(())
    }

    /// Compiles a piece for its plan, within the trace that is active where this is called. Waits for a daemon that isn't ready yet, up to [`ClientOptions::ready_timeout`].
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Broken`], [`ClientError::BudgetSpent`].
    pub async fn compile(&self, request: CompileRequest) -> Result<CompileStream, ClientError> {
        self.compile_traced(request, TraceContext::current()).await
    }

    /// The same, within this trace.
    ///
    /// # Errors
    /// Those of [`Client::compile`].
    pub async fn compile_traced(
        &self,
        request: CompileRequest,
        trace: TraceContext,
    ) -> Result<CompileStream, ClientError> {
        let Some(budget) = self.options.compile_budget.filter(|_| request.priority != Priority::Background) else {
            return self.compile_within(None, request, trace).await;
        };
        let started = Instant::now();
        match tokio::time::timeout(budget, self.compile_within(Some(budget), request, trace)).await {
            Ok(stream) => Ok(stream?.with_budget(budget, started)),
            Err(_) => Err(ClientError::BudgetSpent { budget }),
        }
    }

    /// `deadline`: how long we wait, for the daemon to know. It is not this that ends the call.
    async fn compile_within(
        &self,
        deadline: Option<Duration>,
        request: CompileRequest,
        trace: TraceContext,
    ) -> Result<CompileStream, ClientError> {
        let entries = request.plan.entries().to_vec();
        // Encoded once: the daemon signs the digest of these very bytes.
        let message = Bytes::from(request.into_proto().encode_to_vec());
        let give_up_at = Instant::now() + self.options.ready_timeout;
        let mut wait = Duration::from_millis(100);
        loop {
            let mut call = tonic::Request::new(message.clone());
            trace.write(call.metadata_mut());
            if let Some(deadline) = deadline {
                call.set_timeout(deadline + GRACE);
            }
            let answer = self.call_compile(call).await;
            let error = match answer {
                Ok(response) => {
                    return Ok(CompileStream {
                        events: response.into_inner(),
                        entries,
                        answer: Answer::new(&message, self.options.keyring.clone(), self.endpoint.clone()),
                        is_complete: false,
                        budget: None,
                    });
                }
                Err(status) => ClientError::from_status(&status, "asking it to compile"),
            };
            let asked_for = match &error {
                ClientError::Refused(refusal) => refusal.retry_after,
                _ => None,
            };
            let pause = asked_for.unwrap_or(wait).min(Duration::from_secs(5));
            if !error.waiting_helps() || Instant::now() + pause > give_up_at {
                return Err(error);
            }
            tracing::debug!(%error, ?pause, "waiting for the daemon");
            tokio::time::sleep(pause).await;
            wait = (wait * 2).min(Duration::from_secs(2));
        }
    }
}

impl Client {
    async fn call_compile(
        &self,
        call: tonic::Request<Bytes>,
    ) -> Result<tonic::Response<Streaming<v1::CompileEvent>>, tonic::Status> {
        let mut calls = tonic::client::Grpc::new(self.channel.clone());
        calls.ready().await.map_err(|error| tonic::Status::from_error(Box::new(error)))?;
        let codec = EncodedCodec::<v1::CompileRequest, v1::CompileEvent>::default();
        calls.server_streaming(call, PathAndQuery::from_static(COMPILE), codec).await
    }
}

impl CompileRequest {
    pub(crate) fn into_proto(self) -> v1::CompileRequest {
        v1::CompileRequest {
            graph: Some(graph_to_proto(&self.graph)),
            plan: Some(plan_to_proto(&self.plan)),
            options: Some(options_to_proto(&self.options, self.format, &self.delivery)),
            toolchain: self.toolchain.as_ref().map(toolchain_to_proto),
            device: self.device.as_ref().map(device_to_proto),
            program: self.program.map(ProgramPiece::into_proto),
            priority: match self.priority {
                Priority::Interactive => v1::Priority::Interactive,
                Priority::Prefetch => v1::Priority::Prefetch,
                Priority::Background => v1::Priority::Background,
            }
            .into(),
            frontend: self.frontend.as_ref().map(|(frontend, payload)| frontend_to_proto(frontend, payload)),
            label: self.label,
        }
    }
}

/// What happens to a compile, as it happens. Ends after [`EventKind::Completed`] or an error; leaving early is fine.
#[derive(Debug)]
pub struct CompileStream {
    events: Streaming<v1::CompileEvent>,
    entries: Vec<Range>,
    answer: Answer,
    is_complete: bool,
    /// How long it may take in all, and the timer that runs out then.
    budget: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl CompileStream {
    /// The plan's entries, which events name by position.
    pub fn entries(&self) -> &[Range] {
        &self.entries
    }

    fn with_budget(mut self, budget: Duration, started: Instant) -> Self {
        self.budget = Some((budget, Box::pin(tokio::time::sleep_until((started + budget).into()))));
        self
    }
}

impl Stream for CompileStream {
    type Item = Result<Event, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        const DOING: &str = "compiling";
        loop {
            if self.is_complete {
                return Poll::Ready(None);
            }
            let stream = &mut *self;
            let next = match (Pin::new(&mut stream.events).poll_next(cx), stream.budget.as_mut()) {
                (Poll::Ready(next), _) => next,
                (Poll::Pending, Some((budget, timer))) => {
                    let budget = *budget;
                    std::task::ready!(timer.as_mut().poll(cx));
                    self.is_complete = true;
                    return Poll::Ready(Some(Err(ClientError::BudgetSpent { budget })));
                }
                (Poll::Pending, None) => return Poll::Pending,
            };
            let item = match next {
                Some(Ok(event)) => match Event::from_proto(event, &stream.entries, &mut stream.answer) {
                    Ok(None) => continue,
                    Ok(Some(event)) => Ok(event),
                    Err(error) => Err(error),
                },
                Some(Err(status)) => Err(ClientError::from_status(&status, DOING)),
                None => Err(ClientError::Broken { doing: DOING, problem: "it ended before it was complete".into() }),
            };
            self.is_complete = matches!(item, Err(_) | Ok(Event { kind: EventKind::Completed(_), .. }));
            return Poll::Ready(Some(item));
        }
    }
}
