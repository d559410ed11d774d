//! `piecewised status`: what a running daemon has done, for people and for scripts.

use std::io::{self, Write};

use piecewised_client::{Activity, Confinement, JobTotals, NodeStatus};

use super::{Place, duration, megabytes, one_line};
use crate::surroundings::Surroundings;

pub(super) async fn run(place: &Place, surroundings: &Surroundings) -> anyhow::Result<()> {
    let client = place.connect(surroundings).await?;
    let address = client.endpoint().to_string();
    place.write(&client.status().await?, |out, status| say(out, &address, status))
}

fn say(out: &mut dyn Write, address: &str, status: &NodeStatus) -> io::Result<()> {
    let NodeStatus { version, uptime_s, n_running, n_queued, store, .. } = status;
    let ready = if status.ready { "ready" } else { "not ready" };
    writeln!(
        out,
        "piecewised {version} at {address}, up {}, {ready}; {n_running} compiles run, {n_queued} wait",
        duration(*uptime_s)
    )?;
    if !status.ready {
        writeln!(out, "not ready to compile: {}", one_line(&status.not_ready_reason))?;
    }
    if let Some(key) = &status.public_key {
        writeln!(out, "it signs with {key}")?;
    }
    if let Some(confinement) = &status.confinement {
        say_confinement(out, confinement)?;
    }
    let state = match (store.is_full, store.is_failing) {
        (true, _) => "; the disk is full",
        (_, true) => "; the disk fails",
        _ => "",
    };
    let budget = store.max_bytes.map_or_else(String::new, |max_bytes| format!(" of {}", megabytes(max_bytes)));
    writeln!(
        out,
        "store: {} artifacts of {} keys, {}{budget} on the disk, of which {} are pinned; {} evicted so far{state}",
        store.n_artifacts,
        store.n_keys,
        megabytes(store.disk_bytes),
        megabytes(store.pinned_bytes),
        store.n_evicted
    )?;
    let n_lookups = store.n_hits + store.n_misses;
    if n_lookups > 0 {
        let percent = store.n_hits as f64 * 100.0 / n_lookups as f64;
        writeln!(out, "lookups: {n_lookups} in the store's life, {percent:.0} % of them found something")?;
    }
    if store.n_held > 0 {
        writeln!(out, "in memory only: {} artifacts, {}", store.n_held, megabytes(store.held_bytes))?;
    }
    if store.n_failures > 0 {
        writeln!(out, "failures remembered: {}; `piecewised ls --failures` lists them", store.n_failures)?;
    }
    let JobTotals { n_compiled, n_failed, n_retries, compile_s } = &status.jobs;
    let failed: Vec<String> = n_failed.iter().map(|(reason, n)| format!(", {n} {}", one_line(reason))).collect();
    writeln!(
        out,
        "jobs since the start: {n_compiled} compiled in {}{}; {n_retries} further tries",
        duration(*compile_s),
        failed.concat()
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

fn say_confinement(out: &mut dyn Write, Confinement { in_force, missing }: &Confinement) -> io::Result<()> {
    if in_force.is_empty() && missing.is_empty() {
        return writeln!(out, "executors are not confined");
    }
    let listed = |names: &mut dyn Iterator<Item = String>| match names.collect::<Vec<_>>() {
        names if names.is_empty() => "nothing".to_owned(),
        names => names.join(", "),
    };
    write!(out, "executors are confined: {}", listed(&mut in_force.iter().map(|name| one_line(name))))?;
    for it in missing {
        write!(out, "; not {}: {}", one_line(&it.measure), one_line(&it.reason))?;
    }
    writeln!(out)
}

fn say_activity(out: &mut dyn Write, name: &str, width: usize, activity: &Activity) -> io::Result<()> {
    let Activity { n_pieces, n_keys, n_compiled, n_joined, n_from_store, n_failed, compile_s, saved_s } = activity;
    writeln!(
        out,
        "{name:width$} {n_pieces:>8} {n_keys:>8} {n_compiled:>8} {n_joined:>8} {n_from_store:>10} {n_failed:>8} {compile_s:>10.1} {saved_s:>10.1}"
    )
}
