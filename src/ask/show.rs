//! `piecewised show`: one artifact.

use std::io::{self, Write};

use piecewised_client::{StoredArtifact, StoredWhat};
use piecewised_graph::{Candidate, CheckedSize, Handle, Latency, Segment};
use serde::Serialize;

use super::{Place, ago, megabytes, one_line, range};
use crate::surroundings::Surroundings;

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    artifact: StoredArtifact,
    handle: Option<Handle>,
}

pub(super) async fn run(place: &Place, surroundings: &Surroundings, key: &str) -> anyhow::Result<()> {
    let (artifact, handle) = place.connect(surroundings).await?.admin().artifact(key).await?;
    place.write(&Shown { artifact, handle }, say)
}

fn say(out: &mut dyn Write, shown: &Shown) -> io::Result<()> {
    let Shown { artifact, handle } = shown;
    writeln!(out, "key        {}", artifact.key)?;
    writeln!(out, "artifact   {}, {}", artifact.digest, megabytes(artifact.size_bytes))?;
    let named = if artifact.is_pinned { "; a manifest names it" } else { "" };
    let pinned = if artifact.is_pinned_by_operator { "; its key is pinned" } else { "" };
    let (made, used) = (ago(artifact.created_unix_ms), ago(artifact.used_unix_ms));
    writeln!(out, "made       {made} ago, used {used} ago{named}{pinned}")?;
    if let StoredWhat::Snapshot { frontend, name, toolchain_fingerprint } = &artifact.what {
        writeln!(out, "snapshot   {} of {} for toolchain {toolchain_fingerprint}", one_line(name), one_line(frontend))?;
    }
    let Some(handle) = handle else { return Ok(()) };
    let toolchain = &handle.toolchain;
    writeln!(out, "graph      {}", handle.graph_digest)?;
    writeln!(
        out,
        "range      {}, hint {}",
        range(handle.range),
        handle.hint.map_or("none".into(), |hint| hint.to_string())
    )?;
    writeln!(out, "format     {}", format!("{:?}", handle.format).to_lowercase())?;
    writeln!(
        out,
        "device     {} {} ({})",
        handle.device.r#type,
        one_line(&handle.device.name),
        one_line(&handle.device.capability)
    )?;
    writeln!(
        out,
        "toolchain  Python {}, torch {}, triton {}",
        toolchain.python_version,
        toolchain.torch_version,
        if toolchain.triton_version.is_empty() { "none" } else { &toolchain.triton_version }
    )?;
    for Segment { range: of, entry, guards } in &handle.segments {
        let guards = if guards.is_empty() { String::new() } else { format!(", under {} guards", guards.len()) };
        writeln!(out, "segment    {} runs {entry}{guards}", range(*of))?;
    }
    let phases: Vec<String> =
        handle.timings.phases.iter().map(|it| format!("{} {:.2} s", one_line(&it.phase), it.seconds)).collect();
    writeln!(out, "compiled   in {:.2} s: {}", handle.timings.total_s, phases.join(", "))?;
    let verification = &handle.verification;
    writeln!(
        out,
        "verified   {:?} by {:?} in {:.2} s",
        verification.outcome, verification.checker, verification.seconds
    )?;
    for CheckedSize { size, entry, max_absolute_error, max_relative_error, tolerance } in &verification.sizes {
        let size = size.map_or("any".into(), |size| size.to_string());
        writeln!(
            out,
            "           size {size} ({entry}): largest error {max_absolute_error:.3e}, relative {max_relative_error:.3e} of at most {tolerance:.1e}"
        )?;
    }
    if !verification.note.is_empty() {
        writeln!(out, "           {}", one_line(&verification.note))?;
    }
    for Latency { size, median_us } in &handle.latencies {
        writeln!(out, "latency    size {}: {median_us:.1} us", size.map_or("any".into(), |size| size.to_string()))?;
    }
    for Candidate { name, hint, compile_s, entries, failure, .. } in &handle.tuning.candidates {
        let hint = hint.map_or("none".into(), |hint| hint.to_string());
        let became = match (failure.is_empty(), entries.is_empty()) {
            (false, _) => format!("failed: {}", one_line(failure)),
            (true, true) => "not taken".to_owned(),
            (true, false) => format!("taken as {}", entries.join(", ")),
        };
        writeln!(out, "candidate  {} for {hint}, compiled in {compile_s:.1} s: {became}", one_line(name))?;
    }
    Ok(())
}
