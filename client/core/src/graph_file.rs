//! Graph files: a request for a compile, recorded, so that another program can make it: a worker without Python, or one
//! command that compiles ahead of time.
//!
//! The file is [`GRAPH_FILE_MAGIC`], then a `piecewised.v1.CompileRequest` in protobuf's binary form.

use std::{fs, io, io::Write as _, path::Path};

use piecewised_proto::v1;
use piecewised_wire::{
    device_from_proto, frontend_from_proto, graph_from_proto, options_from_proto, plan_from_proto, toolchain_from_proto,
};
use prost::Message as _;
use thiserror::Error;

use crate::{CompileRequest, Priority, ProgramPiece};

/// What each graph file begins with; the last character is the version.
pub const GRAPH_FILE_MAGIC: &[u8; 8] = b"pwgraph1";

/// Why a graph file cannot be written or read. The messages name the file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GraphFileError {
    /// The file system says no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What it says.
        source: io::Error,
    },
    /// It is not a graph file.
    #[error("{path} is not a graph file of this version: {problem}; piecewised.save_graph writes them")]
    NotOne {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It is one, and its content will not do.
    #[error("{path} holds a request that cannot be read: {source}")]
    Bad {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Writes a request to a file, whole or not at all: an earlier file of that name stays where this fails.
///
/// # Errors
/// [`GraphFileError::Io`].
pub fn write_graph_file(path: &Path, request: CompileRequest) -> Result<(), GraphFileError> {
    let write = || {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(GRAPH_FILE_MAGIC)?;
        file.write_all(&request.into_proto().encode_to_vec())?;
        // As `fs::write` would leave it, and not for the owner alone: what it holds is no secret of one user's.
        fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|source| GraphFileError::Io { path: path.display().to_string(), source })
}

/// The request in a graph file. Its toolchain and device are those that were recorded with it, perhaps none.
///
/// # Errors
/// [`GraphFileError`].
pub fn read_graph_file(path: &Path) -> Result<CompileRequest, GraphFileError> {
    let shown = || path.display().to_string();
    let bytes = fs::read(path).map_err(|source| GraphFileError::Io { path: shown(), source })?;
    let not_one = |problem: String| GraphFileError::NotOne { path: shown(), problem };
    let Some(message) = bytes.strip_prefix(GRAPH_FILE_MAGIC) else {
        return Err(not_one(format!("it does not begin with {:?}", GRAPH_FILE_MAGIC.escape_ascii().to_string())));
    };
    let message = v1::CompileRequest::decode(message).map_err(|error| not_one(error.to_string()))?;
    CompileRequest::from_proto(message).map_err(|source| GraphFileError::Bad { path: shown(), source })
}

impl CompileRequest {
    /// The request of a message; an error where a part is absent or not what it should be.
    fn from_proto(message: v1::CompileRequest) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let (options, format, delivery) = options_from_proto(message.options.unwrap_or_default())?;
        let frontend = message.frontend.map(frontend_from_proto).transpose()?;
        Ok(Self {
            priority: match v1::Priority::try_from(message.priority) {
                Ok(v1::Priority::Prefetch) => Priority::Prefetch,
                Ok(v1::Priority::Background) => Priority::Background,
                _ => Priority::Interactive,
            },
            graph: graph_from_proto(message.graph.unwrap_or_default())?,
            plan: plan_from_proto(message.plan.unwrap_or_default())?,
            options,
            format,
            delivery,
            toolchain: message.toolchain.map(toolchain_from_proto),
            device: message.device.map(device_from_proto),
            program: message.program.map(ProgramPiece::from_proto).transpose()?,
            frontend: frontend.map(|(frontend, payload)| (frontend, payload.to_vec())),
            label: message.label,
        })
    }
}
