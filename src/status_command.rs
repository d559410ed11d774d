//! `piecewised status`: what a running daemon has done, for people and for scripts.

use std::io::{self, Write};

use anyhow::Context;
use clap::Args;
use piecewised_client::{Activity, Client, ClientOptions, Endpoint, NodeStatus};

use crate::{exit::Exit, surroundings::Surroundings};

/// For `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0  the daemon answered
  1  it did not
  2  the command line is wrong, or the address is";

#[derive(Debug, Clone, Args)]
pub(crate) struct StatusArguments {
    /// Where the daemon listens, as unix:/path or http://127.0.0.1:PORT [default: $PIECEWISED_ENDPOINT, else where `piecewised serve` listens
    /// by default].
    #[arg(long, value_name = "ADDRESS")]
    endpoint: Option<String>,
    /// Write one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Asks a daemon and writes what it says.
///
/// # Errors
/// Whatever ends it; [`Exit::of`] knows which exit code that means.
pub(crate) async fn run(arguments: StatusArguments, surroundings: &Surroundings) -> anyhow::Result<Exit> {
    let variable = |name: &str| surroundings.variable(name)?.to_str().map(ToOwned::to_owned);
    let endpoint = Endpoint::resolve(arguments.endpoint.as_deref(), variable, surroundings.uid)?;
    let address = endpoint.to_string();
    let client = Client::connect(endpoint, ClientOptions::default()).await?;
    let status = client.status().await?;
    let mut out = io::stdout().lock();
    let written = if arguments.json {
        let text = serde_json::to_string(&status).context("the status has no JSON form")?;
        writeln!(out, "{text}")
    } else {
        say(&mut out, &address, &status)
    };
    written.and_then(|()| out.flush()).context("cannot write the result to stdout")?;
    Ok(Exit::Success)
}

fn say(out: &mut dyn Write, address: &str, status: &NodeStatus) -> io::Result<()> {
    let NodeStatus { version, uptime_s, n_running, n_queued, store, .. } = status;
    let ready = if status.ready { "ready".to_owned() } else { format!("not ready: {}", status.not_ready_reason) };
    writeln!(
        out,
        "piecewised {version} at {address}, up {}, {ready}; {n_running} compiles run, {n_queued} wait",
        duration(*uptime_s)
    )?;
    let state = match (store.is_full, store.is_failing) {
        (true, _) => "; the disk is full",
        (_, true) => "; the disk fails",
        _ => "",
    };
    writeln!(
        out,
        "store: {} artifacts, {:.1} MB, {} evicted so far{state}",
        store.n_artifacts,
        store.artifact_bytes as f64 / 1e6,
        store.n_evicted
    )?;
    if status.parts.is_empty() {
        return writeln!(out, "nothing was asked for since it started");
    }
    let name = |name: &str| if name.is_empty() { "(no label)".to_owned() } else { name.to_owned() };
    let width = status.parts.iter().map(|part| name(&part.name).chars().count()).max().unwrap_or(0).max(10);
    writeln!(
        out,
        "\n{:width$} {:>8} {:>8} {:>8} {:>8} {:>10} {:>8} {:>10} {:>10}",
        "part", "pieces", "distinct", "compiled", "joined", "from store", "failed", "compile s", "saved s"
    )?;
    for part in &status.parts {
        say_activity(out, &name(&part.name), width, &part.activity)?;
    }
    say_activity(out, "all", width, &status.total)?;
    for piece in status.parts.iter().flat_map(|part| &part.differences) {
        let found = &piece.difference;
        let node = if found.node.is_empty() { String::new() } else { format!("node {}: ", found.node) };
        writeln!(out, "{} is not what {} sent as the same: {node}{}", piece.label, found.peer, found.what)?;
    }
    Ok(())
}

fn say_activity(out: &mut dyn Write, name: &str, width: usize, activity: &Activity) -> io::Result<()> {
    let Activity { n_pieces, n_keys, n_compiled, n_joined, n_from_store, n_failed, compile_s, saved_s } = activity;
    writeln!(
        out,
        "{name:width$} {n_pieces:>8} {n_keys:>8} {n_compiled:>8} {n_joined:>8} {n_from_store:>10} {n_failed:>8} {compile_s:>10.1} {saved_s:>10.1}"
    )
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
