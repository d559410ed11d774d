//! The opt-in HTTP port: `/`, a page for people; `/healthz` and `/readyz`, for probes; `/metrics`, for Prometheus; `/api/v1/`, what the page is made of.
//! Read only: nothing that is sent to it changes anything.

mod access;
mod listing;
mod metrics;
mod overview;
mod page;

use std::{
    future::Future,
    io,
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
use piecewised_scheduler::{Scheduler, ToolchainStatus};
use piecewised_store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::tally::Tally;

pub(crate) use access::Hosts;

/// What the pages are made of.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) scheduler: Scheduler,
    pub(crate) store: Store,
    pub(crate) tally: Arc<Tally>,
    pub(crate) draining: CancellationToken,
    started_unix_s: u64,
}

impl Site {
    pub(crate) fn new(scheduler: Scheduler, store: Store, tally: Arc<Tally>, draining: CancellationToken) -> Self {
        let started_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { scheduler, store, tally, draining, started_unix_s }
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

/// Serves until `stop` resolves.
pub(crate) async fn serve(
    listener: TcpListener,
    site: Site,
    hosts: Hosts,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
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
    axum::serve(listener, router).with_graceful_shutdown(stop).await
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
