//! What is signed, as 32 bytes: each kind of statement under a name of its own, so that a signature of one is none of another.
//!
//! A statement's bytes are those of its protobuf message, without its signature, written as protobuf does when it is asked to be deterministic:
//! fields in the order of their numbers, nothing that has its default value. No message that is signed has a map. Fields that a later version adds
//! belong to a later version's statements: clear them here, or those who have this version can no longer verify.

use piecewised_graph::{Digest, Handle, Manifest, SnapshotName};
use piecewised_proto::v1;
use piecewised_wire as wire;
use prost::Message as _;

/// What can be signed, digested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Statement(pub(crate) [u8; 32]);

impl Statement {
    /// That a handle is what it says: this code, for this key, for these sizes.
    pub fn of_handle(handle: &Handle) -> Self {
        Self::of_handle_message(&v1::Handle { signature: None, ..wire::handle_to_proto(handle) })
    }

    /// The same of a message that has no signature yet.
    pub fn of_handle_message(handle: &v1::Handle) -> Self {
        debug_assert!(handle.signature.is_none(), "a signature is not part of what is signed");
        Self::new("piecewised signed handle v1", &handle.encode_to_vec())
    }

    /// That a request asks for these keys; of a message that has no signature yet.
    pub fn of_accepted(accepted: &v1::Accepted) -> Self {
        debug_assert!(accepted.signature.is_none(), "a signature is not part of what is signed");
        Self::new("piecewised signed request v1", &accepted.encode_to_vec())
    }

    /// That a program consists of these handles.
    pub fn of_manifest(manifest: &Manifest) -> Self {
        Self::of_manifest_message(wire::manifest_to_proto(manifest))
    }

    /// The same of a message, whatever signatures are in it.
    pub fn of_manifest_message(mut manifest: v1::Manifest) -> Self {
        manifest.signature = None;
        for handle in manifest.pieces.iter_mut().flat_map(|piece| &mut piece.handles) {
            handle.signature = None;
        }
        Self::new("piecewised signed manifest v1", &manifest.encode_to_vec())
    }

    /// That a snapshot of this name has these bytes.
    pub fn of_snapshot(name: &SnapshotName, total_bytes: u64, digest: &Digest) -> Self {
        let name = Some(wire::snapshot_name_to_proto(name));
        let header = v1::SnapshotHeader { name, total_bytes, digest: digest.0.to_vec() };
        Self::new("piecewised signed snapshot v1", &header.encode_to_vec())
    }

    fn new(kind: &str, message: &[u8]) -> Self {
        Self(blake3::derive_key(kind, message))
    }
}
