//! Handles, toolchains, devices.

use piecewised_graph::{
    Candidate, CheckedSize, Digest, GuardSymbol, Handle, Latency, PhaseTiming, PublicKey, Segment, Signature, Timings,
    TuningReport, Verification, VerificationChecker, VerificationOutcome,
    request::{ArtifactFormat, DeviceKind, Toolchain},
};
use piecewised_plan::Range;
use piecewised_proto::v1;

use crate::{
    WireError,
    options::{tuning_from_proto, tuning_to_proto},
    range_from_proto, range_to_proto,
    value::{expr_from, expr_to},
};

/// The format of its number on the wire.
///
/// # Errors
/// `UNSUPPORTED_FORMAT` where this version does not know it.
pub fn format_from_proto(format: i32) -> Result<ArtifactFormat, WireError> {
    match v1::ArtifactFormat::try_from(format) {
        Ok(v1::ArtifactFormat::Inductor) => Ok(ArtifactFormat::Inductor),
        Ok(v1::ArtifactFormat::Aoti) => Ok(ArtifactFormat::Aoti),
        _ => Err(WireError::new(
            "UNSUPPORTED_FORMAT",
            format!("artifact format {format} is not one that this version makes; GetCapabilities lists them"),
        )),
    }
}

/// The wire's name of a format.
pub fn format_to_proto(format: ArtifactFormat) -> v1::ArtifactFormat {
    match format {
        ArtifactFormat::Inductor => v1::ArtifactFormat::Inductor,
        ArtifactFormat::Aoti => v1::ArtifactFormat::Aoti,
    }
}

/// The toolchain of a message.
pub fn toolchain_from_proto(toolchain: v1::Toolchain) -> Toolchain {
    Toolchain {
        fingerprint: toolchain.fingerprint,
        python_version: toolchain.python_version,
        torch_version: toolchain.torch_version,
        torch_git_version: toolchain.torch_git_version,
        triton_version: toolchain.triton_version,
        cuda_version: toolchain.cuda_version,
        executable: toolchain.executable,
    }
}

/// The message of a toolchain.
pub fn toolchain_to_proto(toolchain: &Toolchain) -> v1::Toolchain {
    let Toolchain {
        fingerprint,
        python_version,
        torch_version,
        torch_git_version,
        triton_version,
        cuda_version,
        executable,
    } = toolchain.clone();
    v1::Toolchain {
        fingerprint,
        python_version,
        torch_version,
        torch_git_version,
        triton_version,
        cuda_version,
        executable,
    }
}

/// The device of a message.
pub fn device_from_proto(device: v1::DeviceKind) -> DeviceKind {
    DeviceKind { r#type: device.r#type, name: device.name, capability: device.capability }
}

/// The message of a device.
pub fn device_to_proto(device: &DeviceKind) -> v1::DeviceKind {
    let DeviceKind { r#type, name, capability } = device.clone();
    v1::DeviceKind { r#type, name, capability }
}

/// The message of a handle.
pub fn handle_to_proto(handle: &Handle) -> v1::Handle {
    v1::Handle {
        key: handle.key.0.to_vec(),
        range: handle.range.map(range_to_proto),
        digest: handle.digest.0.to_vec(),
        size_bytes: handle.size_bytes,
        format: format_to_proto(handle.format).into(),
        toolchain: Some(toolchain_to_proto(&handle.toolchain)),
        device: Some(device_to_proto(&handle.device)),
        segments: handle
            .segments
            .iter()
            .map(|segment| v1::Segment {
                range: segment.range.map(range_to_proto),
                entry: segment.entry.clone(),
                guards: segment.guards.iter().map(expr_to).collect(),
            })
            .collect(),
        dispatch_argument: handle.dispatch_argument,
        timings: Some(v1::Timings {
            total_s: handle.timings.total_s,
            cpu_s: handle.timings.cpu_s,
            phases: handle
                .timings
                .phases
                .iter()
                .map(|timing| v1::PhaseTiming { phase: timing.phase.clone(), seconds: timing.seconds })
                .collect(),
        }),
        created_unix_ms: handle.created_unix_ms,
        graph_digest: handle.graph_digest.0.to_vec(),
        hint: handle.hint,
        returns_tuple: handle.returns_tuple,
        n_arguments: handle.n_arguments,
        guard_symbols: handle
            .guard_symbols
            .iter()
            .map(|symbol| v1::GuardSymbol {
                name: symbol.name.clone(),
                argument: symbol.argument,
                dimension: symbol.dimension,
            })
            .collect(),
        verification: Some(verification_to(&handle.verification)),
        tuning: Some(tuning_report_to(&handle.tuning)),
        latencies: latencies_to(&handle.latencies),
        signature: handle.signature.as_ref().map(signature_to_proto),
    }
}

/// The signature of a message.
///
/// # Errors
/// `BAD_SIGNATURE` where it has not the length of one.
pub fn signature_from_proto(signature: v1::Signature) -> Result<Signature, WireError> {
    let bad = || WireError::new("BAD_SIGNATURE", "a signature has a public key of 32 bytes and a value of 64");
    let public_key = signature.public_key.try_into().map(PublicKey).map_err(|_| bad())?;
    Ok(Signature { public_key, value: signature.value.try_into().map_err(|_| bad())? })
}

/// The message of a signature.
pub fn signature_to_proto(signature: &Signature) -> v1::Signature {
    v1::Signature { public_key: signature.public_key.0.to_vec(), value: signature.value.to_vec() }
}

/// The handle of a message.
///
/// # Errors
/// `BAD_HANDLE` where a part is absent or not what it should be.
pub fn handle_from_proto(handle: v1::Handle) -> Result<Handle, WireError> {
    let timings = handle.timings.unwrap_or_default();
    Ok(Handle {
        key: digest(&handle.key, "key")?,
        graph_digest: digest(&handle.graph_digest, "graph_digest")?,
        range: range(handle.range)?,
        digest: digest(&handle.digest, "digest")?,
        size_bytes: handle.size_bytes,
        format: format_from_proto(handle.format)?,
        toolchain: toolchain_from_proto(handle.toolchain.ok_or_else(|| bad("toolchain is absent"))?),
        device: device_from_proto(handle.device.ok_or_else(|| bad("device is absent"))?),
        segments: handle
            .segments
            .into_iter()
            .map(|segment| {
                let guards = segment.guards.into_iter().map(expr_from).collect::<Result<_, _>>()?;
                Ok(Segment { range: range(segment.range)?, entry: segment.entry, guards })
            })
            .collect::<Result<_, WireError>>()?,
        dispatch_argument: handle.dispatch_argument,
        hint: handle.hint,
        returns_tuple: handle.returns_tuple,
        n_arguments: handle.n_arguments,
        timings: Timings {
            total_s: timings.total_s,
            cpu_s: timings.cpu_s,
            phases: timings
                .phases
                .into_iter()
                .map(|timing| PhaseTiming { phase: timing.phase, seconds: timing.seconds })
                .collect(),
        },
        created_unix_ms: handle.created_unix_ms,
        guard_symbols: handle
            .guard_symbols
            .into_iter()
            .map(|symbol| GuardSymbol { name: symbol.name, argument: symbol.argument, dimension: symbol.dimension })
            .collect(),
        verification: verification_from(handle.verification.unwrap_or_default()),
        tuning: tuning_report_from(handle.tuning.unwrap_or_default()),
        latencies: latencies_from(handle.latencies),
        // The daemon's own business.
        key_record: Default::default(),
        signature: handle.signature.map(signature_from_proto).transpose()?,
    })
}

/// The wire's name of an outcome.
pub fn outcome_to_proto(outcome: VerificationOutcome) -> v1::verification::Outcome {
    use v1::verification::Outcome;
    match outcome {
        VerificationOutcome::NotDone => Outcome::NotDone,
        VerificationOutcome::Passed => Outcome::Passed,
        VerificationOutcome::NotComparable => Outcome::NotComparable,
    }
}

fn verification_to(verification: &Verification) -> v1::Verification {
    use v1::verification::Checker;
    let checker = match verification.checker {
        VerificationChecker::None => Checker::Unspecified,
        VerificationChecker::Executor => Checker::Executor,
        VerificationChecker::Runner => Checker::Runner,
    };
    let size = |checked: &CheckedSize| v1::CheckedSize {
        size: checked.size,
        entry: checked.entry.clone(),
        max_absolute_error: checked.max_absolute_error,
        max_relative_error: checked.max_relative_error,
        tolerance: checked.tolerance,
    };
    v1::Verification {
        outcome: outcome_to_proto(verification.outcome).into(),
        sizes: verification.sizes.iter().map(size).collect(),
        note: verification.note.clone(),
        seconds: verification.seconds,
        checker: checker.into(),
    }
}

/// An outcome that this version does not know counts as none.
fn verification_from(verification: v1::Verification) -> Verification {
    use v1::verification::{Checker, Outcome};
    let checker = match verification.checker() {
        Checker::Unspecified => VerificationChecker::None,
        Checker::Executor => VerificationChecker::Executor,
        Checker::Runner => VerificationChecker::Runner,
    };
    let outcome = match verification.outcome() {
        Outcome::Unspecified | Outcome::NotDone => VerificationOutcome::NotDone,
        Outcome::Passed => VerificationOutcome::Passed,
        Outcome::NotComparable => VerificationOutcome::NotComparable,
    };
    let size = |checked: v1::CheckedSize| CheckedSize {
        size: checked.size,
        entry: checked.entry,
        max_absolute_error: checked.max_absolute_error,
        max_relative_error: checked.max_relative_error,
        tolerance: checked.tolerance,
    };
    Verification {
        outcome,
        sizes: verification.sizes.into_iter().map(size).collect(),
        note: verification.note,
        seconds: verification.seconds,
        checker,
    }
}

fn tuning_report_to(report: &TuningReport) -> v1::TuningReport {
    let candidate = |candidate: &Candidate| v1::Candidate {
        name: candidate.name.clone(),
        hint: candidate.hint,
        compile_s: candidate.compile_s,
        latencies: latencies_to(&candidate.latencies),
        entries: candidate.entries.clone(),
        failure: candidate.failure.clone(),
    };
    v1::TuningReport {
        mode: tuning_to_proto(report.mode).into(),
        candidates: report.candidates.iter().map(candidate).collect(),
        seconds: report.seconds,
        note: report.note.clone(),
    }
}

fn tuning_report_from(report: v1::TuningReport) -> TuningReport {
    let mode = tuning_from_proto(report.mode());
    let candidate = |candidate: v1::Candidate| Candidate {
        name: candidate.name,
        hint: candidate.hint,
        compile_s: candidate.compile_s,
        latencies: latencies_from(candidate.latencies),
        entries: candidate.entries,
        failure: candidate.failure,
    };
    TuningReport {
        mode,
        candidates: report.candidates.into_iter().map(candidate).collect(),
        seconds: report.seconds,
        note: report.note,
    }
}

fn latencies_to(latencies: &[Latency]) -> Vec<v1::Latency> {
    latencies.iter().map(|latency| v1::Latency { size: latency.size, median_us: latency.median_us }).collect()
}

fn latencies_from(latencies: Vec<v1::Latency>) -> Vec<Latency> {
    latencies.into_iter().map(|latency| Latency { size: latency.size, median_us: latency.median_us }).collect()
}

fn bad(what: impl std::fmt::Display) -> WireError {
    WireError::new("BAD_HANDLE", format!("the handle is not usable: {what}"))
}

fn digest(bytes: &[u8], what: &str) -> Result<Digest, WireError> {
    Digest::from_slice(bytes).map_err(|error| bad(format_args!("{what}: {error}")))
}

fn range(range: Option<v1::Range>) -> Result<Option<Range>, WireError> {
    range.map(range_from_proto).transpose().map_err(bad)
}
