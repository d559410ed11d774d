//! The messages of docs/executor-protocol.md, and what is believed of them.
//!
//! An executor's answer is checked against the job before anything is built on it ([`piecewised_graph::check_segments`]): a segment
//! outside the job's range would be dispatched to without proof.

use std::path::{Path, PathBuf};

use piecewised_graph::{
    Frontend, Verification, VerificationOutcome,
    request::{ArtifactFormat, CompileOptions, DeviceKind, Toolchain},
};
use piecewised_plan::Range;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{CompileJob, CompileOutcome, FailureReason, Gpu, LeaseMode};

/// The version that both sides speak.
pub(crate) const PROTOCOL: u32 = 4;

/// What an interpreter says of itself once it has imported torch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The interpreter and its torch.
    pub toolchain: Toolchain,
    /// What it can compile for.
    pub devices: Vec<DeviceKind>,
    /// The GPUs, each by itself.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// The allow-list of `call_function`.
    pub functions: Vec<String>,
    /// The allow-list of `call_method`.
    pub methods: Vec<String>,
    /// The allow-list of `getattr`.
    pub attributes: Vec<String>,
    /// Inductor's options.
    pub options: Vec<InductorOption>,
    /// Files and folders that change when what is said here does: the interpreter's, torch's, the module path.
    #[serde(default)]
    pub witnesses: Vec<PathBuf>,
    /// The frontends that it has.
    #[serde(default)]
    pub frontends: Vec<String>,
    /// Seconds that importing torch took.
    pub import_s: f64,
}

impl Hello {
    /// Whether it says the same of the interpreter; how long this process took does not count.
    pub fn agrees_with(&self, other: &Self) -> bool {
        Self { import_s: other.import_s, ..self.clone() } == *other
    }
}

/// One option of `torch._inductor.config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InductorOption {
    /// "max_autotune", "triton.cudagraphs".
    pub name: String,
    /// Whether it is the operator's (programs, paths, caches) and so refused in a request.
    pub reserved: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToExecutor<'a> {
    Hello {
        protocol: u32,
        is_known: bool,
        frontend: Option<&'a str>,
    },
    Leased {
        job: &'a str,
    },
    Compile {
        job: &'a str,
        graph: &'a RawValue,
        range: Option<Range>,
        dispatch_argument: Option<u32>,
        hint: Option<i64>,
        options: &'a CompileOptions,
        format: ArtifactFormat,
        device: &'a DeviceKind,
        verify: bool,
        frontend: Option<&'a Frontend>,
        /// Only with the format that it is for.
        #[serde(skip_serializing_if = "Option::is_none")]
        runner: Option<&'a Path>,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromExecutor {
    Ready {
        protocol: u32,
        #[serde(flatten)]
        hello: Option<Box<Hello>>,
    },
    Unusable {
        reason: String,
    },
    Phase {
        job: String,
        phase: String,
    },
    Lease {
        job: String,
        mode: LeaseMode,
    },
    Release {
        job: String,
    },
    Done {
        job: String,
        #[serde(flatten)]
        outcome: Box<CompileOutcome>,
    },
    Failed {
        job: String,
        reason: Failure,
        message: String,
    },
}

/// Why an executor gives a job up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Failure {
    /// Its GPU is lost to it, and it ends.
    DeviceFault,
    /// An allocation failed, and it ends.
    OutOfMemory,
    /// A compiler of its was killed, or the disk is full; it ends.
    Interrupted,
    /// The job's own, on an executor that is well.
    #[serde(untagged)]
    OfTheJob(FailureReason),
}

impl FromExecutor {
    /// Its name in the protocol.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ready { .. } => "ready",
            Self::Unusable { .. } => "unusable",
            Self::Phase { .. } => "phase",
            Self::Lease { .. } => "lease",
            Self::Release { .. } => "release",
            Self::Done { .. } => "done",
            Self::Failed { .. } => "failed",
        }
    }
}

/// The JSON text of `hello`. `is_known`: what the toolchain can do has been heard from another executor, and need not be found out again.
/// `frontend`: what it imports ahead, since its jobs will be of that.
pub(crate) fn hello(is_known: bool, frontend: Option<&str>) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&ToExecutor::Hello { protocol: PROTOCOL, is_known, frontend })
}

/// The JSON text of `leased`.
pub(crate) fn leased(job: &str) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&ToExecutor::Leased { job })
}

/// The JSON text of `compile`; fails where the graph is not JSON. `runner`: what tries packages, where there is one.
pub(crate) fn compile(job: &CompileJob, runner: Option<&Path>) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&ToExecutor::Compile {
        job: &job.id,
        graph: serde_json::from_str(&job.graph)?,
        range: job.range,
        dispatch_argument: job.dispatch_argument,
        hint: job.hint,
        options: &job.options,
        format: job.format,
        device: &job.device,
        verify: job.verify,
        frontend: job.frontend.as_ref().map(|(frontend, _)| frontend),
        runner: runner.filter(|_| job.format == ArtifactFormat::Aoti),
    })
}

/// Whether an executor that was asked to verify says what came of it. One that was asked and did not would leave an artifact that is
/// compiled again with every request, since the daemon's policy wants it verified.
pub(crate) fn check_verification(verification: &Verification, is_asked: bool) -> Result<(), String> {
    if is_asked && verification.outcome == VerificationOutcome::NotDone {
        return Err("`done` without the verification that was asked for".into());
    }
    Ok(())
}

/// `text` with its middle left out where it is longer than `limit` bytes: the beginning names the error, the end has the
/// traceback's last frame.
pub(crate) fn shorten(text: String, limit: usize) -> String {
    if text.len() <= limit {
        return text;
    }
    // Half for each end, less the room for the words between them; moved to where characters begin.
    let half = (limit / 2).saturating_sub(32);
    let head = (0..=half).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let tail = (text.len() - half..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    format!("{}\n... ({} bytes left out) ...\n{}", &text[..head], tail - head, &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_keeps_both_ends() {
        let long = format!("first{}last", "é".repeat(20_000));
        let short = shorten(long, 16 << 10);
        assert!(short.len() <= 16 << 10, "{}", short.len());
        assert!(short.starts_with("first") && short.ends_with("last") && short.contains("bytes left out"));
        assert_eq!(shorten("as it is".into(), 16), "as it is");
        assert!(shorten("é".repeat(100), 65).contains("bytes left out"));
    }

    #[test]
    fn a_compile_carries_the_graph_as_it_is() {
        let job = CompileJob {
            id: "j1".into(),
            graph: r#"{"nodes": [1.0e1]}"#.into(),
            range: Some(Range::new(1, 16).unwrap()),
            dispatch_argument: Some(2),
            hint: None,
            options: CompileOptions::default(),
            format: ArtifactFormat::Inductor,
            device: DeviceKind { r#type: "cpu".into(), name: "x86_64".into(), capability: "ab".into() },
            verify: true,
            frontend: None,
            deadline: std::time::Duration::from_secs(60),
        };
        let text = String::from_utf8(compile(&job, Some(Path::new("/runner"))).unwrap()).unwrap();
        assert!(text.starts_with(
            r#"{"compile":{"job":"j1","graph":{"nodes": [1.0e1]},"range":[1,16],"dispatch_argument":2,"hint":null,"options":{"#
        ));
        assert!(
            text.ends_with(
                r#""format":"inductor","device":{"type":"cpu","name":"x86_64","capability":"ab"},"verify":true,"frontend":null}}"#
            ),
            "{text}"
        );
        let identity = r#"{"a": "\"b\""}"#;
        let frontend = Frontend::new("f".into(), "1".into(), identity.into()).unwrap();
        let with =
            CompileJob { frontend: Some((frontend, bytes::Bytes::from_static(b"never in the text"))), ..job.clone() };
        let text = String::from_utf8(compile(&with, None).unwrap()).unwrap();
        let expected = r#""frontend":{"name":"f","version":"1","identity":"{\"a\": \"\\\"b\\\"\"}"}}}"#;
        assert!(text.ends_with(expected), "{text}");
        let package = CompileJob { format: ArtifactFormat::Aoti, ..job.clone() };
        let text = String::from_utf8(compile(&package, Some(Path::new("/runner"))).unwrap()).unwrap();
        assert!(
            text.contains(r#""format":"aoti""#) && text.ends_with(r#""frontend":null,"runner":"/runner"}}"#),
            "{text}"
        );
        assert!(compile(&CompileJob { graph: "{".into(), ..job }, None).is_err());
    }

    #[test]
    fn reasons_are_told_apart() {
        let reason = |name: &str| serde_json::from_str::<Failure>(&format!("\"{name}\"")).ok();
        assert_eq!(reason("DEVICE_FAULT"), Some(Failure::DeviceFault));
        assert_eq!(reason("OUT_OF_MEMORY"), Some(Failure::OutOfMemory));
        assert_eq!(reason("INTERRUPTED"), Some(Failure::Interrupted));
        assert_eq!(reason("COMPILE_ERROR"), Some(Failure::OfTheJob(FailureReason::CompileError)));
        assert_eq!(reason("NO_REASON"), None);
    }

    #[test]
    fn a_deep_graph_can_be_carried() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(serde_json::from_str::<&RawValue>(&deep).is_ok());
    }
}
