//! What the daemon says about a compile and about itself, as typed values without a trace of the wire.

use piecewised_graph::{
    Digest, Handle, PublicKey,
    request::{ArtifactFormat, DeviceKind, Toolchain},
};
use piecewised_plan::Range;
use piecewised_proto::v1;
use piecewised_wire::{
    device_from_proto, format_from_proto, handle_from_proto, range_from_proto, toolchain_from_proto,
};
use serde::Serialize;

use crate::{ClientError, ProgramStatus, answer::Answer};

/// What a daemon can do.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's GetCapabilitiesResponse")]
pub struct Capabilities {
    pub version: String,
    pub key_version: u32,
    pub toolchains: Vec<Toolchain>,
    pub devices: Vec<DeviceKind>,
    pub formats: Vec<ArtifactFormat>,
    pub limits: Limits,
    pub ready: bool,
    pub not_ready_reason: String,
    pub n_executors: u32,
    /// "off", "sample", "always"; empty: the daemon does not say.
    pub verify: String,
    pub verify_sample_percent: u32,
    /// "fast", "full", "tiered".
    pub tunings: Vec<String>,
    /// "range", "generic".
    pub specialisations: Vec<String>,
    /// Those that the toolchain has.
    pub frontends: Vec<String>,
    /// Whether the daemon takes one from this process.
    pub trusts_frontend: bool,
    /// What it says it signs with; `None`: it signs nothing. For people: [`crate::Keyring`] takes no key from here.
    pub public_key: Option<PublicKey>,
}

/// What a request may hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's Limits")]
pub struct Limits {
    pub max_message_bytes: u64,
    pub max_nodes: u32,
    pub max_nesting: u32,
    pub max_symbols: u32,
    pub max_ranges: u32,
    pub max_constant_bytes: u64,
    pub max_queued_jobs: u32,
    pub max_pieces: u32,
    pub max_queued_background_jobs: u32,
    pub max_queued_jobs_per_peer: u32,
    pub max_queued_bytes_per_peer: u64,
}

impl From<v1::GetCapabilitiesResponse> for Capabilities {
    fn from(response: v1::GetCapabilitiesResponse) -> Self {
        let verify = choice(response.verify().as_str_name(), "VERIFY_POLICY_").unwrap_or_default();
        let tunings = response.tunings().filter_map(|it| choice(it.as_str_name(), "TUNING_")).collect();
        let specialisations = response.specialisations();
        let specialisations = specialisations.filter_map(|it| choice(it.as_str_name(), "SPECIALISATION_")).collect();
        let limits = response.limits.unwrap_or_default();
        Self {
            version: response.version,
            key_version: response.key_version,
            toolchains: response.toolchains.into_iter().map(toolchain_from_proto).collect(),
            devices: response.devices.into_iter().map(device_from_proto).collect(),
            // A newer daemon may know formats that this client doesn't: they are of no use to it.
            formats: response.formats.into_iter().filter_map(|format| format_from_proto(format).ok()).collect(),
            limits: Limits {
                max_message_bytes: limits.max_message_bytes,
                max_nodes: limits.max_nodes,
                max_nesting: limits.max_nesting,
                max_symbols: limits.max_symbols,
                max_ranges: limits.max_ranges,
                max_constant_bytes: limits.max_constant_bytes,
                max_queued_jobs: limits.max_queued_jobs,
                max_pieces: limits.max_pieces,
                max_queued_background_jobs: limits.max_queued_background_jobs,
                max_queued_jobs_per_peer: limits.max_queued_jobs_per_peer,
                max_queued_bytes_per_peer: limits.max_queued_bytes_per_peer,
            },
            ready: response.ready,
            not_ready_reason: response.not_ready_reason,
            n_executors: response.n_executors,
            verify,
            verify_sample_percent: response.verify_sample_percent,
            tunings,
            specialisations,
            frontends: response.frontends,
            trusts_frontend: response.trusts_frontend,
            public_key: public_key(response.public_key),
        }
    }
}

pub(crate) fn public_key(bytes: Vec<u8>) -> Option<PublicKey> {
    bytes.try_into().ok().map(PublicKey)
}

/// An enum's value as people write it; `None` for the one that says nothing.
fn choice(name: &str, prefix: &str) -> Option<String> {
    let name = name.strip_prefix(prefix)?;
    (name != "UNSPECIFIED").then(|| name.to_lowercase())
}

/// Something happened to one entry of the plan, or, with [`EventKind::Completed`], to the request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// Position in the plan's entries; 0 with `Completed`.
    pub index: usize,
    /// `None` with `Completed` and for a graph without a symbolic input.
    pub range: Option<Range>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened. `piecewised/v1/compile_service.proto` documents each field.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs, reason = "documented once, at the proto's events")]
pub enum EventKind {
    Queued { key: Digest, job_id: String, position: u32 },
    Joined { key: Digest, job_id: String, phase: String, age_s: f64 },
    Started { job_id: String, executor_pid: u32, attempt: u32 },
    Progress { job_id: String, phase: String, elapsed_s: f64 },
    Ready { handle: Box<Handle>, source: Source },
    Failed { key: Option<Digest>, reason: String, message: String, retryable: bool, remembered: bool, age_s: f64 },
    Completed(Completed),
}

/// Where a handle came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// It was in the store.
    Store,
    /// Compiled for this request.
    Compiled,
    /// Compiled for an earlier request that was still running.
    Joined,
}

/// The request's summary.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's Completed")]
pub struct Completed {
    pub n_ready: u32,
    pub n_failed: u32,
    pub n_from_store: u32,
    pub n_compiled: u32,
    pub n_joined: u32,
    pub elapsed_s: f64,
    pub program: Option<ProgramStatus>,
    pub difference: Option<Difference>,
}

/// Where a piece differs from what another peer sent under its label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's GraphDifference")]
pub struct Difference {
    pub node: String,
    pub what: String,
    pub peer: String,
}

impl From<v1::GraphDifference> for Difference {
    fn from(difference: v1::GraphDifference) -> Self {
        let v1::GraphDifference { node, what, peer } = difference;
        Self { node, what, peer }
    }
}

impl Event {
    /// The event of a message; `None` for one that this client doesn't know yet, or takes note of itself. `answer`: whose events they are.
    pub(crate) fn from_proto(
        event: v1::CompileEvent,
        entries: &[Range],
        answer: &mut Answer,
    ) -> Result<Option<Self>, ClientError> {
        use v1::compile_event::Event as Wire;
        let bad = |problem: String| ClientError::BadResponse { problem };
        let index = event.index as usize;
        let range = event.range.map(range_from_proto).transpose()?;
        let kind = match event.event {
            None => return Ok(None),
            Some(Wire::Accepted(accepted)) => {
                answer.accept(accepted, entries)?;
                return Ok(None);
            }
            Some(Wire::Queued(v1::Queued { key, job_id, position })) => {
                EventKind::Queued { key: digest(&key)?, job_id, position }
            }
            Some(Wire::Joined(v1::Joined { key, job_id, phase, age_s })) => {
                EventKind::Joined { key: digest(&key)?, job_id, phase, age_s }
            }
            Some(Wire::Started(v1::Started { job_id, executor_pid, attempt })) => {
                EventKind::Started { job_id, executor_pid, attempt }
            }
            Some(Wire::Progress(v1::Progress { job_id, phase, elapsed_s })) => {
                EventKind::Progress { job_id, phase, elapsed_s }
            }
            Some(Wire::Ready(v1::Ready { handle, source })) => {
                let handle = handle.ok_or_else(|| bad("a Ready event without a handle".into()))?;
                EventKind::Ready { handle: Box::new(handle_from_proto(handle)?), source: source_from(source)? }
            }
            Some(Wire::Failed(v1::Failed { key, reason, message, retryable, remembered, age_s })) => {
                EventKind::Failed { key: digest(&key).ok(), reason, message, retryable, remembered, age_s }
            }
            Some(Wire::Completed(completed)) => EventKind::Completed(completed.try_into()?),
        };
        let of_request = matches!(kind, EventKind::Completed(_));
        if !of_request && (index >= entries.len() || range.is_some_and(|range| range != entries[index])) {
            return Err(bad(format!("an event for entry {index} of the plan, which has other entries")));
        }
        if let EventKind::Ready { handle, .. } = &kind
            && handle.range.is_some_and(|range| range != entries[index])
        {
            return Err(bad(format!("a handle for another range than the plan's entry {index}")));
        }
        if let EventKind::Ready { handle, .. } = &kind {
            answer.check(index, handle)?;
        }
        Ok(Some(Self { index, range, kind }))
    }
}

impl TryFrom<v1::Completed> for Completed {
    type Error = ClientError;

    fn try_from(completed: v1::Completed) -> Result<Self, ClientError> {
        let v1::Completed { n_ready, n_failed, n_from_store, n_compiled, n_joined, elapsed_s, program, difference } =
            completed;
        let difference = difference.map(Difference::from);
        let program = program.map(ProgramStatus::try_from).transpose()?;
        Ok(Self { n_ready, n_failed, n_from_store, n_compiled, n_joined, elapsed_s, program, difference })
    }
}

fn digest(bytes: &[u8]) -> Result<Digest, ClientError> {
    Digest::from_slice(bytes).map_err(|error| ClientError::BadResponse { problem: error.to_string() })
}

fn source_from(source: i32) -> Result<Source, ClientError> {
    match v1::Source::try_from(source) {
        Ok(v1::Source::Store) => Ok(Source::Store),
        Ok(v1::Source::Compiled) => Ok(Source::Compiled),
        Ok(v1::Source::Joined) => Ok(Source::Joined),
        _ => Err(ClientError::BadResponse { problem: format!("source {source} is unknown") }),
    }
}
