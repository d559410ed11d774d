//! The one mapping from errors to `tonic::Status`: code, a sentence, and `google.rpc.ErrorInfo`.
//!
//! | code | what a caller does |
//! |---|---|
//! | `INVALID_ARGUMENT`, `OUT_OF_RANGE` | mend the request |
//! | `FAILED_PRECONDITION` | compile locally, or bring daemon and worker to the same versions |
//! | `RESOURCE_EXHAUSTED` | make it smaller, or wait as `RetryInfo` says |
//! | `UNAVAILABLE` | ask again |
//! | `NOT_FOUND` | compile again |
//! | `PERMISSION_DENIED` | compile locally, or have the operator trust the caller |
//! | `UNAUTHENTICATED` | show a certificate or a token that is known, and has not ended |
//! | `INTERNAL` | report it |

use std::{collections::HashMap, time::Duration};

use piecewised_graph::GraphError;
use piecewised_plan::PlanError;
use piecewised_scheduler::{ProgramError, SubmitError};
use piecewised_store::StoreError;
use piecewised_wire::WireError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

pub use piecewised_proto::ERROR_DOMAIN;

/// An error with everything that a Status says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    code: Code,
    reason: &'static str,
    message: String,
    metadata: Vec<(&'static str, String)>,
    retry_after: Option<Duration>,
}

impl ApiError {
    /// An error of this code and reason.
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), metadata: Vec::new(), retry_after: None }
    }

    /// With a machine-readable detail.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.metadata.push((name, value.into()));
        self
    }

    pub(crate) fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let metadata: HashMap<String, String> =
            error.metadata.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let mut details = ErrorDetails::with_error_info(error.reason, ERROR_DOMAIN, metadata);
        if let Some(delay) = error.retry_after {
            details.set_retry_info(Some(delay));
        }
        Status::with_error_details(error.code, format!("{}: {}", error.reason, error.message), details)
    }
}

impl From<GraphError> for ApiError {
    fn from(error: GraphError) -> Self {
        let code = match error.reason() {
            "GRAPH_TOO_LARGE" => Code::ResourceExhausted,
            _ => Code::InvalidArgument,
        };
        let api = Self::new(code, error.reason(), error.to_string());
        match error.node() {
            Some(node) => api.with("node", node),
            None => api,
        }
    }
}

impl From<PlanError> for ApiError {
    fn from(error: PlanError) -> Self {
        Self::new(Code::InvalidArgument, error.reason(), error.to_string())
    }
}

impl From<ProgramError> for ApiError {
    fn from(error: ProgramError) -> Self {
        Self::new(Code::InvalidArgument, error.reason(), error.to_string())
    }
}

impl From<WireError> for ApiError {
    fn from(error: WireError) -> Self {
        let api = Self::new(Code::InvalidArgument, error.reason(), error.to_string());
        match error.node() {
            Some(node) => api.with("node", node),
            None => api,
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::Draining => {
                Self::new(Code::Unavailable, "DRAINING", message).retry_after(Duration::from_secs(2))
            }
            SubmitError::StillProbing => {
                Self::new(Code::Unavailable, "NOT_READY", message).retry_after(Duration::from_secs(2))
            }
            SubmitError::QueueFull { limit, retry_after, .. } => full("QUEUE_FULL", message, limit, retry_after),
            SubmitError::PeerQueueFull { limit, retry_after, .. } => {
                full("PEER_QUEUE_FULL", message, limit, retry_after)
            }
            SubmitError::PeerBytesFull { limit, retry_after, .. } => {
                full("PEER_BYTES_FULL", message, limit, retry_after)
            }
            SubmitError::NoToolchain { .. } => Self::new(Code::FailedPrecondition, "NO_TOOLCHAIN", message),
            SubmitError::Store(error) => error.into(),
            _ => Self::new(Code::Internal, "INTERNAL", message),
        }
    }
}

fn full(reason: &'static str, message: String, limit: usize, retry_after: Option<Duration>) -> ApiError {
    let message = match retry_after {
        Some(_) => message,
        None => format!(
            "{message}; so many never fit at once: ask for less at a time, or have the operator raise the limit"
        ),
    };
    let error = ApiError::new(Code::ResourceExhausted, reason, message).with("limit", limit.to_string());
    ApiError { retry_after, ..error }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = format!("{error}; ask again, and if it stays, look at the daemon's log");
        Self::new(Code::Unavailable, "STORE_FAILED", message).retry_after(Duration::from_secs(1))
    }
}

/// tonic answers a message over the limit with `OUT_OF_RANGE` and no details; gRPC's own word for it is `RESOURCE_EXHAUSTED`.
pub(crate) fn name_oversized_messages<B>(mut response: http::Response<B>) -> http::Response<B> {
    if let Some(status) = Status::from_header_map(response.headers())
        && status.code() == Code::OutOfRange
        && status.message().contains("message length too large")
    {
        let message =
            format!("{}; split the graph, or raise max_message_bytes in the daemon's configuration", status.message());
        let named: Status = ApiError::new(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", message).into();
        // It can only fail for a message that is no header value, and add_header percent-encodes.
        let _ = named.add_header(response.headers_mut());
    }
    response
}
