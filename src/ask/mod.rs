//! The commands that ask a running daemon: one room, so that they all find it, write and end alike.
//!
//! Results go to stdout, as text for people or with `--json` as JSON for programs; everything else to stderr.

mod change;
mod compile;
mod explain;
mod graph_file;
mod jobs;
mod list;
mod own_daemon;
mod show;
mod status;
mod warm;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use piecewised_client::{Client, ClientOptions, Credentials, Endpoint};
use serde::Serialize;

use self::{graph_file::Changes, warm::WarmArguments};
pub(crate) use self::{graph_file::NoGraphFiles, own_daemon::OwnDaemonEnded};
use crate::{exit::Exit, surroundings::Surroundings};

/// For `--help`.
const HELP: &str = "\
Exit codes:
  0  the daemon answered
  1  it did not, or refused
  2  the command line is wrong, or the address is";

/// For `--help` of what compiles.
const COMPILE_HELP: &str = "\
Exit codes:
  0  everything is compiled, or was
  1  the daemon did not answer, or refused
  2  the command line is wrong, or the address or the graph file is
  6  something could not be compiled; what is said above";

/// For `--help`.
const WARM_HELP: &str = "\
Exit codes:
  0  everything is compiled, or was, and durable
  1  the daemon did not answer, or failed, or was told to end
  2  the command line is wrong, or the address is, or there is no graph file
  3  the interpreter of the daemon that was started cannot import torch, or not compile
  4  another daemon has the store
  6  a file could not be read or compiled; which is said above";

/// What a daemon can be asked.
#[derive(Debug, Subcommand)]
pub(crate) enum Ask {
    /// Say what a running daemon has done since it started, by model part, and what it has.
    #[command(after_help = HELP)]
    Status {
        #[command(flatten)]
        place: Place,
    },

    /// List what a running daemon has in its store.
    #[command(after_help = HELP)]
    Ls {
        #[command(flatten)]
        place: Place,
        /// Failures that are remembered instead: what is asked for again with the same key is answered with them.
        #[arg(long, conflicts_with = "manifests")]
        failures: bool,
        /// Programs that were completed instead.
        #[arg(long)]
        manifests: bool,
    },

    /// Show one artifact with all that its handle says.
    #[command(after_help = HELP)]
    Show {
        #[command(flatten)]
        place: Place,
        /// Its key, as `piecewised ls` shows it, or the first digits of it.
        key: String,
    },

    /// Say what of a key differs from the nearest other one in a running daemon's store: why a graph file would be compiled, or why a key in the store was
    /// not another.
    #[command(after_help = HELP)]
    Explain {
        #[command(flatten)]
        place: Place,
        /// A graph file, as `piecewised.save_graph` writes it, or a key in the store, or the first digits of it.
        #[arg(value_name = "FILE|KEY")]
        about: String,
        #[command(flatten)]
        changes: Changes,
        /// Compare with this key, and not with the nearest one.
        #[arg(long, value_name = "KEY")]
        against: Option<String>,
    },

    /// Have a running daemon compile a graph file. What is in the store is not compiled again.
    #[command(after_help = COMPILE_HELP)]
    Compile {
        #[command(flatten)]
        place: Place,
        /// The file, as `piecewised.save_graph` writes it.
        file: PathBuf,
        #[command(flatten)]
        changes: Changes,
    },

    /// Have all graph files of a folder compiled ahead of time: by a running daemon, or with --store-dir by one that is started for it.
    #[command(after_help = WARM_HELP)]
    Warm(Box<WarmArguments>),

    /// List the compiles that run and that wait.
    #[command(after_help = HELP)]
    Jobs {
        #[command(flatten)]
        place: Place,
        /// Go on, and write them again whenever something changes, until the daemon ends. With --json one line for each change.
        #[arg(long)]
        watch: bool,
    },

    /// Remove artifacts from a running daemon's store, or with --manifest a program's manifest; what is asked for again is compiled again.
    #[command(after_help = HELP)]
    Evict {
        #[command(flatten)]
        place: Place,
        /// Keys, as `piecewised ls` shows them, or the first digits of them.
        #[arg(required_unless_present = "manifest")]
        keys: Vec<String>,
        /// The manifest of this program; its artifacts may be evicted from then on.
        #[arg(long, value_name = "PROGRAM", conflicts_with = "keys")]
        manifest: Option<piecewised_graph::ProgramName>,
    },

    /// Have what is stored under keys stay in a running daemon's store, whatever it evicts.
    #[command(after_help = HELP)]
    Pin {
        #[command(flatten)]
        place: Place,
        /// Keys, as `piecewised ls` shows them, or the first digits of them.
        #[arg(required = true)]
        keys: Vec<String>,
    },

    /// Take pins back, so that what is stored under the keys may be evicted.
    #[command(after_help = HELP)]
    Unpin {
        #[command(flatten)]
        place: Place,
        /// Keys, as `piecewised ls` shows them, or the first digits of them; whole ones also where nothing is stored under them now.
        #[arg(required = true)]
        keys: Vec<String>,
    },

    /// Have a running daemon forget failures that it remembers, so that what failed is tried again.
    #[command(after_help = HELP)]
    ClearFailures {
        #[command(flatten)]
        place: Place,
        /// Keys, as `piecewised ls --failures` shows them, or the first digits of them [default: all].
        keys: Vec<String>,
    },

    /// Have a running daemon drain and end, as SIGTERM does: no new compiles, running ones get their time.
    #[command(after_help = HELP)]
    Drain {
        #[command(flatten)]
        place: Place,
    },
}

/// Which daemon, and how its answer is written.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// Where the daemon listens, as unix:/path, https://HOST:PORT or http://127.0.0.1:PORT [default: $PIECEWISED_ENDPOINT, else where `piecewised serve` listens
    /// by default].
    #[arg(long, value_name = "ADDRESS")]
    endpoint: Option<String>,
    /// Who signs the daemon's certificate, for https: a PEM file [default: $PIECEWISED_CA].
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The certificate to show the daemon: a PEM file [default: $PIECEWISED_CERT].
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its private key: a PEM file [default: $PIECEWISED_KEY].
    #[arg(long = "key", value_name = "FILE")]
    cert_key: Option<PathBuf>,
    /// The token to show the daemon: a file with nothing else in it [default: $PIECEWISED_TOKEN].
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// Write JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Asks a daemon and writes what it says.
///
/// # Errors
/// Whatever ends it; [`Exit::of`] knows which exit code that means.
pub(crate) async fn run(ask: Ask, surroundings: &Surroundings) -> anyhow::Result<Exit> {
    match ask {
        Ask::Status { place } => status::run(&place, surroundings).await?,
        Ask::Ls { place, failures: true, .. } => list::failures(&place, surroundings).await?,
        Ask::Ls { place, manifests: true, .. } => list::manifests(&place, surroundings).await?,
        Ask::Ls { place, .. } => list::artifacts(&place, surroundings).await?,
        Ask::Show { place, key } => show::run(&place, surroundings, &key).await?,
        Ask::Explain { place, about, changes, against } => {
            explain::run(&place, surroundings, &about, &changes, against.as_deref()).await?;
        }
        Ask::Compile { place, file, changes } => return compile::run(&place, surroundings, &file, &changes).await,
        Ask::Warm(arguments) => return warm::run(&arguments, surroundings).await,
        Ask::Jobs { place, watch: false } => jobs::list(&place, surroundings).await?,
        Ask::Jobs { place, watch: true } => jobs::watch(&place, surroundings).await?,
        Ask::Evict { place, manifest: Some(program), .. } => {
            change::remove_manifest(&place, surroundings, &program).await?;
        }
        Ask::Evict { place, keys, .. } => change::evict(&place, surroundings, &keys).await?,
        Ask::Pin { place, keys } => change::pin(&place, surroundings, &keys).await?,
        Ask::Unpin { place, keys } => change::unpin(&place, surroundings, &keys).await?,
        Ask::ClearFailures { place, keys } => change::clear_failures(&place, surroundings, &keys).await?,
        Ask::Drain { place } => change::drain(&place, surroundings).await?,
    }
    Ok(Exit::Success)
}

impl Place {
    async fn connect(&self, surroundings: &Surroundings) -> anyhow::Result<Client> {
        let variable = |name: &str| surroundings.variable(name)?.to_str().map(ToOwned::to_owned);
        let endpoint = Endpoint::resolve(self.endpoint.as_deref(), variable, surroundings.uid)?;
        let Self { ca, cert, cert_key: key, token, .. } = self.clone();
        let credentials = Credentials { ca, cert, key, token }.resolve(variable);
        Ok(Client::connect(endpoint, ClientOptions { credentials, ..ClientOptions::default() }).await?)
    }

    /// Writes an answer: as JSON, or as `say` has it.
    fn write<T: Serialize>(
        &self,
        answer: &T,
        say: impl FnOnce(&mut dyn Write, &T) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        let written = if self.json {
            let text = serde_json::to_string(answer).context("the answer has no JSON form")?;
            writeln!(out, "{text}")
        } else {
            say(&mut out, answer)
        };
        written.and_then(|()| out.flush()).context("cannot write the result to stdout")
    }
}

/// Columns under their names, without lines: so that they can be cut and grepped.
fn table<const N: usize>(names: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(names);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Writes a table without the blanks at the ends of its lines.
fn write_table(out: &mut dyn Write, table: &Table) -> io::Result<()> {
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))
}

/// So many seconds, for people.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 48.0 * 3600.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.0} d", s / 86400.0),
    }
}

/// How long ago a moment was, for people.
fn ago(unix_ms: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    duration((now.as_secs_f64() - unix_ms as f64 / 1e3).max(0.0))
}

/// A range as in the plan: "[2, 16]", "4", or "any size".
fn range(range: Option<piecewised_plan::Range>) -> String {
    match range {
        None => "any".to_owned(),
        Some(range) if range.start() == range.end() => range.start().to_string(),
        Some(range) => format!("[{}, {}]", range.start(), range.end()),
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

/// Text from outside in one line: what could move a terminal's cursor is written as an escape.
fn one_line(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}
