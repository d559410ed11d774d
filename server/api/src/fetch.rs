//! `FetchArtifact`: verified bytes, chunk by chunk, at the reader's pace.

use async_stream::stream;
use piecewised_graph::Digest;
use piecewised_proto::v1;
use piecewised_store::Store;
use tokio_stream::Stream;
use tonic::{Code, Status};

use crate::status::ApiError;

/// Large enough that the cost of a message does not count, small enough that a slow reader holds little memory.
const CHUNK_BYTES: usize = 256 << 10;

/// The chunks from the offset on. One chunk is read ahead of the reader at most.
pub(crate) async fn chunks(
    store: &Store,
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
    let total_bytes = artifact.total_bytes();
    let mut offset = request.offset;
    if offset > total_bytes {
        let message = format!("offset {offset} is beyond the artifact's {total_bytes} bytes");
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
            yield Ok(v1::FetchArtifactResponse { offset, data, total_bytes });
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
