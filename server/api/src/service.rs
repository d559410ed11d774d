//! `CompileService`.

use std::{pin::Pin, sync::Arc, time::Instant};

use piecewised_proto::v1::{self, compile_service_server::CompileService};
use piecewised_scheduler::Scheduler;
use piecewised_store::Store;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status};

use crate::{
    ApiConfig,
    capabilities::capabilities,
    events::events,
    fetch,
    request::{Checked, check},
    status::ApiError,
};

/// The service over a scheduler and a store.
#[derive(Debug)]
pub struct Compiler {
    scheduler: Scheduler,
    store: Store,
    config: Arc<ApiConfig>,
}

impl Compiler {
    /// A service with these limits.
    pub fn new(scheduler: Scheduler, store: Store, config: Arc<ApiConfig>) -> Self {
        Self { scheduler, store, config }
    }
}

type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl CompileService for Compiler {
    type CompileStream = EventStream<v1::CompileEvent>;
    type FetchArtifactStream = EventStream<v1::FetchArtifactResponse>;

    async fn get_capabilities(
        &self,
        _request: Request<v1::GetCapabilitiesRequest>,
    ) -> Result<Response<v1::GetCapabilitiesResponse>, Status> {
        Ok(Response::new(capabilities(&self.scheduler.toolchain(), &self.config)))
    }

    async fn compile(
        &self,
        request: Request<v1::CompileRequest>,
    ) -> Result<Response<Self::CompileStream>, Status> {
        let started = Instant::now();
        let info = self.scheduler.toolchain_ready(self.config.toolchain_timeout).await.map_err(ApiError::from)?;
        let config = Arc::clone(&self.config);
        let request = request.into_inner();
        let checked = tokio::task::spawn_blocking(move || check(request, &info, &config))
            .await
            .map_err(|error| ApiError::new(Code::Internal, "INTERNAL", format!("checking the request failed: {error}")))?;
        let Checked { specs } = checked.inspect_err(|error| tracing::info!("refused: {error:?}"))?;
        let ranges: Vec<_> = specs.iter().map(|spec| spec.range).collect();
        let tickets = self.scheduler.submit(specs).await.map_err(ApiError::from)?;
        let stream = events(ranges.into_iter().zip(tickets).collect(), started);
        Ok(Response::new(Box::pin(stream.map(Ok))))
    }

    async fn fetch_artifact(
        &self,
        request: Request<v1::FetchArtifactRequest>,
    ) -> Result<Response<Self::FetchArtifactStream>, Status> {
        Ok(Response::new(Box::pin(fetch::chunks(&self.store, request.into_inner()).await?)))
    }
}
