//! `piecewised ls`: artifacts, failures, manifests.

use piecewised_client::{ClientError, ManifestSummary, RememberedFailure, StoredArtifact, StoredWhat};

use super::{Place, ago, megabytes, one_line, range, table, write_table};
use crate::surroundings::Surroundings;

pub(super) async fn artifacts(place: &Place, surroundings: &Surroundings) -> anyhow::Result<()> {
    let admin = place.connect(surroundings).await?.admin();
    let all: Vec<StoredArtifact> = every(async |token| admin.artifacts(token).await).await?;
    place.write(&all, |out, all| {
        let mut rows =
            table(["KEY", "WHAT", "RANGE", "TUNING", "SIZE", "COMPILE", "VERIFIED", "MADE", "USED", "PINNED"]);
        for artifact in all {
            let [what, range, tuning, compile, verified] = match &artifact.what {
                StoredWhat::Compiled(it) => {
                    let format = format!("{:?}", it.format).to_lowercase();
                    let tuning = format!("{:?}", it.tuning).to_lowercase();
                    let what = format!("{format} {}", one_line(&it.device));
                    [what, range(it.range), tuning, format!("{:.1} s", it.compile_s), it.verified.to_owned()]
                }
                StoredWhat::Snapshot { frontend, .. } => {
                    [format!("snapshot of {frontend}"), "-".into(), "-".into(), "-".into(), "-".into()]
                }
            };
            let (made, used) = (ago(artifact.created_unix_ms), ago(artifact.used_unix_ms));
            let pinned = match (artifact.is_pinned_by_operator, artifact.is_pinned) {
                (true, true) => "pin, manifest",
                (true, false) => "pin",
                (false, true) => "manifest",
                (false, false) => "no",
            };
            let key = artifact.key.short();
            rows.add_row([
                key,
                what,
                range,
                tuning,
                megabytes(artifact.size_bytes),
                compile,
                verified,
                made,
                used,
                pinned.to_owned(),
            ]);
        }
        write_table(out, &rows)
    })
}

pub(super) async fn failures(place: &Place, surroundings: &Surroundings) -> anyhow::Result<()> {
    let admin = place.connect(surroundings).await?.admin();
    let all: Vec<RememberedFailure> = every(async |token| admin.failures(token).await).await?;
    place.write(&all, |out, all| {
        let mut rows = table(["KEY", "REASON", "FAILED", "MESSAGE"]);
        for RememberedFailure { key, reason, message, failed_unix_ms } in all {
            let first = one_line(message.lines().next().unwrap_or_default());
            rows.add_row([key.short(), one_line(reason), ago(*failed_unix_ms), first]);
        }
        write_table(out, &rows)
    })
}

pub(super) async fn manifests(place: &Place, surroundings: &Surroundings) -> anyhow::Result<()> {
    let all = place.connect(surroundings).await?.admin().manifests().await?;
    place.write(&all, |out, all| {
        let mut rows = table(["PROGRAM", "PIECES", "ARTIFACTS", "COMPLETED"]);
        for ManifestSummary { program, n_pieces, n_artifacts, created_unix_ms } in all {
            rows.add_row([program.clone(), n_pieces.to_string(), n_artifacts.to_string(), ago(*created_unix_ms)]);
        }
        write_table(out, &rows)
    })
}

/// What all pages have.
pub(super) async fn every<T>(
    page: impl AsyncFn(Option<String>) -> Result<(Vec<T>, Option<String>), ClientError>,
) -> Result<Vec<T>, ClientError> {
    let (mut all, mut token) = page(None).await?;
    while token.is_some() {
        let (more, next) = page(token).await?;
        all.extend(more);
        token = next;
    }
    Ok(all)
}
