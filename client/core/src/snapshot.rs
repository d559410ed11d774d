//! Snapshots: what a frontend keeps in the daemon's store, sent and fetched whole, and verified both ways.

use std::time::Duration;

use bytes::Bytes;
use piecewised_graph::{Digest, SnapshotName};
use piecewised_proto::v1::{self, put_snapshot_request::Part};
use piecewised_sign::Statement;
use piecewised_wire::{signature_from_proto, snapshot_name_to_proto};

use crate::{Client, ClientError, fetch::is_worth_another_try};

/// Of one message.
const CHUNK_BYTES: usize = 256 << 10;

const SENDING: &str = "taking a snapshot";
const FETCHING: &str = "sending a snapshot";

impl Client {
    /// Has the daemon keep a snapshot, in place of any of its name. Durable when this returns.
    ///
    /// # Errors
    /// [`ClientError::Refused`] (`FRONTEND_NOT_TRUSTED` among others), [`ClientError::Broken`].
    pub async fn put_snapshot(&self, name: &SnapshotName, bytes: Bytes) -> Result<(), ClientError> {
        let header = v1::SnapshotHeader {
            name: Some(snapshot_name_to_proto(name)),
            total_bytes: bytes.len() as u64,
            digest: Digest::of(&bytes).0.to_vec(),
        };
        let starts = (0..bytes.len()).step_by(CHUNK_BYTES);
        let chunks = starts.map(move |at| Part::Data(bytes[at..bytes.len().min(at + CHUNK_BYTES)].to_vec()));
        let parts = std::iter::once(Part::Header(header)).chain(chunks);
        let messages = parts.map(|part| v1::PutSnapshotRequest { part: Some(part) });
        let answer = self.service.clone().put_snapshot(tokio_stream::iter(messages)).await;
        answer.map_err(|status| ClientError::from_status(&status, SENDING))?;
        Ok(())
    }

    /// A snapshot's bytes; `None`: the daemon has none of that name.
    ///
    /// # Errors
    /// [`ClientError`]; a broken transfer is begun anew a few times before.
    pub async fn fetch_snapshot(&self, name: &SnapshotName) -> Result<Option<Vec<u8>>, ClientError> {
        let options = &self.options.fetch;
        let mut pause = options.backoff;
        let mut tries_left = options.max_retries;
        loop {
            let error = match self.fetch_snapshot_once(name).await {
                Err(ClientError::Refused(refusal)) if refusal.reason == "NO_SUCH_SNAPSHOT" => return Ok(None),
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) => error,
            };
            if tries_left == 0 || !is_worth_another_try(&error) {
                return Err(error);
            }
            tracing::debug!(%error, ?pause, "fetching the snapshot again");
            tries_left -= 1;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn fetch_snapshot_once(&self, name: &SnapshotName) -> Result<Vec<u8>, ClientError> {
        let stall = self.options.fetch.stall_timeout;
        let stalled = |_| ClientError::Broken { doing: FETCHING, problem: format!("nothing came for {stall:?}") };
        let bad = |problem: String| ClientError::BadResponse { problem };
        let request = v1::FetchSnapshotRequest { name: Some(snapshot_name_to_proto(name)), offset: 0 };
        let mut service = self.service.clone();
        let opened = tokio::time::timeout(stall, service.fetch_snapshot(request)).await.map_err(stalled)?;
        let mut chunks = opened.map_err(|status| ClientError::from_status(&status, FETCHING))?.into_inner();
        let mut bytes = Vec::new();
        let mut said: Option<(u64, Vec<u8>, Option<v1::Signature>)> = None;
        loop {
            let chunk = tokio::time::timeout(stall, chunks.message()).await.map_err(stalled)?;
            let Some(chunk) = chunk.map_err(|status| ClientError::from_status(&status, FETCHING))? else { break };
            let v1::FetchSnapshotResponse { offset, data, total_bytes, digest, signature } = chunk;
            if total_bytes > self.options.fetch.max_artifact_bytes {
                return Err(bad(format!("a snapshot of {total_bytes} bytes, which is more than this client takes")));
            }
            if said.is_none() {
                // Before more than a chunk is received.
                self.check_snapshot(name, total_bytes, &digest, signature.clone())?;
            }
            let says = (total_bytes, digest, signature);
            if *said.get_or_insert_with(|| says.clone()) != says {
                return Err(bad("the chunks are not of one snapshot".into()));
            }
            if offset != bytes.len() as u64 || offset + data.len() as u64 > total_bytes {
                return Err(bad(format!("a chunk for offset {offset} where {} comes next", bytes.len())));
            }
            bytes.extend_from_slice(&data);
        }
        let broken = |problem: String| ClientError::Broken { doing: FETCHING, problem };
        let (total_bytes, digest, _) = said.ok_or_else(|| broken("it ended before it began".into()))?;
        if bytes.len() as u64 != total_bytes {
            return Err(broken(format!("it ended after {} of {total_bytes} bytes", bytes.len())));
        }
        let expected = Digest::from_slice(&digest).map_err(|error| bad(error.to_string()))?;
        let found = Digest::of(&bytes);
        if found != expected {
            return Err(ClientError::DigestMismatch { expected, found });
        }
        Ok(bytes)
    }

    /// Refuses what the daemon has not signed as the snapshot of this name.
    fn check_snapshot(
        &self,
        name: &SnapshotName,
        total_bytes: u64,
        digest: &[u8],
        signature: Option<v1::Signature>,
    ) -> Result<(), ClientError> {
        let digest =
            Digest::from_slice(digest).map_err(|error| ClientError::BadResponse { problem: error.to_string() })?;
        let signature = signature.map(signature_from_proto).transpose()?;
        let statement = Statement::of_snapshot(name, total_bytes, &digest);
        self.options.keyring.of_daemon(self.endpoint(), "snapshot", signature.as_ref(), &statement)
    }
}
