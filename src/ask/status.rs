//! `piecewised status`: what a running daemon has done, for people and for scripts.

use std::io::{self, Write};

use piecewised_client::{Activity, NodeStatus};

use super::{Place, duration};
use crate::surroundings::Surroundings;

pub(super) async fn run(place: &Place, surroundings: &Surroundings) -> anyhow::Result<()> {
    let client = place.connect(surroundings).await?;
    let address = client.endpoint().to_string();
    place.write(&client.status().await?, |out, status| say(out, &address, status))
}

fn say(out: &mut dyn Write, address: &str, status: &NodeStatus) -> io::Result<()> {
    let NodeStatus { version, uptime_s, n_running, n_queued, store, .. } = status;
    let ready = if status.ready { "ready".to_owned() } else { format!("not ready: {}", status.not_ready_reason) };
    writeln!(
        out,
        "piecewised {version} at {address}, up {}, {ready}; {n_running} compiles run, {n_queued} wait",
        duration(*uptime_s)
    )?;
    if let Some(key) = &status.public_key {
        writeln!(out, "it signs with {key}")?;
    }
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
