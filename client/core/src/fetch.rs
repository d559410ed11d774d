//! Fetching an artifact: in chunks, taken up again where it broke, and verified before anything reads it.

use std::{
    fs::File,
    io::{Seek as _, SeekFrom, Write as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use piecewised_graph::{Digest, Handle};
use piecewised_proto::v1;

use crate::{Cache, Client, ClientError};

const DOING: &str = "sending an artifact";

/// An artifact that lies in the cache folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetched {
    /// The materialised artifact.
    pub folder: PathBuf,
    /// Whether it was there already, so that nothing was transferred.
    pub was_local: bool,
    /// Wall seconds, from the call to the folder.
    pub seconds: f64,
    /// Of the artifact.
    pub size_bytes: u64,
}

impl Client {
    /// Makes the artifact of `handle` a folder of `cache`: fetched and verified, unless it is there already. A handle that no trusted daemon has signed
    /// is refused before.
    ///
    /// # Errors
    /// [`ClientError`]; nothing is left behind but what was whole before.
    pub async fn fetch(&self, handle: &Handle, cache: &Cache) -> Result<Fetched, ClientError> {
        let started = Instant::now();
        self.options.keyring.check_handle(handle)?;
        let digest = handle.digest;
        let done = |folder, was_local| Fetched {
            folder,
            was_local,
            seconds: started.elapsed().as_secs_f64(),
            size_bytes: handle.size_bytes,
        };
        let here = cache.clone();
        if let Some(folder) = blocking(move || Ok(here.find(&digest))).await? {
            return Ok(done(folder, true));
        }
        let limit_bytes = self.options.fetch.max_artifact_bytes;
        if handle.size_bytes > limit_bytes {
            return Err(ClientError::TooLarge { digest, size_bytes: handle.size_bytes, limit_bytes });
        }
        let here = cache.clone();
        let file = blocking(move || here.scratch_file()).await?;
        let file = self.transfer(&digest, handle.size_bytes, file).await?;
        let here = cache.clone();
        let folder = blocking(move || here.materialise(&digest, file)).await?;
        Ok(done(folder, false))
    }

    /// Writes the artifact's bytes to `file` and checks their digest.
    async fn transfer(&self, digest: &Digest, size_bytes: u64, mut file: File) -> Result<File, ClientError> {
        let mut receiver = Receiver { expected: *digest, size_bytes, received: 0, hasher: blake3::Hasher::new() };
        let options = &self.options.fetch;
        let mut tries_left = options.max_retries;
        let mut pause = options.backoff;
        while receiver.received < size_bytes || size_bytes == 0 {
            let before = receiver.received;
            let broken = match self.stream_into(&mut receiver, &mut file).await {
                Ok(()) => break,
                Err(error) if is_worth_another_try(&error) => error,
                Err(error) => return Err(error),
            };
            if receiver.received > before {
                (tries_left, pause) = (options.max_retries, options.backoff);
            }
            if tries_left == 0 {
                return Err(broken);
            }
            tracing::debug!(error = %broken, offset = receiver.received, ?pause, "taking the transfer up again");
            tries_left -= 1;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
        receiver.finish()?;
        file.flush().and_then(|()| file.seek(SeekFrom::Start(0))).map_err(ClientError::io("writing", "artifact"))?;
        Ok(file)
    }

    /// One stream, from where the receiver is to the end.
    async fn stream_into(&self, receiver: &mut Receiver, file: &mut File) -> Result<(), ClientError> {
        let request = v1::FetchArtifactRequest { digest: receiver.expected.0.to_vec(), offset: receiver.received };
        let stall = self.options.fetch.stall_timeout;
        let mut service = self.service.clone();
        let opening = tokio::time::timeout(stall, service.fetch_artifact(request)).await.map_err(|_| stalled(stall))?;
        let mut chunks = opening.map_err(|status| ClientError::from_status(&status, DOING))?.into_inner();
        loop {
            let chunk = tokio::time::timeout(stall, chunks.message()).await.map_err(|_| stalled(stall))?;
            match chunk.map_err(|status| ClientError::from_status(&status, DOING))? {
                // Writing into the page cache; the artifact is megabytes, so this needs no thread of its own.
                Some(chunk) => {
                    receiver.take(&chunk)?;
                    file.write_all(&chunk.data).map_err(ClientError::io("writing", "artifact"))?;
                }
                None if receiver.received == receiver.size_bytes => return Ok(()),
                None => {
                    let problem = format!("it ended after {} of {} bytes", receiver.received, receiver.size_bytes);
                    return Err(ClientError::Broken { doing: DOING, problem });
                }
            }
        }
    }
}

/// What has arrived: checks order and size of chunks, and the digest of the whole.
struct Receiver {
    expected: Digest,
    size_bytes: u64,
    received: u64,
    hasher: blake3::Hasher,
}

impl Receiver {
    fn take(&mut self, chunk: &v1::FetchArtifactResponse) -> Result<(), ClientError> {
        let bad = |problem: String| Err(ClientError::BadResponse { problem });
        if chunk.total_bytes != self.size_bytes {
            return bad(format!(
                "an artifact of {} bytes, where the handle says {}",
                chunk.total_bytes, self.size_bytes
            ));
        }
        if chunk.offset != self.received {
            return bad(format!("a chunk for offset {} where {} comes next", chunk.offset, self.received));
        }
        let after = self.received.saturating_add(chunk.data.len() as u64);
        if after > self.size_bytes {
            return bad(format!("more than the artifact's {} bytes", self.size_bytes));
        }
        self.hasher.update(&chunk.data);
        self.received = after;
        Ok(())
    }

    fn finish(self) -> Result<(), ClientError> {
        let found = Digest(self.hasher.finalize().into());
        if found == self.expected {
            Ok(())
        } else {
            Err(ClientError::DigestMismatch { expected: self.expected, found })
        }
    }
}

fn stalled(after: Duration) -> ClientError {
    ClientError::Broken { doing: DOING, problem: format!("nothing came for {after:?}") }
}

/// Whether a transfer that ended so may go well the next time.
pub(crate) fn is_worth_another_try(error: &ClientError) -> bool {
    match error {
        ClientError::Broken { .. } => true,
        ClientError::Refused(refusal) => {
            matches!(refusal.code, tonic::Code::Unavailable | tonic::Code::ResourceExhausted)
        }
        _ => false,
    }
}

/// Runs file work off the reactor.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> Result<T, ClientError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(ClientError::Broken { doing: DOING, problem: "the runtime is shutting down".into() }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiver(bytes: &[u8]) -> Receiver {
        Receiver {
            expected: Digest::of(bytes),
            size_bytes: bytes.len() as u64,
            received: 0,
            hasher: blake3::Hasher::new(),
        }
    }

    fn chunk(offset: u64, data: &'static [u8], total_bytes: u64) -> v1::FetchArtifactResponse {
        v1::FetchArtifactResponse { offset, data: data.into(), total_bytes }
    }

    #[test]
    fn chunks_in_order_make_the_artifact() {
        let mut receiver = receiver(b"hello world");
        receiver.take(&chunk(0, b"hello", 11)).unwrap();
        receiver.take(&chunk(5, b" world", 11)).unwrap();
        receiver.finish().unwrap();
    }

    #[test]
    fn gaps_repeats_surplus_and_flipped_bits_are_found() {
        let refused = |chunk| receiver(b"hello").take(&chunk).unwrap_err().reason().to_owned();
        assert_eq!(refused(chunk(1, b"ello", 5)), "BAD_RESPONSE");
        assert_eq!(refused(chunk(0, b"hello!", 5)), "BAD_RESPONSE");
        assert_eq!(refused(chunk(0, b"hello", 6)), "BAD_RESPONSE");
        let mut damaged = receiver(b"hello");
        damaged.take(&chunk(0, b"hellp", 5)).unwrap();
        assert_eq!(damaged.finish().unwrap_err().reason(), "DIGEST_MISMATCH");
    }
}
