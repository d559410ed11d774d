//! `AdminService`: what an operator looks into and changes.

use std::{pin::Pin, sync::Arc, time::Duration};

use piecewised_graph::{Digest, Handle, request::DeviceKind};
use piecewised_proto::v1::{self, admin_service_server::AdminService};
use piecewised_scheduler::{JobInfo, Peer, Scheduler};
use piecewised_store::{Listed, ListedItem, Store};
use piecewised_wire as wire;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use crate::{ApiConfig, explain, node_status::count, peer, status::ApiError, trust};

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// Of one request.
const MAX_KEYS: usize = 1000;
/// Keys that a message about an ambiguous one names.
const MAX_NAMED: usize = 5;
/// Between two looks at the jobs.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// The service over a scheduler and a store.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    scheduler: Scheduler,
    store: Store,
    config: Arc<ApiConfig>,
    stop: CancellationToken,
    drain: CancellationToken,
}

impl Admin {
    /// A service that ends its streams with `stop`, and cancels `drain` where an admin wants the daemon to drain.
    pub(crate) fn new(
        scheduler: Scheduler,
        store: Store,
        config: Arc<ApiConfig>,
        stop: CancellationToken,
        drain: CancellationToken,
    ) -> Self {
        Self { scheduler, store, config, stop, drain }
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    type WatchJobsStream = Pin<Box<dyn Stream<Item = Result<v1::WatchJobsResponse, Status>> + Send>>;

    async fn list_artifacts(
        &self,
        request: Request<v1::ListArtifactsRequest>,
    ) -> Result<Response<v1::ListArtifactsResponse>, Status> {
        let v1::ListArtifactsRequest { page_size, page_token } = request.into_inner();
        let (after, limit) = page(page_size, &page_token)?;
        let listed = self.store.list(after, limit).await.map_err(ApiError::from)?;
        let next_page_token = next_page(listed.last().map(|last| last.key), listed.len(), limit);
        let artifacts = listed.iter().map(stored).collect();
        Ok(Response::new(v1::ListArtifactsResponse { artifacts, next_page_token }))
    }

    async fn get_artifact(
        &self,
        request: Request<v1::GetArtifactRequest>,
    ) -> Result<Response<v1::GetArtifactResponse>, Status> {
        let one = self.named(&request.into_inner().key).await?;
        let handle = match &one.item {
            ListedItem::Handle(handle) => Some(self.config.signer.signed_handle(handle)),
            ListedItem::Snapshot(_) => None,
        };
        Ok(Response::new(v1::GetArtifactResponse { artifact: Some(stored(&one)), handle }))
    }

    async fn explain_miss(
        &self,
        request: Request<v1::ExplainMissRequest>,
    ) -> Result<Response<v1::ExplainMissResponse>, Status> {
        use v1::explain_miss_request::About;
        if matches!(&request.get_ref().about, Some(About::Request(asked)) if asked.frontend.is_some()) {
            trust::check(&request, &self.config.access)?;
        }
        let v1::ExplainMissRequest { about, against } = request.into_inner();
        let against = if against.is_empty() { None } else { Some(self.named(&against).await?) };
        let about = match about {
            Some(About::Request(request)) => explain::About::Request(Box::new(request)),
            Some(About::Key(key)) => explain::About::Key(self.named(&key).await?),
            None => return Err(explain::nothing_asked().into()),
        };
        let explanations = explain::explain(&self.scheduler, &self.store, &self.config, about, against).await?;
        Ok(Response::new(v1::ExplainMissResponse { explanations }))
    }

    async fn list_jobs(
        &self,
        _request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        Ok(Response::new(v1::ListJobsResponse { jobs: jobs(&self.scheduler) }))
    }

    async fn watch_jobs(
        &self,
        _request: Request<v1::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let (scheduler, stop) = (self.scheduler.clone(), self.stop.clone());
        let stream = async_stream::stream! {
            let mut shown: Option<Vec<v1::Job>> = None;
            loop {
                let now = jobs(&scheduler);
                if shown.as_ref().is_none_or(|before| !is_same(before, &now)) {
                    shown = Some(now.clone());
                    yield Ok(v1::WatchJobsResponse { jobs: now });
                }
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(WATCH_INTERVAL) => {}
                }
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn list_failures(
        &self,
        request: Request<v1::ListFailuresRequest>,
    ) -> Result<Response<v1::ListFailuresResponse>, Status> {
        let v1::ListFailuresRequest { page_size, page_token } = request.into_inner();
        let (after, limit) = page(page_size, &page_token)?;
        let listed = self.store.list_failures(after, limit).await.map_err(ApiError::from)?;
        let next_page_token = next_page(listed.last().map(|(key, _)| *key), listed.len(), limit);
        let failure = |(key, record): (Digest, piecewised_store::FailureRecord)| v1::RememberedFailure {
            key: key.0.to_vec(),
            reason: record.reason,
            message: record.message,
            failed_unix_ms: record.failed_unix_ms,
        };
        let failures = listed.into_iter().map(failure).collect();
        Ok(Response::new(v1::ListFailuresResponse { failures, next_page_token }))
    }

    async fn list_manifests(
        &self,
        _request: Request<v1::ListManifestsRequest>,
    ) -> Result<Response<v1::ListManifestsResponse>, Status> {
        let manifests = self.store.list_manifests().into_iter().map(|info| v1::ManifestSummary {
            program: info.program.to_string(),
            n_pieces: count(info.n_pieces),
            n_artifacts: count(info.n_artifacts),
            created_unix_ms: info.created_unix_ms,
        });
        Ok(Response::new(v1::ListManifestsResponse { manifests: manifests.collect() }))
    }

    async fn evict(&self, request: Request<v1::EvictRequest>) -> Result<Response<v1::EvictResponse>, Status> {
        let peer = self.admin(&request, "evict")?;
        let digests = keys(&request.into_inner().keys)?;
        let mut n_removed = 0;
        for key in &digests {
            let was_there = self.store.remove(key).await.map_err(ApiError::from)?;
            n_removed += u32::from(was_there);
            tracing::info!(target: "audit", %peer, %key, was_there, "evicted");
        }
        // Who wants them gone does not want to keep what comes in their place.
        self.store.unpin(digests).await.map_err(ApiError::from)?;
        Ok(Response::new(v1::EvictResponse { n_removed }))
    }

    async fn pin(&self, request: Request<v1::PinRequest>) -> Result<Response<v1::PinResponse>, Status> {
        let peer = self.admin(&request, "pin")?;
        let digests = keys(&request.into_inner().keys)?;
        for key in &digests {
            if self.store.peek(key).await.map_err(ApiError::from)?.is_none() {
                let message = format!("nothing is stored under key {key}; only what is there can be pinned");
                return Err(ApiError::new(Code::NotFound, "NO_SUCH_KEY", message).with("key", key.to_string()).into());
            }
        }
        let shown = shown(&digests);
        let n_pinned = self.store.pin(digests).await.map_err(ApiError::from)?;
        tracing::info!(target: "audit", %peer, keys = shown, n_pinned, "pinned");
        Ok(Response::new(v1::PinResponse { n_pinned: u32::try_from(n_pinned).unwrap_or(u32::MAX) }))
    }

    async fn unpin(&self, request: Request<v1::UnpinRequest>) -> Result<Response<v1::UnpinResponse>, Status> {
        let peer = self.admin(&request, "unpin")?;
        let digests = keys(&request.into_inner().keys)?;
        let shown = shown(&digests);
        let n_unpinned = self.store.unpin(digests).await.map_err(ApiError::from)?;
        tracing::info!(target: "audit", %peer, keys = shown, n_unpinned, "unpinned");
        Ok(Response::new(v1::UnpinResponse { n_unpinned: u32::try_from(n_unpinned).unwrap_or(u32::MAX) }))
    }

    async fn remove_manifest(
        &self,
        request: Request<v1::RemoveManifestRequest>,
    ) -> Result<Response<v1::RemoveManifestResponse>, Status> {
        let peer = self.admin(&request, "remove a manifest")?;
        let program = wire::program_name_from_proto(&request.into_inner().program).map_err(ApiError::from)?;
        let was_there = self.store.remove_manifest(&program).await.map_err(ApiError::from)?;
        tracing::info!(target: "audit", %peer, %program, was_there, "removed a manifest");
        if was_there {
            return Ok(Response::new(v1::RemoveManifestResponse {}));
        }
        let message = format!("there is no manifest of program {program}; ListManifests has those that there are");
        Err(ApiError::new(Code::NotFound, "NO_SUCH_MANIFEST", message).with("program", program.as_str()).into())
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        let peer = self.admin(&request, "drain")?;
        let (n_queued, n_running) = self.scheduler.n_jobs();
        let n_jobs = count(n_queued + n_running);
        tracing::info!(target: "audit", %peer, n_jobs, "draining, and then ending");
        self.drain.cancel();
        Ok(Response::new(v1::DrainResponse { n_jobs }))
    }
}

impl Admin {
    /// What is stored under the key that begins with these digits.
    async fn named(&self, digits: &str) -> Result<Listed, ApiError> {
        let digits = digits.to_ascii_lowercase();
        if digits.is_empty() || digits.len() > 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let message = "a key is up to 64 hexadecimal digits, or the first of them; ListArtifacts has them all";
            return Err(ApiError::new(Code::InvalidArgument, "BAD_KEY", message).with("field", "key"));
        }
        let mut found = self.store.list_by_prefix(&digits, MAX_NAMED).await?;
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => {
                let message = format!("nothing is stored under a key that begins with {digits}");
                Err(ApiError::new(Code::NotFound, "NO_SUCH_KEY", message).with("key", &digits))
            }
            _ => {
                let keys: Vec<String> = found.iter().map(|listed| listed.key.to_string()).collect();
                let message =
                    format!("several keys begin with {digits}, among them {}; give more digits", keys.join(", "));
                Err(ApiError::new(Code::InvalidArgument, "AMBIGUOUS_KEY", message).with("field", "key"))
            }
        }
    }

    /// Who asks, if he may; that he may not is in the log too.
    fn admin<T>(&self, request: &Request<T>, what: &'static str) -> Result<Peer, ApiError> {
        let peer = peer::peer(request);
        trust::check_admin(request, &self.config.access)
            .inspect_err(|_| tracing::warn!(target: "audit", %peer, what, "refused: not an admin"))?;
        Ok(peer)
    }
}

/// The keys of a request.
fn keys(keys: &[Vec<u8>]) -> Result<Vec<Digest>, ApiError> {
    if keys.len() > MAX_KEYS {
        let message = format!("{} keys are more than {MAX_KEYS}; send them in several requests", keys.len());
        return Err(ApiError::new(Code::InvalidArgument, "TOO_MANY_KEYS", message).with("field", "keys"));
    }
    keys.iter().map(|key| Digest::from_slice(key)).collect::<Result<_, _>>().map_err(|error| {
        let message = format!("{error}; ListArtifacts has the keys");
        ApiError::new(Code::InvalidArgument, "BAD_KEY", message).with("field", "keys")
    })
}

/// Keys as a line of the log has them.
fn shown(keys: &[Digest]) -> String {
    keys.iter().map(Digest::to_string).collect::<Vec<_>>().join(" ")
}

/// Where a page begins and how long it is at most.
fn page(size: u32, token: &str) -> Result<(Option<Digest>, usize), ApiError> {
    let limit = if size == 0 { DEFAULT_PAGE } else { usize::try_from(size).unwrap_or(MAX_PAGE).min(MAX_PAGE) };
    let bad = |_| {
        let message = "the page_token is not one that an answer gave as next_page_token; begin without one";
        ApiError::new(Code::InvalidArgument, "BAD_PAGE_TOKEN", message).with("field", "page_token")
    };
    let after = if token.is_empty() { None } else { Some(token.parse().map_err(bad)?) };
    Ok((after, limit))
}

fn next_page(last: Option<Digest>, n: usize, limit: usize) -> String {
    // A full page may be the last one; the next is empty then.
    last.filter(|_| n == limit).map(|key| key.to_string()).unwrap_or_default()
}

fn stored(listed: &Listed) -> v1::StoredArtifact {
    use v1::stored_artifact::What;
    let (digest, size_bytes, created_unix_ms, what) = match &listed.item {
        ListedItem::Handle(handle) => {
            (handle.digest, handle.size_bytes, handle.created_unix_ms, What::Compiled(compiled(handle)))
        }
        ListedItem::Snapshot(snapshot) => {
            let name = wire::snapshot_name_to_proto(&snapshot.snapshot);
            let stored =
                v1::StoredSnapshot { frontend: name.frontend, name: name.name, toolchain_fingerprint: name.toolchain };
            (snapshot.digest, snapshot.size_bytes, snapshot.created_unix_ms, What::Snapshot(stored))
        }
    };
    v1::StoredArtifact {
        key: listed.key.0.to_vec(),
        digest: digest.0.to_vec(),
        size_bytes,
        created_unix_ms,
        used_unix_ms: listed.used_unix_ms,
        is_pinned: listed.is_pinned,
        is_pinned_by_operator: listed.is_pinned_by_operator,
        what: Some(what),
    }
}

fn compiled(handle: &Handle) -> v1::CompiledRange {
    v1::CompiledRange {
        range: handle.range.map(wire::range_to_proto),
        format: wire::format_to_proto(handle.format).into(),
        tuning: wire::tuning_to_proto(handle.tuning.mode).into(),
        device: device(&handle.device),
        torch_version: handle.toolchain.torch_version.clone(),
        compile_s: handle.timings.total_s,
        graph_digest: handle.graph_digest.0.to_vec(),
        n_segments: count(handle.segments.len()),
        verified: wire::outcome_to_proto(handle.verification.outcome).into(),
    }
}

fn jobs(scheduler: &Scheduler) -> Vec<v1::Job> {
    scheduler.jobs().into_iter().map(job).collect()
}

fn job(JobInfo { job, age, state }: JobInfo) -> v1::Job {
    v1::Job {
        id: job.id,
        key: job.key.0.to_vec(),
        label: job.label.to_string(),
        range: job.range.map(wire::range_to_proto),
        phase: state.phase,
        attempt: state.attempt,
        age_s: age.as_secs_f64(),
        running_s: state.started.map(|started| started.elapsed().as_secs_f64()),
        executor_pid: state.executor_pid.unwrap_or(0),
        format: wire::format_to_proto(job.format).into(),
        tuning: wire::tuning_to_proto(job.tuning).into(),
        device: device(&job.device),
    }
}

/// Whether nothing changed but time.
fn is_same(before: &[v1::Job], now: &[v1::Job]) -> bool {
    let known = |job: &v1::Job| (job.id.clone(), job.phase.clone(), job.attempt, job.executor_pid);
    before.iter().map(known).eq(now.iter().map(known))
}

fn device(device: &DeviceKind) -> String {
    format!("{} {}", device.r#type, device.name)
}
