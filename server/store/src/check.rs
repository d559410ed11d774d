//! Looking at a store that nobody has open: every file, record and manifest, byte by byte.
//!
//! Looking changes nothing: the index is opened from a copy. A repair is what the store does by itself, done for everything
//! at once: it is opened with every file matched against the index, every artifact and handle is read, so that what does not
//! verify is dropped, and manifests that lack an artifact are removed. Then it is looked at again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::Path,
};

use piecewised_graph::{Digest, Manifest, ProgramName};
use serde::Serialize;

use crate::{
    Store, StoreConfig, StoreError,
    blob::Tail,
    blobs::{Blobs, Check},
    index::Scan,
    ladder,
    layout::{FORMAT_VERSION, Format, Layout},
    lock::Lock,
    manifests,
};

/// What is wrong with a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What kind it is.
    pub kind: ProblemKind,
    /// Where: a file below the store's folder, a key, a program.
    pub what: String,
    /// What is wrong with it, for people.
    pub detail: String,
}

/// What can be wrong with a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// The format file is damaged or missing, or says another version.
    Format,
    /// A folder cannot be read.
    Folder,
    /// The index does not open.
    Index,
    /// A record of the index is damaged, or names an artifact that is not there as it says.
    Record,
    /// A remembered failure is damaged.
    Failure,
    /// An artifact's file does not verify.
    Artifact,
    /// Handles in an artifact's file are damaged. The index has them, or they are lost.
    Frames,
    /// A handle in an artifact's file that the index does not have: as after a crash. The next start takes it over.
    Unindexed,
    /// An artifact that nothing names: as after a crash. The next start deletes it.
    Orphan,
    /// A manifest's file does not verify.
    Manifest,
    /// A manifest names artifacts that are not there.
    Incomplete,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Artifacts that verify.
    pub n_artifacts: usize,
    /// Sum of their sizes.
    pub artifact_bytes: u64,
    /// Handles in the index.
    pub n_handles: usize,
    /// Manifests that verify.
    pub n_manifests: usize,
    /// Remembered failures.
    pub n_failures: usize,
    /// Problems there were and that a repair did away with.
    pub n_repaired: usize,
    /// What is wrong, after the repair if there was one.
    pub problems: Vec<Problem>,
}

impl CheckReport {
    fn add(&mut self, kind: ProblemKind, what: impl ToString, detail: impl Into<String>) {
        self.problems.push(Problem { kind, what: what.to_string(), detail: detail.into() });
    }
}

/// Looks at all of a store, and repairs it if that is wanted. The store must not be open; it takes as long as it takes to
/// read all of it.
///
/// # Errors
/// [`StoreError::Locked`] where a process has it open; [`StoreError::Absent`] and [`StoreError::NotAStore`] where there is
/// none; [`StoreError::Io`], and whatever [`Store::open`] says in a repair.
pub async fn check(config: &StoreConfig, repair: bool) -> Result<CheckReport, StoreError> {
    let config = StoreConfig { create: false, may_evict: false, ..config.clone() };
    let before = look_apart(&config, repair).await?;
    if !repair || before.problems.is_empty() {
        return Ok(before);
    }
    let (store, _) = Store::open(config.clone()).await?;
    for key in store.keys().await? {
        store.get(&key).await?;
    }
    for digest in store.artifacts().await? {
        store.open_artifact(&digest).await?;
    }
    for Problem { what, .. } in before.problems.iter().filter(|problem| problem.kind == ProblemKind::Incomplete) {
        if let Ok(program) = what.parse::<ProgramName>() {
            store.remove_manifest(&program).await?;
        }
    }
    store.close().await?;
    let mut after = look_apart(&config, false).await?;
    // What was damaged may have left a manifest without an artifact only now.
    let incomplete: Vec<_> = after.problems.iter().filter(|problem| problem.kind == ProblemKind::Incomplete).collect();
    if !incomplete.is_empty() {
        let (store, _) = Store::open(config.clone()).await?;
        for program in incomplete.iter().filter_map(|problem| problem.what.parse::<ProgramName>().ok()) {
            store.remove_manifest(&program).await?;
        }
        store.close().await?;
        after = look_apart(&config, false).await?;
    }
    after.n_repaired = before.problems.len().saturating_sub(after.problems.len());
    Ok(after)
}

async fn look_apart(config: &StoreConfig, forget_clean: bool) -> Result<CheckReport, StoreError> {
    let config = config.clone();
    let work = move || {
        let layout = Layout::new(&config.path);
        layout.claim_root(false)?;
        let _lock = Lock::take(&layout)?;
        let report = look(&layout, &config)?;
        if forget_clean && !report.problems.is_empty() {
            layout.take_clean()?;
        }
        Ok(report)
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::Task { reason: error.to_string() })?
}

/// What each artifact's file says of itself; `None`: it does not verify.
type Files = BTreeMap<Digest, Option<(u64, Tail)>>;

fn look(layout: &Layout, config: &StoreConfig) -> Result<CheckReport, StoreError> {
    let mut report = CheckReport::default();
    match layout.read_format()? {
        Format::Version(FORMAT_VERSION) => {}
        Format::Version(found) => {
            let detail = format!("version {found}, this piecewised writes {FORMAT_VERSION}: a start sets it aside");
            report.add(ProblemKind::Format, "FORMAT", detail);
            return Ok(report);
        }
        Format::Absent | Format::Damaged => report.add(ProblemKind::Format, "FORMAT", "damaged or missing"),
    }
    let programs = look_at_manifests(layout, &mut report)?;
    let files = look_at_files(layout, &mut report);
    let scan = look_at_index(layout, config, &mut report)?;
    match_up(&files, scan.as_ref(), &programs, &mut report);
    report.problems.sort_by(|a, b| (a.kind, &a.what).cmp(&(b.kind, &b.what)));
    Ok(report)
}

fn look_at_manifests(
    layout: &Layout,
    report: &mut CheckReport,
) -> Result<BTreeMap<ProgramName, BTreeSet<Digest>>, StoreError> {
    let mut programs = BTreeMap::new();
    for path in manifests::files(layout)? {
        let what = path.strip_prefix(layout.root()).unwrap_or(&path).display().to_string();
        let manifest = fs::read(&path).map_err(|error| error.to_string()).and_then(|bytes| {
            let json = manifests::json_of(&bytes).ok_or("it does not have its digest")?;
            serde_json::from_slice::<Manifest>(json).map_err(|error| error.to_string())
        });
        match manifest {
            Ok(manifest) if path.ends_with(manifests::file_name(&manifest.program)) => {
                report.n_manifests += 1;
                programs.insert(manifest.program.clone(), manifests::artifacts_of(&manifest));
            }
            Ok(manifest) => {
                report.add(ProblemKind::Manifest, what, format!("it is the manifest of {}", manifest.program));
            }
            Err(why) => report.add(ProblemKind::Manifest, what, why),
        }
    }
    Ok(programs)
}

fn look_at_files(layout: &Layout, report: &mut CheckReport) -> Files {
    let blobs = Blobs::new(layout.clone());
    let mut files = Files::new();
    let digests = blobs.list().unwrap_or_else(|error| {
        report.add(ProblemKind::Folder, "artifacts", error.to_string());
        Vec::new()
    });
    for digest in digests {
        let path = layout.artifact(&digest);
        let what = path.strip_prefix(layout.root()).unwrap_or(&path).display().to_string();
        let described = blobs.describe(&digest).and_then(|described| {
            let Some((size_bytes, tail)) = described else { return Ok(Err("its header is damaged")) };
            Ok(match blobs.check(&digest, size_bytes)? {
                Check::Whole(_) => Ok((size_bytes, tail)),
                Check::Damaged(_) => Err("its bytes do not have their digest"),
            })
        });
        let described = match described {
            Ok(Ok((size_bytes, tail))) => {
                report.n_artifacts += 1;
                report.artifact_bytes += size_bytes;
                if !tail.is_clean {
                    report.add(ProblemKind::Frames, &what, "some of its handles are damaged, or a write was cut off");
                }
                Some((size_bytes, tail))
            }
            Ok(Err(why)) => {
                report.add(ProblemKind::Artifact, &what, why);
                None
            }
            Err(error) => {
                report.add(ProblemKind::Artifact, &what, error.to_string());
                None
            }
        };
        files.insert(digest, described);
    }
    files
}

/// Reads a copy of the index, since opening one changes it.
fn look_at_index(layout: &Layout, config: &StoreConfig, report: &mut CheckReport) -> Result<Option<Scan>, StoreError> {
    if !layout.index().is_dir() {
        report.add(ProblemKind::Index, "db", "there is none; a start builds it from the artifacts");
        return Ok(None);
    }
    let copy = tempfile::tempdir().map_err(StoreError::io("create", std::env::temp_dir()))?;
    copy_files(&layout.index(), copy.path()).map_err(StoreError::io("copy", layout.index()))?;
    let scan = match ladder::attempt(copy.path().to_owned(), config) {
        Ok((_, scan)) => scan,
        Err(StoreError::Index { reason }) => {
            report.add(ProblemKind::Index, "db", format!("it does not open, a start builds it anew: {reason}"));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    report.n_handles = scan.entries.len();
    for key in &scan.damaged {
        report.add(ProblemKind::Record, hex(key), "it does not verify");
    }
    for (key, remembered) in &scan.failures {
        report.n_failures += 1;
        if remembered.is_none() {
            report.add(ProblemKind::Failure, hex(key), "it does not verify");
        }
    }
    Ok(Some(scan))
}

fn match_up(
    files: &Files,
    scan: Option<&Scan>,
    programs: &BTreeMap<ProgramName, BTreeSet<Digest>>,
    report: &mut CheckReport,
) {
    let mut named: BTreeSet<Digest> = programs.values().flatten().copied().collect();
    if let Some(scan) = scan {
        let mut latest = HashMap::new();
        for entry in &scan.entries {
            named.insert(entry.digest);
            latest.insert(entry.key, entry.stamp);
            let detail = match files.get(&entry.digest) {
                None => format!("its artifact {} is not there", entry.digest),
                // Reported as the artifact's own problem.
                Some(None) => continue,
                Some(Some((size_bytes, _))) if *size_bytes != entry.size_bytes => {
                    format!("its artifact {} has {size_bytes} bytes, not {}", entry.digest, entry.size_bytes)
                }
                Some(Some((_, tail))) if tail.is_clean && !tail.handles.contains_key(&entry.key) => {
                    format!("its artifact {} says that it was removed", entry.digest)
                }
                Some(Some(_)) => continue,
            };
            report.add(ProblemKind::Record, entry.key, detail);
        }
        for (digest, described) in files {
            let Some((_, tail)) = described else { continue };
            for (key, frame) in &tail.handles {
                named.insert(*digest);
                if latest.get(key).is_none_or(|stamp| *stamp < frame.stamp) {
                    report.add(ProblemKind::Unindexed, key, format!("it is in the file of {digest} only"));
                }
            }
        }
        for digest in files.iter().filter(|(digest, found)| found.is_some() && !named.contains(digest)) {
            report.add(ProblemKind::Orphan, digest.0, "nothing names it");
        }
    }
    for (program, artifacts) in programs {
        let missing = artifacts.iter().filter(|digest| !matches!(files.get(digest), Some(Some(_)))).count();
        if missing > 0 {
            let detail = format!("{missing} of its {} artifacts are not there or damaged", artifacts.len());
            report.add(ProblemKind::Incomplete, program, detail);
        }
    }
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy_files(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
