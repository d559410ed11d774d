//! The opt-in HTTP port: `/`, a page for people; `/healthz` and `/readyz`, for probes; `/metrics`, for Prometheus; `/api/v1/`, what the page is made of.
//! Read only: nothing that is sent to it changes anything.

mod access;
mod listing;
mod metrics;
mod overview;
mod page;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use piecewised_scheduler::{Scheduler, ToolchainStatus};
use piecewised_store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    connections::{Connections, GREETING_DEADLINE},
    tally::Tally,
};

pub(crate) use access::Hosts;

/// Of a request's line and headers.
const MAX_HEAD_BYTES: usize = 32 << 10;

/// What the pages are made of.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) scheduler: Scheduler,
    pub(crate) store: Store,
    pub(crate) tally: Arc<Tally>,
    pub(crate) connections: Vec<Arc<Connections>>,
    pub(crate) draining: CancellationToken,
    started_unix_s: u64,
}

impl Site {
    pub(crate) fn new(
        scheduler: Scheduler,
        store: Store,
        tally: Arc<Tally>,
        connections: Vec<Arc<Connections>>,
        draining: CancellationToken,
    ) -> Self {
        let started_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { scheduler, store, tally, connections, draining, started_unix_s }
    }

    /// Why compiles are not taken; `None`: they are.
    fn not_ready(&self) -> Option<String> {
        if self.draining.is_cancelled() {
            return Some("it is ending".to_owned());
        }
        match self.scheduler.toolchain() {
            ToolchainStatus::Ready(_) => None,
            ToolchainStatus::Probing => Some("it has just started and is importing torch".to_owned()),
            ToolchainStatus::Unusable { reason } => Some(reason),
        }
    }
}

/// Serves until `stop` is cancelled, and what was asked before that.
pub(crate) async fn serve(
    listener: TcpListener,
    connections: Arc<Connections>,
    site: Site,
    hosts: Hosts,
    stop: CancellationToken,
) {
    let router = Router::new()
        .route("/", get(page::page))
        .route("/api/v1/overview", get(overview::overview))
        .route("/api/v1/artifacts", get(listing::artifacts))
        .route("/api/v1/failures", get(listing::failures))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .fallback(no_such_page)
        .with_state(site)
        .layer(middleware::from_fn_with_state(hosts, access::guard));
    let mut http = http1::Builder::new();
    // Of the first request and of each later one: a connection on which nothing is asked is closed.
    http.timer(TokioTimer::new()).header_read_timeout(GREETING_DEADLINE).max_buf_size(MAX_HEAD_BYTES);
    let open = GracefulShutdown::new();
    loop {
        let (stream, place) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = connections.next(&listener) => accepted,
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = open.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection of the HTTP port ended: {error}");
            }
            drop(place);
        });
    }
    drop(listener);
    open.shutdown().await;
}

/// That the process answers is all that it says: what a restart would not mend (no torch, a full disk) must not cause one.
async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(site): State<Site>) -> Response {
    match site.not_ready() {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response(),
    }
}

async fn metrics_page(State(site): State<Site>) -> Response {
    match metrics::text(&site) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!("the metrics could not be written: {error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn no_such_page() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "there is /, /healthz, /readyz, /metrics, and /api/v1/overview, artifacts and failures\n")
}
