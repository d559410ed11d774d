//! A request's frontend and label.

use std::sync::Arc;

use piecewised_graph::Digest;
use piecewised_proto::v1;
use piecewised_scheduler::{JobFrontend, ToolchainInfo};
use piecewised_wire as wire;
use tonic::Code;

use crate::status::ApiError;

/// The frontend of a request, if the toolchain has it.
pub(crate) fn frontend(frontend: v1::Frontend, info: &ToolchainInfo) -> Result<JobFrontend, ApiError> {
    let (frontend, payload) = wire::frontend_from_proto(frontend)?;
    if !info.frontends.contains(&frontend.name) {
        let has = if info.frontends.is_empty() { "none".to_owned() } else { info.frontends.join(", ") };
        let message = format!(
            "the toolchain that this daemon compiles with ({}) has no frontend {:?}, it has {has}; install its package there, start the \
             daemon with --python naming an interpreter that has it, or list its module in `frontends`",
            info.toolchain.executable, frontend.name
        );
        return Err(ApiError::new(Code::FailedPrecondition, "FRONTEND_UNKNOWN", message)
            .with("frontend", frontend.name)
            .with("available", has));
    }
    let payload_digest = Digest::of(&payload);
    Ok(JobFrontend { frontend, payload, payload_digest })
}

/// Longest label, in bytes.
const MAX_LABEL_BYTES: usize = 256;

/// What the caller calls the piece.
pub(crate) fn label(label: String) -> Result<Arc<str>, ApiError> {
    if label.len() > MAX_LABEL_BYTES || label.chars().any(char::is_control) {
        let message =
            format!("CompileRequest.label is a name of at most {MAX_LABEL_BYTES} bytes without control characters");
        return Err(ApiError::new(Code::InvalidArgument, "BAD_LABEL", message).with("field", "label"));
    }
    Ok(label.into())
}
