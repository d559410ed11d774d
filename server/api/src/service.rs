//! `CompileService`.

use std::{pin::Pin, sync::Arc, time::Instant};

use piecewised_graph::{Digest, Manifest};
use piecewised_plan::Range;
use piecewised_proto::v1::{self, compile_service_server::CompileService};
use piecewised_scheduler::{LabelDifference, Peer, Place, Priority, Scheduler, Ticket, ToolchainInfo};
use piecewised_sign::Statement;
use piecewised_store::Store;
use piecewised_wire as wire;
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::{
    ApiConfig,
    account::Account,
    capabilities::capabilities,
    events::{Asked, accepted, events},
    fetch,
    known::Known,
    node_status, peer, received,
    request::{Checked, place, priority},
    snapshots::{self, Receiving},
    status::ApiError,
    tally::Tally,
    trace::RequestSpan,
    trust,
};

/// The service over a scheduler and a store.
#[derive(Debug)]
pub struct Compiler {
    scheduler: Scheduler,
    store: Store,
    config: Arc<ApiConfig>,
    known: Arc<Known>,
    receiving: Receiving,
    tally: Arc<Tally>,
    started: Instant,
}

impl Compiler {
    /// A service with these limits, which counts for metrics what it does.
    pub(crate) fn new(scheduler: Scheduler, store: Store, config: Arc<ApiConfig>, tally: Arc<Tally>) -> Self {
        let (known, receiving) = (Arc::default(), Receiving::default());
        Self { scheduler, store, config, known, receiving, tally, started: Instant::now() }
    }
}

/// Of one report.
const MAX_FALLBACKS: usize = 256;

type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl CompileService for Compiler {
    type CompileStream = EventStream<v1::CompileEvent>;
    type FetchArtifactStream = EventStream<v1::FetchArtifactResponse>;
    type FetchSnapshotStream = EventStream<v1::FetchSnapshotResponse>;

    async fn get_capabilities(
        &self,
        request: Request<v1::GetCapabilitiesRequest>,
    ) -> Result<Response<v1::GetCapabilitiesResponse>, Status> {
        let trusts_frontend = trust::is_trusted(&request);
        let frontend = request.into_inner().frontend;
        if trusts_frontend && !frontend.is_empty() {
            self.scheduler.prepare(frontend);
        }
        let toolchain = self.scheduler.toolchain();
        Ok(Response::new(capabilities(&toolchain, self.scheduler.config(), &self.config, trusts_frontend)))
    }

    async fn compile(&self, request: Request<v1::CompileRequest>) -> Result<Response<Self::CompileStream>, Status> {
        let span = RequestSpan::of(&request);
        let (tickets, asked) = self.begin(request, &span).await?;
        Ok(Response::new(Box::pin(events(tickets, asked, span))))
    }

    async fn forget_failures(
        &self,
        request: Request<v1::ForgetFailuresRequest>,
    ) -> Result<Response<v1::ForgetFailuresResponse>, Status> {
        trust::check_admin(&request, &self.config.access)?;
        let peer = peer::peer(&request);
        let key = request.into_inner().key;
        let key = match key.len() {
            0 => None,
            _ => Some(Digest::from_slice(&key).map_err(|error| {
                let message = format!("{error}; copy it from Failed.key");
                ApiError::new(Code::InvalidArgument, "BAD_KEY", message).with("field", "key")
            })?),
        };
        let n_forgotten = self.scheduler.forget_failures(key).await.map_err(ApiError::from)?;
        tracing::info!(target: "audit", %peer, n_forgotten, key = key.as_ref().map(Digest::short), "forgot failures");
        Ok(Response::new(v1::ForgetFailuresResponse { n_forgotten }))
    }

    async fn fetch_artifact(
        &self,
        request: Request<v1::FetchArtifactRequest>,
    ) -> Result<Response<Self::FetchArtifactStream>, Status> {
        Ok(Response::new(Box::pin(fetch::chunks(&self.store, &self.tally, request.into_inner()).await?)))
    }

    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(node_status::status(&self.scheduler, &self.store, &self.config, self.started)))
    }

    async fn put_snapshot(
        &self,
        request: Request<Streaming<v1::PutSnapshotRequest>>,
    ) -> Result<Response<v1::PutSnapshotResponse>, Status> {
        trust::check(&request, &self.config.access)?;
        let peer = peer::peer(&request);
        let name =
            snapshots::put(&self.store, &self.config, &self.receiving, &self.tally, request.into_inner()).await?;
        tracing::info!(%peer, frontend = name.frontend, name = name.name, "took a snapshot");
        Ok(Response::new(v1::PutSnapshotResponse {}))
    }

    async fn fetch_snapshot(
        &self,
        request: Request<v1::FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        Ok(Response::new(Box::pin(snapshots::chunks(&self.store, &self.config.signer, request.into_inner()).await?)))
    }

    async fn report_fallbacks(
        &self,
        request: Request<v1::ReportFallbacksRequest>,
    ) -> Result<Response<v1::ReportFallbacksResponse>, Status> {
        let peer = peer::peer(&request);
        for v1::Fallback { reason, n_pieces } in request.into_inner().fallbacks.into_iter().take(MAX_FALLBACKS) {
            tracing::debug!(%peer, reason, n_pieces, "compiled by itself");
            self.tally.fallback(&reason, n_pieces);
        }
        Ok(Response::new(v1::ReportFallbacksResponse {}))
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
            manifest: Some(self.signed_manifest(&manifest)),
        }))
    }
}

/// Says where a graph differs from what another peer sent under its label, in the log and for `GetStatus` too.
async fn compare(scheduler: &Scheduler, peer: &Peer, checked: &Arc<Checked>) -> Option<LabelDifference> {
    let label = &checked.label;
    let unlike = scheduler.labels().note(label, peer, (checked.graph_digest, &checked.graph))?;
    let ours = Arc::clone(checked);
    let found = tokio::task::spawn_blocking(move || unlike.difference(&ours.names)).await.ok()??;
    let LabelDifference { node, what, peer: other } = &found;
    tracing::info!(label = &**label, %peer, %other, node, "a piece is not the same as the other's, and not shared: {what}");
    scheduler.activities().differs(label, found.clone());
    Some(found)
}

/// What each entry of a plan came to.
type Tickets = Vec<(Option<Range>, Ticket)>;

impl Compiler {
    /// Checks a request, and submits its jobs.
    async fn begin(
        &self,
        request: Request<v1::CompileRequest>,
        span: &RequestSpan,
    ) -> Result<(Tickets, Asked), ApiError> {
        let started = Instant::now();
        if request.get_ref().frontend.is_some() {
            trust::check(&request, &self.config.access).inspect_err(|error| tracing::info!("refused: {error:?}"))?;
        }
        let (peer, deadline) = (peer::peer(&request), peer::deadline(request.metadata()));
        let digest = received::digest(&request).ok_or_else(|| {
            ApiError::new(Code::Internal, "INTERNAL", "the request's bytes were not digested as they came")
        })?;
        let info = self.scheduler.toolchain_ready(self.config.toolchain_timeout).await?;
        let (priority, place, checked) =
            self.check(request.into_inner(), info).await.inspect_err(|error| tracing::info!("refused: {error:?}"))?;
        let difference = compare(&self.scheduler, &peer, &checked).await.as_ref().map(node_status::difference);
        span.asked(&checked.label, checked.entries.len());
        if let Some(place) = &place {
            // By the keys of what would be compiled, tuned or not: a piece stays the same when its tuned artifacts arrive in the store.
            self.scheduler.begin_piece(place, &checked.specs, &checked.entries)?;
        }
        let signer = Arc::clone(&self.config.signer);
        let accepted = accepted(digest, &checked, &signer);
        let program = place.map(|place| (place, self.scheduler.clone()));
        let tickets = self.submit(&peer, priority, &checked).await?;
        let account = Account::new(Some((self.scheduler.clone(), Arc::clone(&checked.label))), &tickets);
        let is_strict = checked.is_strict;
        Ok((tickets, Asked { program, is_strict, started, deadline, account, difference, accepted, signer }))
    }

    /// Checks a request, if it is not known: in what order it is served, which piece of which program it is, and all else of it.
    async fn check(
        &self,
        mut request: v1::CompileRequest,
        info: Arc<ToolchainInfo>,
    ) -> Result<(Priority, Option<Place>, Arc<Checked>), ApiError> {
        let priority = priority(request.priority)?;
        let place = request.program.take().map(place).transpose()?;
        if let Some(known) = self.known.at_once(&mut request, &info) {
            return Ok((priority, place, known));
        }
        let (known, config) = (Arc::clone(&self.known), Arc::clone(&self.config));
        let checked = tokio::task::spawn_blocking(move || known.check(request, &info, &config)).await;
        let checked = checked.map_err(|error| {
            ApiError::new(Code::Internal, "INTERNAL", format!("checking the request failed: {error}"))
        })??;
        Ok((priority, place, checked))
    }

    /// The message of a manifest, signed, and each of its handles.
    fn signed_manifest(&self, manifest: &Manifest) -> v1::Manifest {
        let signer = &self.config.signer;
        let mut message = wire::manifest_to_proto(manifest);
        let signature = signer.sign(&Statement::of_manifest_message(message.clone()));
        for (piece, signed) in manifest.pieces.iter().zip(&mut message.pieces) {
            signed.handles = piece.handles.iter().map(|handle| signer.signed_handle(handle)).collect();
        }
        message.signature = Some(wire::signature_to_proto(&signature));
        message
    }

    /// Submits jobs in the order in which they should run; answers in the plan's.
    async fn submit(&self, peer: &Peer, priority: Priority, checked: &Checked) -> Result<Tickets, ApiError> {
        let Checked { entries, specs, tuned, order, .. } = checked;
        let mut tickets: Vec<Option<Ticket>> = Vec::with_capacity(specs.len());
        for position in 0..specs.len() {
            let handle = match tuned.get(position) {
                Some(key) => self.scheduler.stored(key).await?,
                None => None,
            };
            tickets.push(handle.map(|handle| Ticket::Stored(Box::new(handle))));
        }
        let order: Vec<usize> = order.iter().copied().filter(|&position| tickets[position].is_none()).collect();
        let in_order = order.iter().map(|&position| Arc::clone(&specs[position])).collect();
        for (position, ticket) in order.into_iter().zip(self.scheduler.submit(peer, priority, in_order).await?) {
            tickets[position] = Some(ticket);
        }
        Ok(entries.iter().copied().zip(tickets.into_iter().flatten()).collect())
    }
}
