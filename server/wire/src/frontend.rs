//! Frontends.

use bytes::Bytes;
use piecewised_graph::Frontend;
use piecewised_proto::v1;

use crate::WireError;

/// The largest payload, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 16 << 20;

/// The frontend of a message, and its payload.
///
/// # Errors
/// `BAD_FRONTEND` where a text is not usable or one of them is too long.
pub fn frontend_from_proto(frontend: v1::Frontend) -> Result<(Frontend, Bytes), WireError> {
    let v1::Frontend { name, version, identity, payload } = frontend;
    let bad = |message: String| WireError::new("BAD_FRONTEND", message);
    if payload.len() > MAX_PAYLOAD_BYTES {
        let n_bytes = payload.len();
        return Err(bad(format!("the frontend's payload has {n_bytes} bytes, the limit is {MAX_PAYLOAD_BYTES}")));
    }
    let frontend = Frontend::new(name, version, identity).map_err(|error| bad(error.to_string()))?;
    Ok((frontend, Bytes::from(payload)))
}

/// The message of a frontend.
pub fn frontend_to_proto(frontend: &Frontend, payload: &[u8]) -> v1::Frontend {
    v1::Frontend {
        name: frontend.name.clone(),
        version: frontend.version.clone(),
        identity: frontend.identity.clone().into_bytes(),
        payload: payload.to_vec(),
    }
}
