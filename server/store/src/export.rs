//! Writing an export: everything, or some programs with all that they name, into one file.
//!
//! Everything is verified before it is written; what does not verify is left out and counted. The file appears under its
//! name when it is whole and on the disk. Artifacts are streamed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, BufWriter, Read, Seek as _, SeekFrom, Write},
    path::Path,
};

use piecewised_graph::{Digest, ProgramName};
use serde::Serialize;

use crate::{
    StoreError,
    archive::{self, Name},
    blob::HEADER_LEN,
    blobs::Check,
    engine::Engine,
    layout::sync_dir,
    manifests,
    record::Record,
};

/// What an export holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// Manifests in it.
    pub n_manifests: usize,
    /// Handles in it.
    pub n_handles: usize,
    /// Artifacts in it.
    pub n_artifacts: usize,
    /// Sum of their sizes.
    pub artifact_bytes: u64,
    /// Artifacts, handles and manifests left out because they do not verify, and artifacts that a manifest names and that are
    /// not there.
    pub n_left_out: usize,
    /// The digest over the whole, as in its first entry.
    pub digest: Digest,
}

/// An artifact that is exported: size, and the digest of each handle's JSON.
struct Planned {
    size_bytes: u64,
    handles: BTreeMap<Digest, Digest>,
}

impl Engine {
    pub(crate) fn export(&self, path: &Path, programs: &[ProgramName]) -> Result<ExportReport, StoreError> {
        let mut n_left_out = 0;
        let manifests = self.manifests_to_export(path, programs, &mut n_left_out)?;
        let wanted: Option<BTreeSet<Digest>> = (!programs.is_empty())
            .then(|| manifests.values().flat_map(|(_, artifacts)| artifacts.iter().copied()).collect());
        let planned = self.plan_export(wanted.as_ref(), &mut n_left_out)?;

        let mut entries = Vec::new();
        for (program, (json, _)) in &manifests {
            entries.push((Name::Manifest(program.clone()), Digest::of(json)));
        }
        for (digest, artifact) in &planned {
            entries.extend(artifact.handles.iter().map(|(key, of_json)| (Name::Handle(*key), *of_json)));
            entries.push((Name::Artifact(*digest), *digest));
        }
        let sums = archive::sums_text(&entries);

        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(StoreError::io("create a file in", folder))?;
        let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, file.as_file_mut()));
        let written = || StoreError::io("write", path);
        let format = archive::format_text(&sums);
        archive::append(&mut tar, archive::FORMAT_NAME, format.len() as u64, format.as_bytes()).map_err(written())?;
        archive::append(&mut tar, archive::SUMS_NAME, sums.len() as u64, sums.as_bytes()).map_err(written())?;
        for (program, (json, _)) in &manifests {
            let name = Name::Manifest(program.clone()).text();
            archive::append(&mut tar, &name, json.len() as u64, json.as_slice()).map_err(written())?;
        }
        for (digest, artifact) in &planned {
            self.write_planned(&mut tar, path, digest, artifact)?;
        }
        tar.into_inner().and_then(|mut buffer| buffer.flush()).map_err(written())?;
        file.as_file().sync_all().map_err(StoreError::io("sync", path))?;
        file.persist(path).map_err(|error| StoreError::io("rename", path)(error.error))?;
        sync_dir(folder)?;
        Ok(ExportReport {
            n_manifests: manifests.len(),
            n_handles: planned.values().map(|artifact| artifact.handles.len()).sum(),
            n_artifacts: planned.len(),
            artifact_bytes: planned.values().map(|artifact| artifact.size_bytes).sum(),
            n_left_out,
            digest: Digest::of(sums.as_bytes()),
        })
    }

    /// The JSON of each manifest, and what it names.
    #[allow(clippy::type_complexity, reason = "used in one place")]
    fn manifests_to_export(
        &self,
        path: &Path,
        programs: &[ProgramName],
        n_left_out: &mut usize,
    ) -> Result<BTreeMap<ProgramName, (Vec<u8>, BTreeSet<Digest>)>, StoreError> {
        let all: Vec<ProgramName> = self.shared.programs().list().into_iter().map(|info| info.program).collect();
        if let Some(unknown) = programs.iter().find(|program| !all.contains(program)) {
            return Err(StoreError::archive(path, format!("the store has no program {unknown}")));
        }
        let mut manifests = BTreeMap::new();
        for program in if programs.is_empty() { all } else { programs.to_vec() } {
            let file = self.shared.layout.manifest(&manifests::file_name(&program));
            let bytes = fs::read(&file).map_err(StoreError::io("read", &file))?;
            let parsed = manifests::json_of(&bytes)
                .and_then(|json| Some((json.to_vec(), manifests::artifacts_of(&serde_json::from_slice(json).ok()?))));
            match parsed {
                Some((json, artifacts)) => {
                    let catalogue = self.catalogue();
                    *n_left_out += artifacts.iter().filter(|digest| catalogue.artifact(digest).is_none()).count();
                    manifests.insert(program, (json, artifacts));
                }
                None => *n_left_out += 1,
            }
        }
        Ok(manifests)
    }

    /// Verifies what is wanted.
    fn plan_export(
        &self,
        wanted: Option<&BTreeSet<Digest>>,
        n_left_out: &mut usize,
    ) -> Result<BTreeMap<Digest, Planned>, StoreError> {
        let found: BTreeMap<Digest, (u64, Vec<Digest>)> = {
            let catalogue = self.catalogue();
            let wanted = catalogue.artifacts().filter(|(digest, _)| wanted.is_none_or(|set| set.contains(digest)));
            wanted.map(|(digest, artifact)| (*digest, (artifact.size_bytes, artifact.keys.clone()))).collect()
        };
        let mut planned = BTreeMap::new();
        for (digest, (size_bytes, keys)) in found {
            if !matches!(self.shared.blobs.check(&digest, size_bytes)?, Check::Whole(_)) {
                *n_left_out += 1;
                continue;
            }
            let mut handles = BTreeMap::new();
            for key in keys {
                match self.json_of(&key, &digest)? {
                    Some(json) => drop(handles.insert(key, Digest::of(&json))),
                    None => *n_left_out += 1,
                }
            }
            planned.insert(digest, Planned { size_bytes, handles });
        }
        Ok(planned)
    }

    fn write_planned(
        &self,
        tar: &mut tar::Builder<impl Write>,
        path: &Path,
        digest: &Digest,
        artifact: &Planned,
    ) -> Result<(), StoreError> {
        let changed =
            || StoreError::archive(path, format!("artifact {digest} changed while it was exported; try again"));
        for (key, of_json) in &artifact.handles {
            let json = self.json_of(key, digest)?.filter(|json| Digest::of(json) == *of_json).ok_or_else(changed)?;
            archive::append(tar, &Name::Handle(*key).text(), json.len() as u64, json.as_slice())
                .map_err(StoreError::io("write", path))?;
        }
        let Check::Whole(mut file) = self.shared.blobs.check(digest, artifact.size_bytes)? else {
            return Err(changed());
        };
        file.seek(SeekFrom::Start(HEADER_LEN as u64)).map_err(StoreError::io("read", path))?;
        let mut source = Hashed { source: file.take(artifact.size_bytes), hasher: blake3::Hasher::new() };
        archive::append(tar, &Name::Artifact(*digest).text(), artifact.size_bytes, &mut source)
            .map_err(StoreError::io("write", path))?;
        if source.hasher.finalize() == digest.0 { Ok(()) } else { Err(changed()) }
    }

    /// The JSON of a handle of this artifact.
    fn json_of(&self, key: &Digest, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(bytes) = self.index.record(key)? else { return Ok(None) };
        match Record::decode(key, &bytes).filter(|record| record.digest == *digest) {
            Some(record) => self.json(key, &record),
            None => Ok(None),
        }
    }
}

/// Digests what passes.
pub(crate) struct Hashed<R> {
    pub(crate) source: R,
    pub(crate) hasher: blake3::Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}
