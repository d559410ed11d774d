//! The generated half of the protocol: messages, service stubs and the descriptor set that reflection serves.
//!
//! `piecewised/v1/*.proto` is the documentation; nothing is added here but the codec that answers undecodable requests
//! with `INVALID_ARGUMENT` (tonic's own says `INTERNAL`, which tells a caller to blame the daemon).
#![allow(missing_docs, unreachable_pub, clippy::all)]

pub mod codec;

/// Messages and the server half of `piecewised.v1`.
pub mod v1 {
    tonic::include_proto!("piecewised.v1");
    /// The client half of `piecewised.v1`.
    pub mod client {
        include!(concat!(env!("OUT_DIR"), "/client/piecewised.v1.rs"));
    }
}

/// The encoded `FileDescriptorSet` of every file in this package, with comments.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/piecewised.v1.binpb"));

/// `google.rpc.ErrorInfo.domain` of every error of the service.
pub const ERROR_DOMAIN: &str = "piecewised";
