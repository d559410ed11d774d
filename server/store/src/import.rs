//! Taking an export in: each entry verified before it counts, what is there already skipped, and everything said.
//!
//! Artifacts are streamed into the store's own files and are durable like any other. A file that was cut short or damaged
//! gives what of it verifies, and the report says that it was not all. A manifest is taken only if all that it names is there
//! in the end; until then its artifacts are pinned.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use piecewised_graph::{Digest, Manifest};
use serde::Serialize;

use crate::{
    StoreError,
    archive::{self, Format, MAX_SUMS_BYTES, Name},
    blob::{Frame, MAX_HANDLE_BYTES},
    engine::{Engine, Op},
    manifests::{self, Found},
    record::{Record, Stored},
};

const MAX_FORMAT_BYTES: u64 = 4096;
/// The manifests of one import, which are in memory to the end of it.
const MAX_MANIFEST_BYTES: u64 = 256 << 20;
/// Problems that are told one by one.
const MAX_PROBLEMS: usize = 100;

/// What an import took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// Manifests taken.
    pub n_manifests: usize,
    /// Handles taken.
    pub n_handles: usize,
    /// Artifacts taken.
    pub n_artifacts: usize,
    /// Sum of their sizes.
    pub artifact_bytes: u64,
    /// Handles skipped because the store has their key.
    pub n_known_handles: usize,
    /// Manifests skipped because the store has one of their name.
    pub n_known_manifests: usize,
    /// What was not taken.
    pub n_problems: usize,
    /// The first hundred of them, for people.
    pub problems: Vec<String>,
}

impl ImportReport {
    /// Whether everything in the file is in the store now.
    pub fn is_complete(&self) -> bool {
        self.n_problems == 0
    }

    fn problem(&mut self, what: impl Into<String>) {
        self.n_problems += 1;
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(what.into());
        }
    }
}

/// An import under way.
#[derive(Default)]
struct Import {
    report: ImportReport,
    /// What the list names and was not seen yet.
    listed: HashMap<String, Digest>,
    manifests: Vec<Manifest>,
    manifest_bytes: u64,
    /// Pinned until the manifests are stored; each manifest's own.
    pinned: Vec<BTreeSet<Digest>>,
    /// Handles that wait for the artifact behind them.
    waiting: Vec<(Digest, Stored, Vec<u8>)>,
}

impl Engine {
    /// # Errors
    /// [`StoreError::Archive`] where nothing can be taken; those of the disk, which end it: what was taken stays.
    pub(crate) fn import(&self, path: &Path) -> Result<ImportReport, StoreError> {
        let file = File::open(path).map_err(StoreError::io("open", path))?;
        let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 20, file));
        let mut entries = archive.entries().map_err(StoreError::io("read", path))?;
        let mut import = Import { listed: read_list(&mut entries, path)?, ..Import::default() };
        let taken = self.take_all(&mut entries, &mut import);
        // Also where the disk ended it: what was only pinned by this import must not stay.
        for pinned in &import.pinned {
            self.unpin(pinned);
        }
        taken.map(|()| import.report)
    }

    fn take_all(&self, entries: &mut tar::Entries<'_, impl Read>, import: &mut Import) -> Result<(), StoreError> {
        for entry in entries {
            let mut entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    import.report.problem(format!("the file is damaged or was cut short: {error}"));
                    break;
                }
            };
            let text = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let Some((name, digest)) = Name::parse(&text).zip(import.listed.remove(&text)) else {
                import.report.problem(format!("{text:?} is not in the file's list"));
                continue;
            };
            match name {
                Name::Artifact(digest) => self.take_artifact(&mut entry, digest, import)?,
                Name::Handle(key) => match read_entry(&mut entry, MAX_HANDLE_BYTES as u64, &digest) {
                    Ok(json) => match Stored::parse(&key, &json) {
                        Some(stored) => import.waiting.push((key, stored, json)),
                        None => import.report.problem(format!("{text} is not the handle of its key")),
                    },
                    Err(why) => import.report.problem(format!("{text}: {why}")),
                },
                Name::Manifest(program) => {
                    let room = MAX_MANIFEST_BYTES - import.manifest_bytes;
                    match read_entry(&mut entry, room, &digest) {
                        Ok(json) => match serde_json::from_slice::<Manifest>(&json) {
                            Ok(manifest) if manifest.program == program => {
                                import.manifest_bytes += json.len() as u64;
                                let artifacts = manifests::artifacts_of(&manifest);
                                self.pin(&artifacts);
                                import.pinned.push(artifacts);
                                import.manifests.push(manifest);
                            }
                            _ => import.report.problem(format!("{text} is not the manifest of its program")),
                        },
                        Err(why) => import.report.problem(format!("{text}: {why}")),
                    }
                }
            }
        }
        let mut missing: Vec<_> = import.listed.keys().cloned().collect();
        missing.sort_unstable();
        missing.into_iter().for_each(|name| import.report.problem(format!("{name} is missing")));
        self.take_manifests(import)
    }

    fn take_artifact(&self, entry: &mut impl Read, digest: Digest, import: &mut Import) -> Result<(), StoreError> {
        let mut wanted = Vec::new();
        for (key, stored, json) in std::mem::take(&mut import.waiting) {
            if stored.content().0 != digest {
                import.report.problem(format!("the handle of {key} does not stand before its artifact"));
            } else if self.catalogue().key(&key).is_some() {
                import.report.n_known_handles += 1;
            } else {
                wanted.push((key, stored, json));
            }
        }
        let _lock = self.shared.lock(&digest);
        let known = self.catalogue().artifact(&digest).map(|artifact| artifact.size_bytes);
        let is_pinned = self.shared.programs().is_pinned(&digest);
        if wanted.is_empty() && (known.is_some() || !is_pinned) {
            return Ok(());
        }
        let frames: Vec<_> = wanted
            .iter()
            .map(|(key, _, json)| Frame { key: *key, stamp: self.shared.stamp(), json: Some(json.clone()) })
            .collect();
        let size_bytes = match known {
            Some(size_bytes) => {
                for frame in &frames {
                    if !self.shared.blobs.append(&digest, size_bytes, frame)? {
                        import.report.problem(format!("artifact {digest} in the store cannot take another handle"));
                        return Ok(());
                    }
                }
                size_bytes
            }
            None => match self.shared.blobs.receive(&digest, entry, &frames, self.shared.config.reserve_bytes)? {
                Ok(size_bytes) => {
                    self.catalogue().adopt(digest, size_bytes, self.shared.stamp());
                    import.report.n_artifacts += 1;
                    import.report.artifact_bytes += size_bytes;
                    size_bytes
                }
                Err(why) => {
                    import.report.problem(format!("artifacts/{digest}: {why}"));
                    return Ok(());
                }
            },
        };
        for ((key, stored, json), frame) in wanted.into_iter().zip(frames) {
            let stamp = frame.stamp;
            if stored.content() != (digest, size_bytes) {
                import.report.problem(format!("the handle of {key} is not of its artifact"));
                continue;
            }
            let record = Record::new(digest, size_bytes, stamp, &json).encode(&key);
            let n_bytes = record.len();
            self.submit(Op::Put { key, digest, size_bytes, stamp, record, held: false }, n_bytes)?;
            import.report.n_handles += 1;
        }
        let is_named = self.catalogue().artifact(&digest).is_some_and(|artifact| !artifact.keys.is_empty());
        if !is_named && !is_pinned {
            self.unlink(&digest)?;
        }
        Ok(())
    }

    fn take_manifests(&self, import: &mut Import) -> Result<(), StoreError> {
        for manifest in std::mem::take(&mut import.manifests) {
            let program = &manifest.program;
            if !matches!(manifests::read(&self.shared.layout, program)?, Found::Absent) {
                import.report.n_known_manifests += 1;
                continue;
            }
            let n_missing = {
                let catalogue = self.catalogue();
                let artifacts = manifests::artifacts_of(&manifest);
                artifacts.iter().filter(|digest| catalogue.artifact(digest).is_none()).count()
            };
            if n_missing > 0 {
                import
                    .report
                    .problem(format!("program {program} lacks {n_missing} of its artifacts and was not taken"));
                continue;
            }
            self.put_manifest(&manifest)?;
            import.report.n_manifests += 1;
        }
        Ok(())
    }
}

/// The list of entries, verified.
fn read_list(entries: &mut tar::Entries<'_, impl Read>, path: &Path) -> Result<HashMap<String, Digest>, StoreError> {
    let refuse = |reason: String| StoreError::archive(path, reason);
    let foreign = || refuse("it is not an export of a piecewised store".into());
    let mut next = |name: &str, limit| {
        let mut entry = entries.next()?.ok().filter(|entry| *entry.path_bytes() == *name.as_bytes())?;
        read_text(&mut entry, limit).ok()
    };
    let format = next(archive::FORMAT_NAME, MAX_FORMAT_BYTES).ok_or_else(foreign)?;
    let digest = match archive::parse_format(&format) {
        Format::Ours(digest) => digest,
        Format::Version(found) => {
            let ours = archive::VERSION;
            return Err(refuse(format!("it is an export of version {found}, this piecewised reads version {ours}")));
        }
        Format::Foreign => return Err(foreign()),
    };
    let sums = next(archive::SUMS_NAME, MAX_SUMS_BYTES).filter(|sums| Digest::of(sums.as_bytes()) == digest);
    sums.as_deref()
        .and_then(archive::parse_sums)
        .ok_or_else(|| refuse("its list of contents is damaged or cut short; nothing was taken".into()))
}

fn read_text(entry: &mut impl Read, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    entry.take(limit).read_to_string(&mut text)?;
    Ok(text)
}

/// An entry's bytes, if they are those of its digest.
fn read_entry(entry: &mut impl Read, limit: u64, digest: &Digest) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    entry.take(limit + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > limit {
        return Err(format!("it is longer than {limit} bytes"));
    }
    if Digest::of(&bytes) == *digest { Ok(bytes) } else { Err("it does not have its digest".into()) }
}
