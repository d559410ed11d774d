//! `PutSnapshot` and `FetchSnapshot`: bytes that mean something to a frontend alone.

use std::time::Duration;

use async_stream::stream;
use piecewised_graph::{Digest, SnapshotName};
use piecewised_proto::v1::{self, put_snapshot_request::Part};
use piecewised_sign::{Signer, Statement};
use piecewised_store::Store;
use piecewised_wire as wire;
use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tonic::{Code, Status, Streaming};

use crate::{ApiConfig, arrival::slow, fetch, status::ApiError, tally::Tally};

/// Snapshots that are received at a time: each is in memory until it is stored.
const MAX_AT_ONCE: usize = 2;

/// Bounds what is received.
#[derive(Debug)]
pub(crate) struct Receiving(Semaphore);

impl Default for Receiving {
    fn default() -> Self {
        Self(Semaphore::new(MAX_AT_ONCE))
    }
}

/// Receives a snapshot and stores it.
pub(crate) async fn put(
    store: &Store,
    config: &ApiConfig,
    receiving: &Receiving,
    tally: &Tally,
    mut parts: Streaming<v1::PutSnapshotRequest>,
) -> Result<SnapshotName, Status> {
    let wait = (config.message_timeout, tally);
    let bad = |message: String| ApiError::new(Code::InvalidArgument, "BAD_SNAPSHOT", message);
    let Some(Part::Header(header)) = next(&mut parts, wait).await? else {
        return Err(bad("the first message of a snapshot is its header".into()).into());
    };
    let v1::SnapshotHeader { name, total_bytes, digest } = header;
    let name = wire::snapshot_name_from_proto(name).map_err(ApiError::from)?;
    let digest = Digest::from_slice(&digest)
        .map_err(|error| ApiError::new(Code::InvalidArgument, "BAD_DIGEST", error.to_string()))?;
    let limit = config.max_snapshot_bytes;
    let n_bytes = usize::try_from(total_bytes).ok().filter(|_| total_bytes <= limit).ok_or_else(|| {
        let message = format!(
            "the snapshot has {total_bytes} bytes, the limit is {limit}; the operator can raise max_artifact_bytes, which counts for snapshots too"
        );
        ApiError::new(Code::ResourceExhausted, "SNAPSHOT_TOO_LARGE", message).with("limit", limit.to_string())
    })?;
    let _permit = receiving.0.try_acquire().map_err(|_| {
        let message = format!("{MAX_AT_ONCE} snapshots are being received already; send it again in a moment");
        ApiError::new(Code::Unavailable, "TOO_MANY_SNAPSHOTS", message).retry_after(Duration::from_secs(1))
    })?;
    let mut bytes = Vec::new();
    while let Some(part) = next(&mut parts, wait).await? {
        let Part::Data(data) = part else { return Err(bad("a second header".into()).into()) };
        if bytes.len() + data.len() > n_bytes {
            return Err(bad(format!("more data than the {n_bytes} bytes that the header says")).into());
        }
        bytes.extend_from_slice(&data);
    }
    if bytes.len() != n_bytes {
        return Err(bad(format!("{} bytes came, the header says {n_bytes}", bytes.len())).into());
    }
    let (found, bytes) = tokio::task::spawn_blocking(move || (Digest::of(&bytes), bytes)).await.map_err(|error| {
        ApiError::new(Code::Internal, "INTERNAL", format!("digesting the snapshot failed: {error}"))
    })?;
    if found != digest {
        return Err(bad(format!("its digest is {found}, the header says {digest}; send it again")).into());
    }
    let snapshot = store.put_snapshot(name, bytes.into()).await.map_err(ApiError::from)?;
    Ok(snapshot.snapshot)
}

/// What comes next; `None`: that was all. Whoever is silent holds one of few places.
async fn next(
    parts: &mut Streaming<v1::PutSnapshotRequest>,
    (timeout, tally): (Duration, &Tally),
) -> Result<Option<Part>, Status> {
    let message = tokio::time::timeout(timeout, parts.message()).await.map_err(|_| {
        tally.slow_message();
        Status::from(slow("no part of the snapshot came", timeout))
    })?;
    match message? {
        None => Ok(None),
        Some(v1::PutSnapshotRequest { part: Some(part) }) => Ok(Some(part)),
        Some(_) => {
            let message = "a part of a snapshot is a header or data, and this is neither";
            Err(ApiError::new(Code::InvalidArgument, "BAD_SNAPSHOT", message).into())
        }
    }
}

/// The chunks of a snapshot from the offset on.
pub(crate) async fn chunks(
    store: &Store,
    signer: &Signer,
    request: v1::FetchSnapshotRequest,
) -> Result<impl Stream<Item = Result<v1::FetchSnapshotResponse, Status>> + Send + use<>, ApiError> {
    let name = wire::snapshot_name_from_proto(request.name)?;
    let (snapshot, reader) = store.open_snapshot(&name).await?.ok_or_else(|| {
        let message = format!(
            "there is no snapshot {:?} of {} for this toolchain: it was never put, or evicted, or dropped because it was damaged",
            name.name, name.frontend
        );
        ApiError::new(Code::NotFound, "NO_SUCH_SNAPSHOT", message)
    })?;
    // Of the name that was asked for.
    let signature = signer.sign(&Statement::of_snapshot(&name, snapshot.size_bytes, &snapshot.digest));
    let signature = wire::signature_to_proto(&signature);
    let pieces = fetch::pieces(reader, request.offset)?;
    let digest = snapshot.digest.0.to_vec();
    Ok(stream! {
        for await piece in pieces {
            yield piece.map(|fetch::Piece { offset, data, total_bytes }| v1::FetchSnapshotResponse {
                offset,
                data,
                total_bytes,
                digest: digest.clone(),
                signature: Some(signature.clone()),
            });
        }
    })
}
