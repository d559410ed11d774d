//! The gRPC services: `piecewised.v1.CompileService` and `AdminService`, health, reflection; and the HTTP port: the live page, probes, metrics.
//!
//! The outermost room of the server: it alone knows tonic and the messages. It turns requests into jobs, job states into
//! events, and errors into `Status` ([`status`], the one mapping). It decides nothing that outlives a request.

mod access;
mod account;
mod admin;
mod arrival;
mod capabilities;
mod connections;
mod events;
mod explain;
mod fetch;
mod frontend;
mod http;
mod known;
mod methods;
mod node_status;
mod peer;
mod received;
mod request;
mod service;
mod snapshots;
mod sparing;
pub mod status;
mod tally;
mod tls;
mod trace;
mod trust;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use piecewised_graph::Limits;
use piecewised_proto::{
    FILE_DESCRIPTOR_SET,
    v1::{admin_service_server::AdminServiceServer, compile_service_server::CompileServiceServer},
};
use piecewised_scheduler::Scheduler;
use piecewised_sign::Signer;
use piecewised_store::Store;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::Stream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Server, server::Connected};
use tower::util::{MapRequestLayer, MapResponseLayer, option_layer};

use crate::{
    access::AccessLayer,
    admin::Admin,
    arrival::Arrival,
    connections::{Accepts, Admitted, Connections},
    http::{Hosts, Site},
    methods::Methods,
    tally::Tally,
    trace::SpanLayer,
};

pub use access::{Access, AccessConfig, BadRole, BadTokens, PeerLimits, Role, Roles, Who, check_private};
pub use connections::ConnectionLimits;
pub use service::Compiler;
pub use tls::{BadTls, Tls, TlsFiles};
pub use trust::TrustedPeers;

/// Of one request's headers.
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// A connection on which nothing is heard is asked whether anybody is there, and closed where no answer comes: machines vanish without a word.
/// Its answer is a message as any other, which may take as long as those may, and it is asked after half of that. A process that is there may be slow to
/// answer on a busy machine, so this is the least.
const MIN_PING_DEADLINE: Duration = Duration::from_secs(2);

/// What requests may hold, and how long they wait.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Bounds on graphs.
    pub graph_limits: Limits,
    /// Bytes of one request.
    pub max_message_bytes: usize,
    /// Entries of one plan.
    pub max_ranges: usize,
    /// Jobs that may wait; told to callers.
    pub max_queued_jobs: usize,
    /// Bytes of a snapshot.
    pub max_snapshot_bytes: u64,
    /// Pieces of a program; told to callers.
    pub max_pieces: u32,
    /// Compiles side by side; told to callers.
    pub n_executors: usize,
    /// How long a Compile waits for a toolchain that is still being probed.
    pub toolchain_timeout: Duration,
    /// Who may call, and what for.
    pub access: Arc<Access>,
    /// Signs what is handed out.
    pub signer: Arc<Signer>,
    /// Names that the HTTP port answers to, beside addresses and `localhost`.
    pub http_hosts: Vec<String>,
    /// Of each listener.
    pub connection_limits: ConnectionLimits,
    /// How long a request's message may take to come.
    pub message_timeout: Duration,
    /// Whether somebody takes spans.
    pub is_traced: bool,
}

/// Where to listen.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket, already bound.
    Unix(UnixListener, PathBuf),
    /// A TCP socket, already bound, and the TLS that is spoken there.
    Tcp(TcpListener, Option<Tls>),
    /// A TCP socket for HTTP, already bound: a page for people, probes and metrics.
    Http(TcpListener),
}

/// How serving ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptor set that was compiled in does not fit the reflection service.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A descriptor set that was compiled in cannot be read.
    #[error("descriptors: {0}")]
    Descriptors(#[from] prost::DecodeError),
    /// A listener failed.
    #[error("serving: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves on every listener. From `draining` on, health says NOT_SERVING while calls are still answered (new compiles are refused by
/// the scheduler, what was compiled can be fetched); from `stop` on no more calls are taken, and open ones end. An admin's wish that the daemon drain
/// cancels `drain`.
///
/// # Errors
/// [`ServeError`] where a listener fails. The others are ended too.
pub async fn serve(
    listeners: Vec<Listener>,
    scheduler: Scheduler,
    store: Store,
    config: ApiConfig,
    draining: CancellationToken,
    stop: CancellationToken,
    drain: CancellationToken,
) -> Result<(), ServeError> {
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<CompileServiceServer<Compiler>>().await;
    health_reporter.set_serving::<AdminServiceServer<Admin>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Half of the tools in use still ask for v1alpha.
    let (reflection, reflection_alpha) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    let max_message_bytes = config.max_message_bytes;
    let tally = Arc::new(Tally::default());
    let limits = config.connection_limits;
    let [unix, tcp, http] = ["unix", "tcp", "http"].map(|listener| Connections::new(listener, limits));
    let connections: Vec<_> = [&unix, &tcp, &http].map(Arc::clone).into();
    let site = Site::new(scheduler.clone(), store.clone(), Arc::clone(&tally), connections, draining.clone());
    let methods = Arc::new(Methods::new()?);
    let ping_deadline = config.message_timeout.max(MIN_PING_DEADLINE);
    let arrival = Arrival::new(config.message_timeout, Arc::clone(&methods), Arc::clone(&tally));
    let spans = config.is_traced.then_some(SpanLayer(methods));
    let hosts = Hosts::new(&config.http_hosts);
    let access = Arc::clone(&config.access);
    let config = Arc::new(config);
    let admin = Admin::new(scheduler.clone(), store.clone(), Arc::clone(&config), stop.clone(), drain);
    let admin = AdminServiceServer::new(admin).max_encoding_message_size(usize::MAX);
    let compiler = CompileServiceServer::new(Compiler::new(scheduler, store, config, tally))
        .max_decoding_message_size(max_message_bytes)
        .max_encoding_message_size(usize::MAX);
    let router = || {
        Server::builder()
            // A piece is described in one message and an artifact comes in chunks of 256 KiB: windows of this size keep a
            // fetch on a local socket from waiting for window updates.
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .max_concurrent_streams(1024)
            .http2_keepalive_interval(Some(ping_deadline / 2))
            .http2_keepalive_timeout(Some(ping_deadline))
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .layer(option_layer(spans.clone()))
            .layer(MapResponseLayer::new(status::name_oversized_messages))
            .layer(AccessLayer(Arc::clone(&access)))
            .layer(MapRequestLayer::new({
                let arrival = arrival.clone();
                move |request| received::digest_compiles(arrival.bound(request))
            }))
            .add_service(health.clone())
            .add_service(reflection.clone())
            .add_service(reflection_alpha.clone())
            .add_service(compiler.clone())
            .add_service(admin.clone())
    };

    let tasks = TaskTracker::new();
    let mut handles = Vec::new();
    for listener in listeners {
        let (stopping, stopped) = (stop.clone(), stop.clone().cancelled_owned());
        let (router, site, hosts, access) = (router(), site.clone(), hosts.clone(), Arc::clone(&access));
        let (unix, tcp, http) = (Arc::clone(&unix), Arc::clone(&tcp), Arc::clone(&http));
        handles.push(tasks.spawn(async move {
            match listener {
                Listener::Unix(listener, _) => {
                    router
                        .serve_with_incoming_shutdown(
                            admitted(listener, unix, move |stream| access.local(stream)),
                            stopped,
                        )
                        .await?;
                }
                Listener::Tcp(listener, Some(tls)) => {
                    let connections = tls.accept(listener, tcp, stopping);
                    router.serve_with_incoming_shutdown(connections, stopped).await?;
                }
                Listener::Tcp(listener, None) => {
                    router
                        .serve_with_incoming_shutdown(admitted(listener, tcp, Connected::connect_info), stopped)
                        .await?;
                }
                Listener::Http(listener) => http::serve(listener, http, site, hosts, stopping).await,
            }
            Ok::<(), ServeError>(())
        }));
    }
    tasks.close();
    tokio::select! {
        () = draining.cancelled() => {}
        () = stop.cancelled() => {}
        () = tasks.wait() => {}
    }
    health_reporter.set_not_serving::<CompileServiceServer<Compiler>>().await;
    health_reporter.set_not_serving::<AdminServiceServer<Admin>>().await;
    tasks.wait().await;
    for handle in handles {
        if let Ok(result) = handle.await {
            result?;
        }
    }
    Ok(())
}

/// The connections of a listener that have a place. `info`: who is at the other end of one.
fn admitted<L: Accepts + Send, I: Send>(
    listener: L,
    connections: Arc<Connections>,
    info: impl Fn(&L::Stream) -> I + Send,
) -> impl Stream<Item = io::Result<Admitted<L::Stream, I>>> + Send {
    async_stream::stream! {
        loop {
            let (stream, place) = connections.next(&listener).await;
            let info = info(&stream);
            yield Ok(Admitted::new(stream, place, info));
        }
    }
}
