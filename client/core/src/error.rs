//! Everything that can go wrong between a worker and the daemon, sorted by what the worker should do about it.

use std::{collections::BTreeMap, io, path::PathBuf, time::Duration};

use piecewised_graph::{BadProgramName, Digest};
use piecewised_plan::{PlanError, Range};
use piecewised_wire::WireError;
use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{container::ContainerError, endpoint::EndpointError, trust::TrustError};

/// The reasons of an `INVALID_ARGUMENT` that name something the user wrote: the plan, the options or the program. The other reasons are
/// about the graph, which the user didn't write, and which can still be compiled without the daemon.
const USERS_REASONS: [&str; 17] = [
    "UNKNOWN_OPTION",
    "RESERVED_OPTION",
    "BAD_OPTION",
    "EMPTY_PLAN",
    "OVERLAPPING_RANGES",
    "TOO_MANY_RANGES",
    "STATIC_GRAPH",
    "BAD_RANGE",
    "BAD_SIZE",
    "BAD_ENDPOINT",
    "BAD_ENCODER_PLAN",
    "BAD_HINT",
    "BAD_HINTS",
    "BAD_PROGRAM_NAME",
    "BAD_PIECE_INDEX",
    "DIFFERENT_TOTALS",
    "DIFFERENT_PIECE",
];

/// Reasons of a refusal for want of room.
const FULL: [&str; 5] = ["QUEUE_FULL", "PEER_QUEUE_FULL", "PEER_BYTES_FULL", "PEER_STREAMS_FULL", "PEER_RATE_FULL"];

/// A failure of the client. The messages are complete sentences for people.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address can't be read.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Nobody answers there.
    #[error("no piecewised daemon answers at {endpoint}: {problem}")]
    Unreachable {
        /// The address.
        endpoint: String,
        /// What the connection said.
        problem: String,
    },
    /// The daemon answered with an error.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// The connection ended in the middle.
    #[error("the connection to the piecewised daemon broke while {doing}: {problem}")]
    Broken {
        /// What was going on.
        doing: &'static str,
        /// What the connection said.
        problem: String,
    },
    /// The caller's own limit was reached.
    #[error("the piecewised daemon did not finish within {budget:?}")]
    BudgetSpent {
        /// The limit.
        budget: Duration,
    },
    /// The daemon sent something that the protocol doesn't allow.
    #[error("the piecewised daemon's answer can't be used: {problem}")]
    BadResponse {
        /// What is wrong with it.
        problem: String,
    },
    /// What came is not signed by whom this process trusts.
    #[error(transparent)]
    Untrusted(#[from] TrustError),
    /// What this side should show the daemon, or judge it by, can't be used.
    #[error("{problem}")]
    BadCredentials {
        /// What is wrong with it.
        problem: String,
    },
    /// The keys that were given can't be read.
    #[error("PIECEWISED_TRUSTED_KEYS (trusted_keys) can't be used: {problem}")]
    BadTrustedKeys {
        /// What is wrong with them.
        problem: String,
    },
    /// The bytes that came are not the artifact.
    #[error("artifact {expected} arrived damaged: its bytes have the digest {found}")]
    DigestMismatch {
        /// What the handle names.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The artifact is larger than this client takes.
    #[error("artifact {digest} has {size_bytes} bytes, more than the {limit_bytes} that this client takes")]
    TooLarge {
        /// The artifact.
        digest: Digest,
        /// As the handle says.
        size_bytes: u64,
        /// The client's limit.
        limit_bytes: u64,
    },
    /// The artifact is not the container that docs/artifact.md describes.
    #[error("artifact {digest} is not a container that can be used: {source}")]
    BadContainer {
        /// The artifact.
        digest: Digest,
        /// What is wrong with it.
        source: ContainerError,
    },
    /// The cache folder can be written by others, who could change code before it is loaded.
    #[error("{} can't be the cache folder: {problem}; name another with PIECEWISED_CACHE_DIR", .path.display())]
    CacheNotPrivate {
        /// The folder.
        path: PathBuf,
        /// Who else can write there.
        problem: &'static str,
    },
    /// The cache folder can't be used.
    #[error("the cache folder can't be used: {doing} {}: {source}", .path.display())]
    Io {
        /// What was being done, "creating".
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A plan that breaks a rule, or a size that it doesn't cover.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A size within a compiled range that no segment of it was proven for.
    #[error("size {size} is in no proven part of {range}: there is {}", .segments.join(", "))]
    NoSegment {
        /// The size asked for.
        size: i64,
        /// The entry of the plan that it belongs to.
        range: Range,
        /// What there is, with its guards.
        segments: Vec<String>,
    },
    /// A call for which the compiled code is not valid.
    #[error("nothing that was compiled for {range} is valid for a call of size {size} ({}): {}", .values.join(", "), .segments.join("; "))]
    GuardFailed {
        /// The size asked for.
        size: i64,
        /// The entry of the plan that it belongs to.
        range: Range,
        /// The segments that contain the size, each with the guard that does not hold.
        segments: Vec<String>,
        /// What guards name and the call has, as "s0 = 9".
        values: Vec<String>,
    },
    /// A text that can't be the name of a program.
    #[error(transparent)]
    ProgramName(#[from] BadProgramName),
    /// Bytes that are not what `to_bundle` made.
    #[error("these bytes are not a compiled entry: {problem}")]
    BadBundle {
        /// What is wrong with them.
        problem: String,
    },
    /// Handles that don't make a dispatch table.
    #[error("the handles can't be dispatched on: {problem}")]
    BadHandles {
        /// Which rule is broken.
        problem: String,
    },
}

impl ClientError {
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    /// Whether the caller has to change the plan, the options or the address: trying elsewhere would hide the mistake.
    pub fn is_callers_mistake(&self) -> bool {
        match self {
            Self::Endpoint(_)
            | Self::BadCredentials { .. }
            | Self::BadTrustedKeys { .. }
            | Self::Plan(_)
            | Self::ProgramName(_) => true,
            Self::NoSegment { .. } | Self::GuardFailed { .. } => true,
            Self::Refused(refusal) => refusal.is_callers_mistake(),
            _ => false,
        }
    }

    /// Whether the caller should go on without the daemon.
    pub fn falls_back(&self) -> bool {
        !self.is_callers_mistake()
    }

    /// A stable name in UPPER_SNAKE_CASE: the daemon's own where it gave one.
    pub fn reason(&self) -> &str {
        match self {
            Self::Endpoint(_) => "BAD_ENDPOINT_ADDRESS",
            Self::Unreachable { .. } => "UNREACHABLE",
            Self::Refused(refusal) => &refusal.reason,
            Self::Broken { .. } => "CONNECTION_BROKEN",
            Self::BudgetSpent { .. } => "BUDGET_SPENT",
            Self::BadResponse { .. } => "BAD_RESPONSE",
            Self::Untrusted(error) => error.reason(),
            Self::BadTrustedKeys { .. } => "BAD_TRUSTED_KEYS",
            Self::BadCredentials { .. } => "BAD_CREDENTIALS",
            Self::DigestMismatch { .. } => "DIGEST_MISMATCH",
            Self::TooLarge { .. } => "ARTIFACT_TOO_LARGE",
            Self::BadContainer { .. } => "BAD_CONTAINER",
            Self::CacheNotPrivate { .. } => "CACHE_NOT_PRIVATE",
            Self::Io { .. } => "CACHE_IO",
            Self::Plan(error) => error.reason(),
            Self::NoSegment { .. } => "SIZE_NOT_COVERED",
            Self::GuardFailed { .. } => "GUARD_FAILED",
            Self::ProgramName(_) => "BAD_PROGRAM_NAME",
            Self::BadBundle { .. } => "BAD_BUNDLE",
            Self::BadHandles { .. } => "BAD_HANDLES",
        }
    }

    /// What belongs to the reason: the node's name, the option's.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        match self {
            Self::Refused(refusal) => refusal.metadata.clone(),
            _ => BTreeMap::new(),
        }
    }

    /// From a status that came while `doing` something. `Broken` where the daemon didn't say it itself.
    pub(crate) fn from_status(status: &Status, doing: &'static str) -> Self {
        match Refusal::from_status(status) {
            Some(refusal) => Self::Refused(Box::new(refusal)),
            None => Self::Broken { doing, problem: describe(status) },
        }
    }

    /// Whether the same call may succeed in a moment.
    pub(crate) fn waiting_helps(&self) -> bool {
        match self {
            // Where the daemon does not say when, so much will never fit.
            Self::Refused(refusal) if FULL.contains(&refusal.reason.as_str()) => refusal.retry_after.is_some(),
            Self::Refused(refusal) => refusal.reason == "NOT_READY",
            _ => false,
        }
    }
}

impl From<WireError> for ClientError {
    fn from(error: WireError) -> Self {
        Self::BadResponse { problem: error.to_string() }
    }
}

/// An error that the daemon answered with.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the piecewised daemon refused: {message}")]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// Stable, in UPPER_SNAKE_CASE; empty where the daemon gave none.
    pub reason: String,
    /// For people.
    pub message: String,
    /// What belongs to the reason.
    pub metadata: BTreeMap<String, String>,
    /// How long the daemon asks to wait before the next try.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// The daemon's error; `None` where the status was made on this side, by a connection that broke.
    pub(crate) fn from_status(status: &Status) -> Option<Self> {
        let details = status.get_error_details();
        let (leading, rest) = leading_reason(status.message());
        let (reason, metadata) = match details.error_info() {
            Some(info) => (info.reason.clone(), info.metadata.clone().into_iter().collect()),
            None => (leading.unwrap_or_default().to_owned(), BTreeMap::new()),
        };
        // A broken connection surfaces as one of these codes without a reason; a daemon always gives one with them.
        let may_be_the_connection =
            matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal);
        if reason.is_empty() && may_be_the_connection {
            return None;
        }
        let message = if leading == Some(reason.as_str()) { rest } else { status.message() };
        Some(Self {
            code: status.code(),
            message: if reason.is_empty() { message.to_owned() } else { format!("{message} ({reason})") },
            reason,
            metadata,
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        })
    }

    fn is_callers_mistake(&self) -> bool {
        self.code == Code::InvalidArgument && USERS_REASONS.contains(&self.reason.as_str())
    }
}

/// Splits `REASON: message`.
fn leading_reason(message: &str) -> (Option<&str>, &str) {
    match message.split_once(": ") {
        Some((reason, rest))
            if reason.len() >= 3
                && reason.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_') =>
        {
            (Some(reason), rest)
        }
        _ => (None, message),
    }
}

/// A status with the chain of its causes: tonic's own message is often no more than "transport error".
pub(crate) fn describe(status: &Status) -> String {
    let mut text = if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() };
    append_causes(&mut text, std::error::Error::source(status));
    text
}

/// Appends what caused an error, as far as it says something new.
pub(crate) fn append_causes(text: &mut String, mut cause: Option<&(dyn std::error::Error + 'static)>) {
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn status(code: Code, reason: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason, "piecewised", [("node".to_owned(), "add_1".to_owned())]);
        Status::with_error_details(code, "say what to do", details)
    }

    #[test]
    fn the_users_own_mistakes_are_raised_and_the_rest_falls_back() {
        let check = |code, reason: &str, mistake: bool| {
            let error = ClientError::from_status(&status(code, reason), "compiling");
            assert_eq!(error.reason(), reason);
            assert_eq!(error.metadata().get("node").map(String::as_str), Some("add_1"));
            assert_eq!(error.is_callers_mistake(), mistake, "{reason}");
            assert_eq!(error.falls_back(), !mistake, "{reason}");
        };
        for reason in USERS_REASONS {
            check(Code::InvalidArgument, reason, true);
        }
        check(Code::InvalidArgument, "TARGET_NOT_ALLOWED", false);
        check(Code::InvalidArgument, "BAD_EXPRESSION", false);
        check(Code::FailedPrecondition, "TOOLCHAIN_MISMATCH", false);
        check(Code::Unavailable, "DRAINING", false);
        check(Code::Internal, "UNKNOWN_OPTION", false);
    }

    #[test]
    fn a_reason_is_found_in_front_of_the_message_too() {
        let error =
            ClientError::from_status(&Status::invalid_argument("UNDECODABLE: the request is garbage"), "compiling");
        assert_eq!(error.reason(), "UNDECODABLE");
        assert_eq!(error.to_string(), "the piecewised daemon refused: the request is garbage (UNDECODABLE)");
        assert_eq!(leading_reason("http2 error: x"), (None, "http2 error: x"));
    }

    #[test]
    fn a_broken_connection_is_not_a_refusal() {
        for code in [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal] {
            let error = ClientError::from_status(&Status::new(code, "transport error"), "compiling");
            assert!(matches!(error, ClientError::Broken { .. }), "{code}");
        }
        let not_found = ClientError::from_status(&Status::not_found("gone"), "fetching");
        assert!(matches!(not_found, ClientError::Refused(_)));
    }
}
