//! Manifests of programs: one small file each, named by the digest of the program's name; they pin their artifacts.
//!
//! Files and not records of the index for the reason that large handles are: beyond some 4 KiB a value of sled's is not synced reliably,
//! and a manifest must be there even where the index had to be rebuilt. The first line is the BLAKE3 of what follows, so that a damaged file
//! is absent, never wrong. Written like artifacts: temporary file, fsync, rename, fsync of the folder.
//!
//! An artifact that a stored manifest names is never evicted, nor dropped because its key got another one: it is pinned before the
//! manifest is written, and let go after the manifest is gone.
//!
//! Left out: whether the artifacts that a manifest names are all there. Putting one says so in the log; who fetches one finds out.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

use piecewised_graph::{Digest, Manifest, ProgramName};
use serde::Deserialize;

use crate::{
    StoreError,
    counters::Counters,
    engine::{Engine, Shared},
    layout::Layout,
    programs::ManifestInfo,
};

/// A manifest's file, read.
pub(crate) enum Found {
    Whole(Box<Manifest>),
    Absent,
    Damaged,
}

/// The manifest of that name, if there is one that verifies.
pub(crate) fn read(layout: &Layout, program: &ProgramName) -> Result<Found, StoreError> {
    let path = layout.manifest(&file_name(program));
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Absent),
        Err(error) => return Err(StoreError::io("read", path)(error)),
    };
    let manifest = json_of(&bytes).and_then(|json| serde_json::from_slice::<Manifest>(json).ok());
    let manifest = manifest.filter(|manifest| manifest.program == *program);
    Ok(manifest.map_or(Found::Damaged, |manifest| Found::Whole(Box::new(manifest))))
}

/// The JSON of a manifest's file, if its digest holds.
pub(crate) fn json_of(bytes: &[u8]) -> Option<&[u8]> {
    let newline = bytes.iter().position(|&byte| byte == b'\n')?;
    let (digest, json) = (&bytes[..newline], &bytes[newline + 1..]);
    let digest: Digest = str::from_utf8(digest).ok()?.parse().ok()?;
    (Digest::of(json) == digest).then_some(json)
}

/// The name of the file of a program's manifest.
pub(crate) fn file_name(program: &ProgramName) -> String {
    Digest::of(program.as_str().as_bytes()).to_string()
}

/// Every artifact that a manifest names.
pub(crate) fn artifacts_of(manifest: &Manifest) -> BTreeSet<Digest> {
    manifest.pieces.iter().flat_map(|piece| &piece.handles).map(|handle| handle.digest).collect()
}

/// What an open has to know of a manifest: a small part of it, and the rest is not built.
#[derive(Deserialize)]
struct Outline {
    program: ProgramName,
    pieces: Vec<OutlinePiece>,
    created_unix_ms: u64,
}

#[derive(Deserialize)]
struct OutlinePiece {
    handles: Vec<OutlineHandle>,
}

#[derive(Deserialize)]
struct OutlineHandle {
    digest: Digest,
}

/// Reads all manifests and pins what they name; drops and counts those that do not verify.
pub(crate) fn load(shared: &Shared) -> Result<(), StoreError> {
    for path in files(&shared.layout)? {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a manifest cannot be read; what it names may be evicted");
                continue;
            }
        };
        let outline = json_of(&bytes).and_then(|json| serde_json::from_slice::<Outline>(json).ok());
        let is_its_name = |outline: &Outline| path.ends_with(file_name(&outline.program));
        let Some(outline) = outline.filter(is_its_name) else {
            drop_file(shared, &path)?;
            continue;
        };
        let digests = outline.pieces.iter().flat_map(|piece| &piece.handles).map(|handle| handle.digest);
        let artifacts: BTreeSet<Digest> = digests.collect();
        let info = ManifestInfo {
            program: outline.program,
            n_pieces: outline.pieces.len(),
            n_artifacts: artifacts.len(),
            created_unix_ms: outline.created_unix_ms,
        };
        let mut programs = shared.programs();
        artifacts.iter().for_each(|artifact| programs.pin(*artifact));
        programs.insert(info, artifacts);
    }
    Ok(())
}

/// The files of all manifests, sorted.
pub(crate) fn files(layout: &Layout) -> Result<Vec<PathBuf>, StoreError> {
    let folder = layout.manifests();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io("list", folder)(error)),
    };
    let paths: io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(StoreError::io("list", folder))?;
    paths.sort();
    Ok(paths)
}

fn drop_file(shared: &Shared, path: &std::path::Path) -> Result<(), StoreError> {
    tracing::warn!(path = %path.display(), "a manifest did not verify and was dropped");
    Counters::add(&shared.counters.n_damaged_dropped);
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("delete", path)(error)),
        _ => Ok(()),
    }
}

impl Engine {
    /// Stores a manifest in place of any of its name. Returns whether that changed anything but its date.
    pub(crate) fn put_manifest(&self, manifest: &Manifest) -> Result<bool, StoreError> {
        let shared = &self.shared;
        let _turn = shared.manifest_turn();
        if let Found::Whole(stored) = read(&shared.layout, &manifest.program)?
            && stored.digest() == manifest.digest()
        {
            return Ok(false);
        }
        let json = serde_json::to_string(manifest)
            .map_err(|error| StoreError::Task { reason: format!("the manifest has no JSON form: {error}") })?;
        self.make_room(json.len() as u64)?;
        let artifacts = artifacts_of(manifest);
        self.pin(&artifacts);
        let text = format!("{}\n{json}", Digest::of(json.as_bytes()));
        if let Err(error) = shared.layout.write_manifest(&file_name(&manifest.program), &text) {
            self.unpin(&artifacts);
            return Err(error);
        }
        let n_missing = {
            let catalogue = self.catalogue();
            artifacts.iter().filter(|artifact| catalogue.artifact(artifact).is_none()).count()
        };
        if n_missing > 0 {
            let program = manifest.program.as_str();
            tracing::warn!(program, n_missing, "a manifest was stored that names artifacts which are not in the store");
        }
        let info = ManifestInfo {
            program: manifest.program.clone(),
            n_pieces: manifest.pieces.len(),
            n_artifacts: artifacts.len(),
            created_unix_ms: manifest.created_unix_ms,
        };
        let before = shared.programs().insert(info, artifacts);
        self.unpin(&before);
        self.warn_of_pins();
        Ok(true)
    }

    /// Removes a manifest; artifacts that nothing else names go with it. Returns whether there was one.
    pub(crate) fn remove_manifest(&self, program: &ProgramName) -> Result<bool, StoreError> {
        let _turn = self.shared.manifest_turn();
        let was_there = self.shared.layout.remove_manifest(&file_name(program))?;
        self.release(program);
        Ok(was_there)
    }

    /// Drops a manifest that was found damaged, unless it was written anew since.
    pub(crate) fn drop_manifest(&self, program: &ProgramName) -> Result<(), StoreError> {
        let _turn = self.shared.manifest_turn();
        if matches!(read(&self.shared.layout, program)?, Found::Damaged) {
            drop_file(&self.shared, &self.shared.layout.manifest(&file_name(program)))?;
            self.release(program);
        }
        Ok(())
    }

    fn release(&self, program: &ProgramName) {
        let artifacts = self.shared.programs().remove(program);
        self.unpin(&artifacts.unwrap_or_default());
    }

    /// Pins artifacts, there or not. Under each one's lock, so that no eviction is half way through with it.
    pub(crate) fn pin(&self, artifacts: &BTreeSet<Digest>) {
        for artifact in artifacts {
            let _lock = self.shared.lock(artifact);
            self.shared.programs().pin(*artifact);
        }
    }

    /// Takes pins back, and the space of what nothing names any more.
    pub(crate) fn unpin(&self, artifacts: &BTreeSet<Digest>) {
        for artifact in artifacts {
            let _lock = self.shared.lock(artifact);
            let is_pinned = self.shared.programs().unpin(artifact);
            let is_named = self.catalogue().artifact(artifact).is_none_or(|found| !found.keys.is_empty());
            if !is_pinned && !is_named {
                // An error is logged there; the file goes with the next open at the latest.
                let _ = self.unlink(artifact);
            }
        }
    }
}
