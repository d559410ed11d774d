//! `FetchArtifact`, and the pieces of anything that is read from the store: verified bytes, at the reader's pace.

use std::sync::Arc;

use async_stream::stream;
use bytes::Bytes;
use piecewised_graph::Digest;
use piecewised_proto::v1;
use piecewised_store::{ArtifactReader, Store};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Status};

use crate::{status::ApiError, tally::Tally};

/// Large enough that the cost of a message does not count, small enough that a slow reader holds little memory.
const CHUNK_BYTES: usize = 256 << 10;

/// The chunks from the offset on.
pub(crate) async fn chunks(
    store: &Store,
    tally: &Arc<Tally>,
    request: v1::FetchArtifactRequest,
) -> Result<impl Stream<Item = Result<v1::FetchArtifactResponse, Status>> + Send + use<>, ApiError> {
    let digest = Digest::from_slice(&request.digest)
        .map_err(|error| ApiError::new(Code::InvalidArgument, "BAD_DIGEST", error.to_string()))?;
    let artifact = store.open_artifact(&digest).await?.ok_or_else(|| {
        ApiError::new(
            Code::NotFound,
            "NO_SUCH_ARTIFACT",
            format!("there is no artifact {digest} (evicted, or dropped because it was damaged); send Compile again"),
        )
    })?;
    let pieces = pieces(artifact, request.offset)?;
    tally.fetch();
    let tally = Arc::clone(tally);
    Ok(pieces.map(move |piece| {
        piece.map(|Piece { offset, data, total_bytes }| {
            tally.sent(data.len());
            v1::FetchArtifactResponse { offset, data, total_bytes }
        })
    }))
}

/// A part of what is read.
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) data: Bytes,
    pub(crate) total_bytes: u64,
}

/// The pieces from the offset on. One is read ahead of the reader at most.
pub(crate) fn pieces(
    artifact: ArtifactReader,
    mut offset: u64,
) -> Result<impl Stream<Item = Result<Piece, Status>> + Send + use<>, ApiError> {
    let total_bytes = artifact.total_bytes();
    if offset > total_bytes {
        let message = format!("offset {offset} is beyond the end, {total_bytes} bytes");
        return Err(ApiError::new(Code::OutOfRange, "BAD_OFFSET", message));
    }
    Ok(stream! {
        loop {
            let data = match artifact.read_at(offset, CHUNK_BYTES).await {
                Ok(data) => data,
                Err(error) => {
                    yield Err(ApiError::from(error).into());
                    break;
                }
            };
            let n_bytes = data.len() as u64;
            // The last chunk of an artifact may be empty: a fetch that starts at the end still says how long it is.
            yield Ok(Piece { offset, data, total_bytes });
            offset += n_bytes;
            if offset >= total_bytes {
                break;
            }
            if n_bytes == 0 {
                yield Err(ApiError::new(Code::Aborted, "ARTIFACT_CHANGED", "the artifact ended early; fetch it again").into());
                break;
            }
        }
    })
}
