//! `CompileService`.

use std::{pin::Pin, sync::Arc, time::Instant};

use piecewised_plan::Range;
use piecewised_proto::v1::{self, compile_service_server::CompileService};
use piecewised_scheduler::{JobSpec, Scheduler, Ticket};
use piecewised_store::Store;
use piecewised_wire as wire;
use tokio_stream::Stream;
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

    async fn compile(&self, request: Request<v1::CompileRequest>) -> Result<Response<Self::CompileStream>, Status> {
        let started = Instant::now();
        let info = self.scheduler.toolchain_ready(self.config.toolchain_timeout).await.map_err(ApiError::from)?;
        let config = Arc::clone(&self.config);
        let request = request.into_inner();
        let checked = tokio::task::spawn_blocking(move || check(request, &info, &config)).await.map_err(|error| {
            ApiError::new(Code::Internal, "INTERNAL", format!("checking the request failed: {error}"))
        })?;
        let Checked { specs, order, place, is_strict } =
            checked.inspect_err(|error| tracing::info!("refused: {error:?}"))?;
        if let Some(place) = &place {
            self.scheduler.begin_piece(place, &specs).map_err(ApiError::from)?;
        }
        let entries = self.submit(specs, &order).await?;
        let program = place.map(|place| (place, self.scheduler.clone()));
        let stream = events(entries, program, is_strict, started);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn fetch_artifact(
        &self,
        request: Request<v1::FetchArtifactRequest>,
    ) -> Result<Response<Self::FetchArtifactStream>, Status> {
        Ok(Response::new(Box::pin(fetch::chunks(&self.store, request.into_inner()).await?)))
    }

    async fn get_manifest(
        &self,
        request: Request<v1::GetManifestRequest>,
    ) -> Result<Response<v1::GetManifestResponse>, Status> {
        let name = wire::program_name_from_proto(&request.into_inner().program).map_err(ApiError::from)?;
        let manifest = self.store.get_manifest(&name).await.map_err(ApiError::from)?.ok_or_else(|| {
            let message = format!(
                "there is no manifest of program {name}: it was never completed here; compile its pieces first"
            );
            ApiError::new(Code::NotFound, "NO_SUCH_MANIFEST", message).with("program", name.as_str())
        })?;
        Ok(Response::new(v1::GetManifestResponse {
            manifest_digest: manifest.digest().0.to_vec(),
            manifest: Some(wire::manifest_to_proto(&manifest)),
        }))
    }
}

impl Compiler {
    /// Submits jobs in the order in which they should run; answers in the plan's.
    async fn submit(&self, specs: Vec<JobSpec>, order: &[usize]) -> Result<Vec<(Option<Range>, Ticket)>, ApiError> {
        let ranges: Vec<_> = specs.iter().map(|spec| spec.range).collect();
        let mut specs: Vec<Option<JobSpec>> = specs.into_iter().map(Some).collect();
        let in_order = order.iter().filter_map(|&position| specs[position].take()).collect();
        let tickets = self.scheduler.submit(in_order).await?;
        let mut placed: Vec<_> = order.iter().copied().zip(tickets).collect();
        placed.sort_unstable_by_key(|(position, _)| *position);
        Ok(ranges.into_iter().zip(placed.into_iter().map(|(_, ticket)| ticket)).collect())
    }
}
