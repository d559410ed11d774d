//! What an operator asks a daemon and tells it: `AdminService`.

use piecewised_graph::{
    Digest, Handle, ProgramName,
    request::{ArtifactFormat, Tuning},
};
use piecewised_plan::Range;
use piecewised_proto::v1::{
    self,
    client::{admin_service_client::AdminServiceClient, compile_service_client::CompileServiceClient},
};
use piecewised_wire::{format_from_proto, handle_from_proto, range_from_proto, tuning_from_proto};
use serde::Serialize;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use crate::{Client, ClientError, connect::Connection};

/// The calls of `AdminService`, and those of `CompileService` that only admins may make.
#[derive(Debug, Clone)]
pub struct Admin {
    pub(crate) service: AdminServiceClient<Connection>,
    compiler: CompileServiceClient<Connection>,
}

/// What is stored under a key. `piecewised/v1/admin_service.proto` documents each field.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's StoredArtifact")]
pub struct StoredArtifact {
    pub key: Digest,
    pub digest: Digest,
    pub size_bytes: u64,
    pub created_unix_ms: u64,
    pub used_unix_ms: u64,
    pub is_pinned: bool,
    pub is_pinned_by_operator: bool,
    #[serde(flatten)]
    pub what: StoredWhat,
}

/// Compiled code, or a frontend's snapshot.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "documented once, at the proto's StoredArtifact")]
pub enum StoredWhat {
    Compiled(CompiledRange),
    Snapshot { frontend: String, name: String, toolchain_fingerprint: String },
}

/// A handle's most telling fields.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's CompiledRange")]
pub struct CompiledRange {
    pub range: Option<Range>,
    pub format: ArtifactFormat,
    pub tuning: Tuning,
    pub device: String,
    pub torch_version: String,
    pub compile_s: f64,
    pub graph_digest: Digest,
    pub n_segments: u32,
    /// "passed", "not_comparable", "not_done".
    pub verified: &'static str,
}

/// A compile that waits or runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's Job")]
pub struct Job {
    pub id: String,
    pub key: Digest,
    pub label: String,
    pub range: Option<Range>,
    pub phase: String,
    pub attempt: u32,
    pub age_s: f64,
    pub running_s: Option<f64>,
    pub executor_pid: u32,
    pub device: String,
}

/// A failure that is answered without another try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's RememberedFailure")]
pub struct RememberedFailure {
    pub key: Digest,
    pub reason: String,
    pub message: String,
    pub failed_unix_ms: u64,
}

/// A program that was completed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's ManifestSummary")]
pub struct ManifestSummary {
    pub program: String,
    pub n_pieces: u32,
    pub n_artifacts: u32,
    pub created_unix_ms: u64,
}

/// Of one page: the most that a daemon gives.
const PAGE: u32 = 1000;

impl Client {
    /// The calls for operators.
    pub fn admin(&self) -> Admin {
        Admin { service: AdminServiceClient::new(self.channel.clone()), compiler: self.service.clone() }
    }
}

fn refused(doing: &'static str) -> impl FnOnce(Status) -> ClientError {
    move |status| ClientError::from_status(&status, doing)
}

impl Admin {
    /// A page of what is stored, by key, and the token of the next; `None`: that was all.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn artifacts(
        &self,
        page_token: Option<String>,
    ) -> Result<(Vec<StoredArtifact>, Option<String>), ClientError> {
        let request = v1::ListArtifactsRequest { page_size: PAGE, page_token: page_token.unwrap_or_default() };
        let answer = self.service.clone().list_artifacts(request).await.map_err(refused("listing artifacts"))?;
        let v1::ListArtifactsResponse { artifacts, next_page_token } = answer.into_inner();
        let artifacts = artifacts.into_iter().map(stored).collect::<Result<_, _>>()?;
        Ok((artifacts, Some(next_page_token).filter(|token| !token.is_empty())))
    }

    /// What is stored under the key that begins with these hexadecimal digits, and its handle where it is compiled code.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `NO_SUCH_KEY`, `AMBIGUOUS_KEY` or `BAD_KEY`.
    pub async fn artifact(&self, key: &str) -> Result<(StoredArtifact, Option<Handle>), ClientError> {
        let request = v1::GetArtifactRequest { key: key.to_owned() };
        let answer = self.service.clone().get_artifact(request).await.map_err(refused("looking an artifact up"))?;
        let v1::GetArtifactResponse { artifact, handle } = answer.into_inner();
        let artifact = artifact.ok_or_else(|| bad("an answer without an artifact"))?;
        Ok((stored(artifact)?, handle.map(handle_from_proto).transpose()?))
    }

    /// The jobs that run and that wait.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn jobs(&self) -> Result<Vec<Job>, ClientError> {
        let answer = self.service.clone().list_jobs(v1::ListJobsRequest {}).await.map_err(refused("listing jobs"))?;
        answer.into_inner().jobs.into_iter().map(job).collect()
    }

    /// The same whenever it changes, beginning with how it is now.
    ///
    /// # Errors
    /// [`ClientError`], of the call and in the stream.
    pub async fn watch_jobs(
        &self,
    ) -> Result<impl Stream<Item = Result<Vec<Job>, ClientError>> + Send + use<>, ClientError> {
        const DOING: &str = "watching jobs";
        let answer = self.service.clone().watch_jobs(v1::WatchJobsRequest {}).await.map_err(refused(DOING))?;
        Ok(answer.into_inner().map(|seen| {
            let seen = seen.map_err(refused(DOING))?;
            seen.jobs.into_iter().map(job).collect()
        }))
    }

    /// A page of the failures that are remembered, by key, and the token of the next; `None`: that was all.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn failures(
        &self,
        page_token: Option<String>,
    ) -> Result<(Vec<RememberedFailure>, Option<String>), ClientError> {
        let request = v1::ListFailuresRequest { page_size: PAGE, page_token: page_token.unwrap_or_default() };
        let answer = self.service.clone().list_failures(request).await.map_err(refused("listing failures"))?;
        let v1::ListFailuresResponse { failures, next_page_token } = answer.into_inner();
        let failure = |it: v1::RememberedFailure| {
            let v1::RememberedFailure { key, reason, message, failed_unix_ms } = it;
            Ok(RememberedFailure { key: digest(&key)?, reason, message, failed_unix_ms })
        };
        let failures = failures.into_iter().map(failure).collect::<Result<_, ClientError>>()?;
        Ok((failures, Some(next_page_token).filter(|token| !token.is_empty())))
    }

    /// The programs that were completed, by name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn manifests(&self) -> Result<Vec<ManifestSummary>, ClientError> {
        let answer = self.service.clone().list_manifests(v1::ListManifestsRequest {}).await;
        let manifests = answer.map_err(refused("listing manifests"))?.into_inner().manifests;
        let summary = |it: v1::ManifestSummary| {
            let v1::ManifestSummary { program, n_pieces, n_artifacts, created_unix_ms } = it;
            ManifestSummary { program, n_pieces, n_artifacts, created_unix_ms }
        };
        Ok(manifests.into_iter().map(summary).collect())
    }

    /// Removes what is stored under keys; how many of them there were.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `NOT_ADMIN`, among others.
    pub async fn evict(&self, keys: &[Digest]) -> Result<u32, ClientError> {
        let request = v1::EvictRequest { keys: keys.iter().map(|key| key.0.to_vec()).collect() };
        let answer = self.service.clone().evict(request).await.map_err(refused("evicting"))?;
        Ok(answer.into_inner().n_removed)
    }

    /// Has what is stored under keys stay until they are unpinned; how many were not pinned before.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `NO_SUCH_KEY` or `NOT_ADMIN`, among others.
    pub async fn pin(&self, keys: &[Digest]) -> Result<u32, ClientError> {
        let request = v1::PinRequest { keys: keys.iter().map(|key| key.0.to_vec()).collect() };
        Ok(self.service.clone().pin(request).await.map_err(refused("pinning"))?.into_inner().n_pinned)
    }

    /// Takes pins back; how many there were.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `NOT_ADMIN`, among others.
    pub async fn unpin(&self, keys: &[Digest]) -> Result<u32, ClientError> {
        let request = v1::UnpinRequest { keys: keys.iter().map(|key| key.0.to_vec()).collect() };
        Ok(self.service.clone().unpin(request).await.map_err(refused("unpinning"))?.into_inner().n_unpinned)
    }

    /// Forgets the failure that is remembered of a key, or all; how many there were.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `NOT_ADMIN`, among others.
    pub async fn forget_failures(&self, key: Option<&Digest>) -> Result<u64, ClientError> {
        let request = v1::ForgetFailuresRequest { key: key.map(|key| key.0.to_vec()).unwrap_or_default() };
        let answer = self.compiler.clone().forget_failures(request).await;
        Ok(answer.map_err(refused("clearing failures"))?.into_inner().n_forgotten)
    }

    /// Removes a program's manifest.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `NO_SUCH_MANIFEST` or `NOT_ADMIN`, among others.
    pub async fn remove_manifest(&self, program: &ProgramName) -> Result<(), ClientError> {
        let request = v1::RemoveManifestRequest { program: program.to_string() };
        self.service.clone().remove_manifest(request).await.map_err(refused("removing a manifest"))?;
        Ok(())
    }

    /// Has the daemon drain and end; how many jobs get their time.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `NOT_ADMIN`, among others.
    pub async fn drain(&self) -> Result<u32, ClientError> {
        let answer = self.service.clone().drain(v1::DrainRequest {}).await.map_err(refused("asking it to drain"))?;
        Ok(answer.into_inner().n_jobs)
    }
}

fn bad(problem: impl Into<String>) -> ClientError {
    ClientError::BadResponse { problem: problem.into() }
}

fn digest(bytes: &[u8]) -> Result<Digest, ClientError> {
    Digest::from_slice(bytes).map_err(|error| bad(error.to_string()))
}

fn range(range: Option<v1::Range>) -> Result<Option<Range>, ClientError> {
    Ok(range.map(range_from_proto).transpose()?)
}

fn stored(artifact: v1::StoredArtifact) -> Result<StoredArtifact, ClientError> {
    use v1::{stored_artifact::What, verification::Outcome};
    let what = match artifact.what.ok_or_else(|| bad("an artifact without what it is"))? {
        What::Compiled(compiled) => StoredWhat::Compiled(CompiledRange {
            verified: match compiled.verified() {
                Outcome::Passed => "passed",
                Outcome::NotComparable => "not_comparable",
                Outcome::Unspecified | Outcome::NotDone => "not_done",
            },
            tuning: tuning_from_proto(compiled.tuning()),
            range: range(compiled.range)?,
            format: format_from_proto(compiled.format)?,
            device: compiled.device,
            torch_version: compiled.torch_version,
            compile_s: compiled.compile_s,
            graph_digest: digest(&compiled.graph_digest)?,
            n_segments: compiled.n_segments,
        }),
        What::Snapshot(v1::StoredSnapshot { frontend, name, toolchain_fingerprint }) => {
            StoredWhat::Snapshot { frontend, name, toolchain_fingerprint }
        }
    };
    Ok(StoredArtifact {
        key: digest(&artifact.key)?,
        digest: digest(&artifact.digest)?,
        size_bytes: artifact.size_bytes,
        created_unix_ms: artifact.created_unix_ms,
        used_unix_ms: artifact.used_unix_ms,
        is_pinned: artifact.is_pinned,
        is_pinned_by_operator: artifact.is_pinned_by_operator,
        what,
    })
}

fn job(job: v1::Job) -> Result<Job, ClientError> {
    Ok(Job {
        id: job.id,
        key: digest(&job.key)?,
        label: job.label,
        range: range(job.range)?,
        phase: job.phase,
        attempt: job.attempt,
        age_s: job.age_s,
        running_s: job.running_s,
        executor_pid: job.executor_pid,
        device: job.device,
    })
}
