//! What a daemon has done since it started.

use std::collections::BTreeMap;

use piecewised_graph::PublicKey;
use piecewised_proto::v1;
use serde::Serialize;

use crate::{Client, ClientError, Difference, event::public_key};

/// A daemon's own account.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's GetStatusResponse")]
pub struct NodeStatus {
    pub version: String,
    pub uptime_s: f64,
    pub ready: bool,
    pub not_ready_reason: String,
    pub n_queued: u32,
    pub n_running: u32,
    pub store: StoreStatus,
    pub total: Activity,
    pub parts: Vec<PartStatus>,
    pub jobs: JobTotals,
    /// What it says it signs with; `None`: it signs nothing.
    pub public_key: Option<PublicKey>,
    /// What its executors are kept from; `None`: an older daemon, which does not say.
    pub confinement: Option<Confinement>,
}

/// What executors are kept from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's Confinement")]
pub struct Confinement {
    pub in_force: Vec<String>,
    pub missing: Vec<MissingMeasure>,
}

/// A measure that its machine does not have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's MissingMeasure")]
pub struct MissingMeasure {
    pub measure: String,
    pub reason: String,
}

/// What is in its store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's StoreStatus")]
pub struct StoreStatus {
    pub n_artifacts: u64,
    pub artifact_bytes: u64,
    pub disk_bytes: u64,
    pub n_evicted: u64,
    pub is_full: bool,
    pub is_failing: bool,
    pub n_keys: u64,
    pub pinned_bytes: u64,
    pub max_bytes: Option<u64>,
    pub n_manifests: u64,
    pub n_failures: u64,
    pub n_hits: u64,
    pub n_misses: u64,
    pub evicted_bytes: u64,
    pub n_held: u64,
    pub held_bytes: u64,
}

/// What became of jobs.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's JobTotals")]
pub struct JobTotals {
    pub n_compiled: u64,
    pub n_failed: BTreeMap<String, u64>,
    pub n_retries: u64,
    pub compile_s: f64,
}

/// What became of what was asked for.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's Activity")]
pub struct Activity {
    pub n_pieces: u64,
    pub n_keys: u64,
    pub n_compiled: u64,
    pub n_joined: u64,
    pub n_from_store: u64,
    pub n_failed: u64,
    pub compile_s: f64,
    pub saved_s: f64,
}

/// A model part.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's PartStatus")]
pub struct PartStatus {
    pub name: String,
    pub activity: Activity,
    pub differences: Vec<PieceDifference>,
}

/// A piece that was not the same for everybody who sent it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's PieceDifference")]
pub struct PieceDifference {
    pub label: String,
    pub difference: Difference,
}

impl Client {
    /// What the daemon has done since it started, and what it has.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Broken`].
    pub async fn status(&self) -> Result<NodeStatus, ClientError> {
        let response = self.service.clone().get_status(v1::GetStatusRequest {}).await;
        let response = response.map_err(|status| ClientError::from_status(&status, "asking for its status"))?;
        Ok(response.into_inner().into())
    }
}

impl From<v1::GetStatusResponse> for NodeStatus {
    fn from(status: v1::GetStatusResponse) -> Self {
        let store = status.store.unwrap_or_default();
        let jobs = status.jobs.unwrap_or_default();
        Self {
            version: status.version,
            uptime_s: status.uptime_s,
            ready: status.ready,
            not_ready_reason: status.not_ready_reason,
            n_queued: status.n_queued,
            n_running: status.n_running,
            store: StoreStatus {
                n_artifacts: store.n_artifacts,
                artifact_bytes: store.artifact_bytes,
                disk_bytes: store.disk_bytes,
                n_evicted: store.n_evicted,
                is_full: store.is_full,
                is_failing: store.is_failing,
                n_keys: store.n_keys,
                pinned_bytes: store.pinned_bytes,
                max_bytes: store.max_bytes,
                n_manifests: store.n_manifests,
                n_failures: store.n_failures,
                n_hits: store.n_hits,
                n_misses: store.n_misses,
                evicted_bytes: store.evicted_bytes,
                n_held: store.n_held,
                held_bytes: store.held_bytes,
            },
            jobs: JobTotals {
                n_compiled: jobs.n_compiled,
                n_failed: jobs.n_failed.into_iter().collect(),
                n_retries: jobs.n_retries,
                compile_s: jobs.compile_s,
            },
            total: activity(status.total),
            parts: status.parts.into_iter().map(part).collect(),
            public_key: public_key(status.public_key),
            confinement: status.confinement.map(confinement),
        }
    }
}

fn confinement(confinement: v1::Confinement) -> Confinement {
    let missing = confinement.missing.into_iter();
    Confinement {
        in_force: confinement.in_force,
        missing: missing.map(|it| MissingMeasure { measure: it.measure, reason: it.reason }).collect(),
    }
}

fn part(part: v1::PartStatus) -> PartStatus {
    let differences = part
        .differences
        .into_iter()
        .filter_map(|it| Some(PieceDifference { label: it.label, difference: it.difference?.into() }));
    PartStatus { name: part.name, activity: activity(part.activity), differences: differences.collect() }
}

fn activity(activity: Option<v1::Activity>) -> Activity {
    let v1::Activity { n_pieces, n_keys, n_compiled, n_joined, n_from_store, n_failed, compile_s, saved_s } =
        activity.unwrap_or_default();
    Activity { n_pieces, n_keys, n_compiled, n_joined, n_from_store, n_failed, compile_s, saved_s }
}
