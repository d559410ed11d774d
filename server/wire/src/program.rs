//! Manifests.

use piecewised_graph::{Manifest, ManifestPiece, ProgramName};
use piecewised_proto::v1;

use crate::{
    WireError, device_from_proto, device_to_proto, handle_from_proto, handle_to_proto, range_from_proto,
    range_to_proto, signature_from_proto, signature_to_proto, toolchain_from_proto, toolchain_to_proto,
};

/// The name of a program or run.
///
/// # Errors
/// `BAD_PROGRAM_NAME`.
pub fn program_name_from_proto(name: &str) -> Result<ProgramName, WireError> {
    name.parse()
        .map_err(|error: piecewised_graph::BadProgramName| WireError::new("BAD_PROGRAM_NAME", error.to_string()))
}

/// The message of a manifest.
pub fn manifest_to_proto(manifest: &Manifest) -> v1::Manifest {
    v1::Manifest {
        program: manifest.program.to_string(),
        toolchain: Some(toolchain_to_proto(&manifest.toolchain)),
        devices: manifest.devices.iter().map(device_to_proto).collect(),
        pieces: manifest
            .pieces
            .iter()
            .map(|piece| v1::ManifestPiece {
                index: piece.index,
                entries: piece.entries.iter().copied().map(range_to_proto).collect(),
                handles: piece.handles.iter().map(handle_to_proto).collect(),
            })
            .collect(),
        n_distinct_pieces: manifest.n_distinct_pieces,
        created_unix_ms: manifest.created_unix_ms,
        signature: manifest.signature.as_ref().map(signature_to_proto),
    }
}

/// The manifest of a message.
///
/// # Errors
/// `BAD_MANIFEST` where a part is absent or pieces are not complete and in order, and what [`handle_from_proto`] refuses.
pub fn manifest_from_proto(manifest: v1::Manifest) -> Result<Manifest, WireError> {
    let bad = |what: &str| WireError::new("BAD_MANIFEST", format!("the manifest is not usable: {what}"));
    let pieces = manifest
        .pieces
        .into_iter()
        .enumerate()
        .map(|(position, piece)| {
            if usize::try_from(piece.index) != Ok(position) {
                return Err(bad("its pieces are not complete and in order"));
            }
            if piece.handles.len() != piece.entries.len().max(1) {
                return Err(bad("a piece does not have one handle for each of its entries"));
            }
            Ok(ManifestPiece {
                index: piece.index,
                entries: piece
                    .entries
                    .into_iter()
                    .map(|range| range_from_proto(range).map_err(|error| bad(&error.to_string())))
                    .collect::<Result<_, _>>()?,
                handles: piece.handles.into_iter().map(handle_from_proto).collect::<Result<_, _>>()?,
            })
        })
        .collect::<Result<Vec<_>, WireError>>()?;
    Ok(Manifest {
        program: program_name_from_proto(&manifest.program)?,
        toolchain: toolchain_from_proto(manifest.toolchain.ok_or_else(|| bad("toolchain is absent"))?),
        devices: manifest.devices.into_iter().map(device_from_proto).collect(),
        pieces,
        n_distinct_pieces: manifest.n_distinct_pieces,
        created_unix_ms: manifest.created_unix_ms,
        signature: manifest.signature.map(signature_from_proto).transpose()?,
    })
}
