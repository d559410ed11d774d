//! Exit codes, and which error means which. `piecewised serve --help` documents them ([`HELP`]), and `piecewised store`'s commands and
//! what asks a daemon theirs.

use std::process::ExitCode;

use piecewised_api::{BadTls, BadTokens};
use piecewised_client::{EndpointError, GraphFileError};
use piecewised_executor::NoToolchain;
use piecewised_plan::PlanError;
use piecewised_store::StoreError;

use crate::{
    ask::{NoGraphFiles, OwnDaemonEnded},
    layers::ConfigError,
    listen::ListenError,
    signing_key::SigningKeyError,
};

/// For `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0  ended by SIGINT or SIGTERM after draining
  1  failed while running, or a second signal cut draining short
  2  the command line or the configuration is wrong
  3  the interpreter that --python names cannot import torch, or not compile
  4  another daemon has the socket, the address or the store

Without --python the daemon starts also where no interpreter on PATH can import torch: it serves what is in its store and
answers that it is not ready to compile. The first SIGINT or SIGTERM drains: no new requests, running compiles are
finished within --drain-deadline-s. The second ends at once.";

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Success = 0,
    Failure = 1,
    Usage = 2,
    NoToolchain = 3,
    InUse = 4,
    /// Of `piecewised store`: something is damaged or missing.
    Damaged = 5,
    /// Of what compiles ahead of time: something could not be compiled.
    NotCompiled = 6,
}

impl Exit {
    /// The code for `error`, by the first of its causes that has one of its own.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        error
            .chain()
            .find_map(|cause| {
                if cause.is::<ConfigError>()
                    || cause.is::<EndpointError>()
                    || cause.is::<SigningKeyError>()
                    || cause.is::<GraphFileError>()
                    || cause.is::<PlanError>()
                    || cause.is::<NoGraphFiles>()
                {
                    return Some(Self::Usage);
                }
                if cause.is::<BadTls>() || cause.is::<BadTokens>() {
                    return Some(Self::Usage);
                }
                if cause.is::<NoToolchain>() {
                    return Some(Self::NoToolchain);
                }
                if let Some(error) = cause.downcast_ref::<OwnDaemonEnded>() {
                    return Some(error.exit());
                }
                if let Some(error) = cause.downcast_ref::<ListenError>() {
                    return Some(error.exit());
                }
                matches!(cause.downcast_ref(), Some(StoreError::Locked { .. })).then_some(Self::InUse)
            })
            .unwrap_or(Self::Failure)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_their_codes_under_context() {
        let no_toolchain = NoToolchain { explicit: Some("/python".into()), rejected: Vec::new() };
        assert_eq!(Exit::of(&anyhow::Error::new(no_toolchain).context("starting")), Exit::NoToolchain);
        let locked = StoreError::Locked { path: "/store".into(), owner: "process 7".into() };
        assert_eq!(Exit::of(&locked.into()), Exit::InUse);
        assert_eq!(
            Exit::of(&ListenError::InUse { address: "unix:///x".into(), by: String::new() }.into()),
            Exit::InUse
        );
        assert_eq!(Exit::of(&StoreError::Closed.into()), Exit::Failure);
        assert_eq!(Exit::of(&ConfigError::new("no").into()), Exit::Usage);
        let no_file = piecewised_client::read_graph_file("/nowhere/x.pwgraph".as_ref()).unwrap_err();
        assert_eq!(Exit::of(&anyhow::Error::new(no_file).context("compiling")), Exit::Usage);
        assert_eq!(Exit::of(&piecewised_plan::Range::new(4, 1).unwrap_err().into()), Exit::Usage);
        assert_eq!(Exit::of(&anyhow::anyhow!("else")), Exit::Failure);
    }
}
