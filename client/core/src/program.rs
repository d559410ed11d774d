//! Programs: which piece a compile is, how far the run is, and the manifest that is left of it.

use piecewised_graph::{Digest, Manifest, PhaseTiming, ProgramName};
use piecewised_proto::v1;
use piecewised_sign::Statement;
use piecewised_wire::{WireError, manifest_from_proto, manifest_to_proto, program_name_from_proto};
use serde::{Deserialize, Serialize};

use crate::{Client, ClientError, Keyring};

/// Which piece of which program a compile is. `piecewised/v1/program.proto` documents each field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented once, at the proto's ProgramPiece")]
pub struct ProgramPiece {
    pub program: ProgramName,
    pub run: ProgramName,
    pub index: u32,
    pub n_pieces: u32,
}

/// How far a run of a program is. `piecewised/v1/program.proto` documents each field.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "documented once, at the proto's ProgramStatus")]
pub struct ProgramStatus {
    pub program: ProgramName,
    pub n_pieces: u32,
    pub n_pieces_ready: u32,
    pub n_distinct_pieces: u32,
    pub is_complete: bool,
    /// `None` while the manifest is not committed.
    pub manifest_digest: Option<Digest>,
    pub elapsed_s: f64,
    pub n_from_store: u32,
    pub n_compiled: u32,
    pub n_joined: u32,
    pub phases: Vec<PhaseTiming>,
}

impl Client {
    /// The manifest of a program that was completed, and its digest.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `NO_SUCH_MANIFEST` where there is none; [`ClientError::Broken`],
    /// [`ClientError::BadResponse`].
    pub async fn manifest(&self, program: &ProgramName) -> Result<(Manifest, Digest), ClientError> {
        let request = v1::GetManifestRequest { program: program.to_string() };
        let response = self.service.clone().get_manifest(request).await;
        let response = response.map_err(|status| ClientError::from_status(&status, "asking for a manifest"))?;
        let v1::GetManifestResponse { manifest, manifest_digest } = response.into_inner();
        let bad = |problem: String| ClientError::BadResponse { problem };
        let manifest = manifest_from_proto(manifest.ok_or_else(|| bad("a response without a manifest".into()))?)?;
        if manifest.program != *program {
            return Err(bad(format!("the manifest of {} where {program} was asked for", manifest.program)));
        }
        let statement = Statement::of_manifest(&manifest);
        self.options.keyring.of_daemon(self.endpoint(), "manifest", manifest.signature.as_ref(), &statement)?;
        let digest = Digest::from_slice(&manifest_digest).map_err(|error| bad(error.to_string()))?;
        Ok((manifest, digest))
    }
}

/// Refuses a manifest whose parts don't fit together, or that no trusted daemon has signed: one that did not come from a daemon a moment ago.
///
/// # Errors
/// [`ClientError::BadResponse`], [`ClientError::Untrusted`].
pub fn check_manifest(manifest: &Manifest, keyring: &Keyring) -> Result<(), ClientError> {
    // The rules are those of a manifest that comes over the wire.
    manifest_from_proto(manifest_to_proto(manifest))?;
    keyring.check_manifest(manifest)
}

impl ProgramPiece {
    pub(crate) fn from_proto(piece: v1::ProgramPiece) -> Result<Self, WireError> {
        Ok(Self {
            program: program_name_from_proto(&piece.program)?,
            run: program_name_from_proto(&piece.run)?,
            index: piece.index,
            n_pieces: piece.n_pieces,
        })
    }

    pub(crate) fn into_proto(self) -> v1::ProgramPiece {
        v1::ProgramPiece {
            program: self.program.into(),
            run: self.run.into(),
            index: self.index,
            n_pieces: self.n_pieces,
        }
    }
}

impl TryFrom<v1::ProgramStatus> for ProgramStatus {
    type Error = ClientError;

    fn try_from(status: v1::ProgramStatus) -> Result<Self, ClientError> {
        let digest = |bytes: &[u8]| {
            Digest::from_slice(bytes).map_err(|error| ClientError::BadResponse { problem: error.to_string() })
        };
        Ok(Self {
            program: program_name_from_proto(&status.program)?,
            n_pieces: status.n_pieces,
            n_pieces_ready: status.n_pieces_ready,
            n_distinct_pieces: status.n_distinct_pieces,
            is_complete: status.is_complete,
            manifest_digest: match status.manifest_digest.as_slice() {
                [] => None,
                bytes => Some(digest(bytes)?),
            },
            elapsed_s: status.elapsed_s,
            n_from_store: status.n_from_store,
            n_compiled: status.n_compiled,
            n_joined: status.n_joined,
            phases: status
                .phases
                .into_iter()
                .map(|timing| PhaseTiming { phase: timing.phase, seconds: timing.seconds })
                .collect(),
        })
    }
}
