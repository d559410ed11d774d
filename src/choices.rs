//! Values of the configuration that are one of a few words.

use clap::ValueEnum;
use piecewised_api::TrustedPeers;
use serde::{Deserialize, Serialize};

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// For people; without times where systemd adds its own.
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Which artifacts are run against eager before they are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verify {
    /// None.
    Off,
    /// Those of some keys, as many percent of them as --verify-sample-percent says.
    Sample,
    /// All.
    Always,
}

/// What becomes of a running compile when its last caller leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AbandonedJobs {
    /// It is finished and stored.
    Finish,
    /// It is ended.
    End,
}

/// What executors are kept from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ConfineExecutors {
    /// All that the machine has measures for.
    Auto,
    /// The same, and the daemon does not start where one of them is missing.
    Require,
    /// Nothing.
    Off,
}

/// Who may have executors unpickle what it sends, or change what the daemon has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum Trusted {
    /// Processes of the daemon's own user, through the Unix socket.
    SameUid,
    /// Whoever can connect.
    All,
    /// Nobody.
    None,
}

impl From<Trusted> for TrustedPeers {
    fn from(trusted: Trusted) -> Self {
        match trusted {
            Trusted::SameUid => Self::SameUid,
            Trusted::All => Self::All,
            Trusted::None => Self::None,
        }
    }
}
