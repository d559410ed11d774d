//! `piecewised evict`, `pin`, `unpin`, `clear-failures` and `drain`: what changes a running daemon.

use std::collections::BTreeSet;

use anyhow::bail;
use piecewised_client::{Admin, RememberedFailure};
use piecewised_graph::{Digest, ProgramName};
use serde_json::json;

use super::{Place, list::every};
use crate::surroundings::Surroundings;

pub(super) async fn evict(place: &Place, surroundings: &Surroundings, keys: &[String]) -> anyhow::Result<()> {
    let admin = place.connect(surroundings).await?.admin();
    let n_removed = admin.evict(&stored(&admin, keys).await?).await?;
    place.write(&json!({"n_removed": n_removed}), |out, _| writeln!(out, "removed {n_removed}"))
}

pub(super) async fn pin(place: &Place, surroundings: &Surroundings, keys: &[String]) -> anyhow::Result<()> {
    let admin = place.connect(surroundings).await?.admin();
    let n_pinned = admin.pin(&stored(&admin, keys).await?).await?;
    place.write(&json!({"n_pinned": n_pinned}), |out, _| writeln!(out, "pinned {n_pinned}"))
}

pub(super) async fn unpin(place: &Place, surroundings: &Surroundings, keys: &[String]) -> anyhow::Result<()> {
    let admin = place.connect(surroundings).await?.admin();
    // What is no more in the store can be pinned still.
    let whole: Option<Vec<Digest>> = keys.iter().map(|key| key.parse().ok()).collect();
    let keys = match whole {
        Some(keys) => keys,
        None => stored(&admin, keys).await?,
    };
    let n_unpinned = admin.unpin(&keys).await?;
    place.write(&json!({"n_unpinned": n_unpinned}), |out, _| writeln!(out, "unpinned {n_unpinned}"))
}

pub(super) async fn clear_failures(place: &Place, surroundings: &Surroundings, keys: &[String]) -> anyhow::Result<()> {
    let admin = place.connect(surroundings).await?.admin();
    let mut n_cleared = 0;
    if keys.is_empty() {
        n_cleared = admin.forget_failures(None).await?;
    } else {
        let failures = every(async |token| admin.failures(token).await).await?;
        let mut found = BTreeSet::new();
        for digits in keys {
            found.insert(failed(&failures, digits)?);
        }
        for key in found {
            n_cleared += admin.forget_failures(Some(&key)).await?;
        }
    }
    place.write(&json!({"n_cleared": n_cleared}), |out, _| writeln!(out, "cleared {n_cleared}"))
}

/// The keys that begin so in the store. All of them are looked up first: a key that is mistyped leaves everything as it is.
async fn stored(admin: &Admin, keys: &[String]) -> anyhow::Result<Vec<Digest>> {
    let mut found: Vec<Digest> = Vec::new();
    for key in keys {
        found.push(admin.artifact(key).await?.0.key);
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The one key of which a failure is remembered that begins so.
fn failed(failures: &[RememberedFailure], digits: &str) -> anyhow::Result<Digest> {
    let digits = digits.to_ascii_lowercase();
    let mut found = failures.iter().map(|failure| failure.key).filter(|key| key.to_string().starts_with(&digits));
    match (found.next(), found.next()) {
        (Some(key), None) => Ok(key),
        (Some(_), Some(_)) => bail!("failures of several keys begin with {digits:?}; give more digits"),
        _ => bail!(
            "no failure is remembered of a key that begins with {digits:?}; `piecewised ls --failures` lists them"
        ),
    }
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
