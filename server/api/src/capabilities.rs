//! `GetCapabilities`.

use piecewised_graph::KEY_VERSION;
use piecewised_proto::v1;
use piecewised_scheduler::{SchedulerConfig, ToolchainStatus, VerifyPolicy};
use piecewised_wire as wire;

use crate::ApiConfig;

pub(crate) fn capabilities(
    status: &ToolchainStatus,
    scheduler: &SchedulerConfig,
    config: &ApiConfig,
    trusts_frontend: bool,
) -> v1::GetCapabilitiesResponse {
    let (toolchains, devices, not_ready_reason) = match status {
        ToolchainStatus::Ready(info) => (
            vec![wire::toolchain_to_proto(&info.toolchain)],
            info.devices.iter().map(wire::device_to_proto).collect(),
            String::new(),
        ),
        ToolchainStatus::Probing => {
            (Vec::new(), Vec::new(), "the daemon has just started and is importing torch".to_owned())
        }
        ToolchainStatus::Unusable { reason } => (Vec::new(), Vec::new(), reason.clone()),
    };
    let frontends = match status {
        ToolchainStatus::Ready(info) => info.frontends.clone(),
        _ => Vec::new(),
    };
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let limits = &config.graph_limits;
    let (verify, verify_sample_percent) = match scheduler.verify {
        VerifyPolicy::Off => (v1::VerifyPolicy::Off, 0),
        VerifyPolicy::Sample { percent } => (v1::VerifyPolicy::Sample, percent.into()),
        VerifyPolicy::Always => (v1::VerifyPolicy::Always, 100),
    };
    v1::GetCapabilitiesResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        key_version: KEY_VERSION,
        ready: !toolchains.is_empty(),
        toolchains,
        devices,
        formats: [v1::ArtifactFormat::Inductor, v1::ArtifactFormat::Aoti].map(Into::into).to_vec(),
        limits: Some(v1::Limits {
            max_message_bytes: config.max_message_bytes as u64,
            max_nodes: count(limits.max_nodes),
            max_nesting: count(limits.max_nesting),
            max_symbols: count(limits.max_symbols),
            max_ranges: count(config.max_ranges),
            max_constant_bytes: limits.max_constant_bytes as u64,
            max_queued_jobs: count(config.max_queued_jobs),
            max_pieces: config.max_pieces,
            max_queued_background_jobs: count(scheduler.max_queued_background_jobs()),
            max_queued_jobs_per_peer: count(scheduler.max_queued_jobs_per_peer),
            max_queued_bytes_per_peer: scheduler.max_queued_bytes_per_peer as u64,
        }),
        not_ready_reason,
        n_executors: count(config.n_executors),
        verify: verify.into(),
        verify_sample_percent,
        tunings: [v1::Tuning::Fast, v1::Tuning::Full, v1::Tuning::Tiered].map(Into::into).to_vec(),
        frontends,
        trusts_frontend,
        public_key: config.signer.public_key().0.to_vec(),
        specialisations: [v1::Specialisation::Range, v1::Specialisation::Generic].map(Into::into).to_vec(),
    }
}
