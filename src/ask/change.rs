//! `piecewised evict` and `piecewised drain`: what changes a running daemon.

use piecewised_graph::{Digest, ProgramName};
use serde_json::json;

use super::Place;
use crate::surroundings::Surroundings;

pub(super) async fn evict(place: &Place, surroundings: &Surroundings, keys: &[String]) -> anyhow::Result<()> {
    let admin = place.connect(surroundings).await?.admin();
    let mut found: Vec<Digest> = Vec::new();
    // All of them first: a key that is mistyped leaves everything as it is.
    for key in keys {
        found.push(admin.artifact(key).await?.0.key);
    }
    found.dedup();
    let n_removed = admin.evict(&found).await?;
    place.write(&json!({"n_removed": n_removed}), |out, _| writeln!(out, "removed {n_removed}"))
}

pub(super) async fn remove_manifest(
    place: &Place,
    surroundings: &Surroundings,
    program: &ProgramName,
) -> anyhow::Result<()> {
    place.connect(surroundings).await?.admin().remove_manifest(program).await?;
    place.write(&json!({"program": program}), |out, _| writeln!(out, "removed the manifest of {program}"))
}

pub(super) async fn drain(place: &Place, surroundings: &Surroundings) -> anyhow::Result<()> {
    let n_jobs = place.connect(surroundings).await?.admin().drain().await?;
    place.write(&json!({"n_jobs": n_jobs}), |out, _| writeln!(out, "it drains, with {n_jobs} jobs left, and then ends"))
}
