//! A real server that answers as it is told to.
#![allow(clippy::unwrap_used, reason = "a failure here is the test's")]

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
};

use piecewised_graph::Digest;
use piecewised_proto::v1::{self, compile_service_server::CompileService};
use prost::Message as _;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

pub(crate) type Answer<T> = Result<Vec<Result<T, Status>>, Status>;
pub(crate) type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the server answers, call by call. A stream that ran out of its script without an error stays open where `hangs`.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) fetches: VecDeque<Answer<v1::FetchArtifactResponse>>,
    pub(crate) compiles: VecDeque<Answer<v1::CompileEvent>>,
    /// Instead of `compiles`: what depends on the digest of the request.
    pub(crate) compiles_of: VecDeque<Box<dyn FnOnce(Digest) -> Answer<v1::CompileEvent> + Send>>,
    pub(crate) manifests: VecDeque<Option<v1::GetManifestResponse>>,
    pub(crate) snapshots: VecDeque<Answer<v1::FetchSnapshotResponse>>,
    pub(crate) snapshot_parts: Vec<v1::PutSnapshotRequest>,
    pub(crate) hangs: bool,
    pub(crate) offsets: Vec<u64>,
    /// The `traceparent` of each compile.
    pub(crate) traces: Vec<Option<String>>,
}

#[derive(Clone, Default)]
pub(crate) struct Server(pub(crate) Arc<Mutex<Script>>);

impl Server {
    fn stream<T: Send + 'static>(&self, answer: Answer<T>) -> Result<Response<Streamed<T>>, Status> {
        let items = tokio_stream::iter(answer?);
        let hangs = self.0.lock().unwrap().hangs;
        Ok(Response::new(if hangs { Box::pin(items.chain(tokio_stream::pending())) } else { Box::pin(items) }))
    }
}

#[tonic::async_trait]
impl CompileService for Server {
    async fn get_capabilities(
        &self,
        _: Request<v1::GetCapabilitiesRequest>,
    ) -> Result<Response<v1::GetCapabilitiesResponse>, Status> {
        Ok(Response::new(v1::GetCapabilitiesResponse {
            version: "9".into(),
            formats: vec![1, 99],
            ..Default::default()
        }))
    }

    type CompileStream = Streamed<v1::CompileEvent>;

    async fn compile(&self, request: Request<v1::CompileRequest>) -> Result<Response<Self::CompileStream>, Status> {
        let trace = request.metadata().get("traceparent").map(|value| value.to_str().unwrap().to_owned());
        // The requests of these tests have no map, so that they are encoded again as they came.
        let digest = Digest::of(&request.into_inner().encode_to_vec());
        let answer_of = {
            let mut script = self.0.lock().unwrap();
            script.traces.push(trace);
            script.compiles_of.pop_front()
        };
        let answer = match answer_of {
            Some(answer_of) => answer_of(digest),
            None => self.0.lock().unwrap().compiles.pop_front().unwrap(),
        };
        self.stream(answer)
    }

    async fn forget_failures(
        &self,
        _: Request<v1::ForgetFailuresRequest>,
    ) -> Result<Response<v1::ForgetFailuresResponse>, Status> {
        Err(Status::unimplemented("this server remembers none"))
    }

    async fn report_fallbacks(
        &self,
        _request: Request<v1::ReportFallbacksRequest>,
    ) -> Result<Response<v1::ReportFallbacksResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::GetStatusResponse>, Status> {
        Err(Status::unimplemented("this server does not say"))
    }

    async fn get_manifest(
        &self,
        request: Request<v1::GetManifestRequest>,
    ) -> Result<Response<v1::GetManifestResponse>, Status> {
        let answer = self.0.lock().unwrap().manifests.pop_front().unwrap_or_default();
        let answer = answer.ok_or_else(|| refused(Code::NotFound, "NO_SUCH_MANIFEST"))?;
        assert_eq!(request.get_ref().program, "backbone");
        Ok(Response::new(answer))
    }

    async fn put_snapshot(
        &self,
        request: Request<Streaming<v1::PutSnapshotRequest>>,
    ) -> Result<Response<v1::PutSnapshotResponse>, Status> {
        let mut parts = request.into_inner();
        while let Some(part) = parts.message().await? {
            self.0.lock().unwrap().snapshot_parts.push(part);
        }
        Ok(Response::new(v1::PutSnapshotResponse {}))
    }

    type FetchSnapshotStream = Streamed<v1::FetchSnapshotResponse>;

    async fn fetch_snapshot(
        &self,
        _: Request<v1::FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        let answer = self.0.lock().unwrap().snapshots.pop_front().unwrap();
        self.stream(answer)
    }

    type FetchArtifactStream = Streamed<v1::FetchArtifactResponse>;

    async fn fetch_artifact(
        &self,
        request: Request<v1::FetchArtifactRequest>,
    ) -> Result<Response<Self::FetchArtifactStream>, Status> {
        let answer = {
            let mut script = self.0.lock().unwrap();
            script.offsets.push(request.get_ref().offset);
            script.fetches.pop_front().unwrap()
        };
        self.stream(answer)
    }
}

pub(crate) fn refused(code: Code, reason: &str) -> Status {
    Status::with_error_details(code, "no", ErrorDetails::with_error_info(reason, "piecewised", []))
}
