//! `GetStatus`.

use std::time::Instant;

use piecewised_executor::Confinement;
use piecewised_proto::v1;
use piecewised_scheduler::{Activity, Counts, LabelDifference, PartActivity, Scheduler, ToolchainStatus};
use piecewised_store::Store;

use crate::ApiConfig;

pub(crate) fn status(
    scheduler: &Scheduler,
    store: &Store,
    config: &ApiConfig,
    started: Instant,
) -> v1::GetStatusResponse {
    let (total, parts) = scheduler.activities().report();
    let (n_queued, n_running) = scheduler.n_jobs();
    let stats = store.stats();
    let not_ready_reason = match scheduler.toolchain() {
        ToolchainStatus::Ready(_) => String::new(),
        ToolchainStatus::Probing => "it is importing torch".to_owned(),
        ToolchainStatus::Unusable { reason } => reason,
    };
    v1::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: started.elapsed().as_secs_f64(),
        ready: not_ready_reason.is_empty(),
        not_ready_reason,
        n_queued: count(n_queued),
        n_running: count(n_running),
        store: Some(v1::StoreStatus {
            n_artifacts: stats.n_artifacts,
            artifact_bytes: stats.artifact_bytes,
            disk_bytes: stats.disk_bytes,
            n_evicted: stats.n_evicted,
            is_full: stats.is_full,
            is_failing: stats.is_failing,
            n_keys: stats.n_handles,
            pinned_bytes: stats.pinned_bytes,
            max_bytes: store.max_bytes(),
            n_manifests: stats.n_manifests,
            n_failures: stats.n_failures,
            n_hits: stats.n_hits,
            n_misses: stats.n_misses,
            evicted_bytes: stats.evicted_bytes,
            n_held: stats.n_held,
            held_bytes: stats.held_bytes,
        }),
        jobs: Some(jobs(scheduler.counters().counts())),
        total: Some(activity(&total)),
        parts: parts.into_iter().map(part).collect(),
        public_key: config.signer.public_key().0.to_vec(),
        confinement: Some(confinement(&config.access.config().confinement)),
    }
}

fn confinement(confinement: &Confinement) -> v1::Confinement {
    let missing = confinement.missing().iter();
    v1::Confinement {
        in_force: confinement.in_force().iter().map(ToString::to_string).collect(),
        missing: missing
            .map(|it| v1::MissingMeasure { measure: it.measure.to_string(), reason: it.reason.clone() })
            .collect(),
    }
}

fn jobs(counts: Counts) -> v1::JobTotals {
    let Counts { n_compiled, n_failed, n_retries, compile_s, .. } = counts;
    v1::JobTotals { n_compiled, n_failed: n_failed.into_iter().collect(), n_retries, compile_s }
}

fn part(part: PartActivity) -> v1::PartStatus {
    let differences = part.differences.iter();
    v1::PartStatus {
        activity: Some(activity(&part.activity)),
        differences: differences
            .map(|(label, found)| v1::PieceDifference { label: label.to_string(), difference: Some(difference(found)) })
            .collect(),
        name: part.part,
    }
}

pub(crate) fn difference(found: &LabelDifference) -> v1::GraphDifference {
    v1::GraphDifference { node: found.node.clone(), what: found.what.clone(), peer: found.peer.to_string() }
}

fn activity(activity: &Activity) -> v1::Activity {
    let Activity { n_pieces, n_keys, n_compiled, n_joined, n_from_store, n_failed, compile_s, saved_s } = *activity;
    v1::Activity { n_pieces, n_keys, n_compiled, n_joined, n_from_store, n_failed, compile_s, saved_s }
}

pub(crate) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
