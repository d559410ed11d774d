//! `manifest.json`, the first member of every artifact: what the container holds. docs/artifact.md describes it.

use std::collections::{HashMap, HashSet};

use piecewised_graph::request::{ArtifactFormat, DeviceKind, Toolchain};
use serde::{Deserialize, Serialize};

use crate::container::ContainerError;

/// The version of the container that this client reads.
pub(crate) const CONTAINER_VERSION: u32 = 2;
/// The manifest's own name.
pub(crate) const MANIFEST: &str = "manifest.json";
/// In bytes: what fits a USTAR header without the prefix field being split in unforeseen ways.
const MAX_PATH_BYTES: usize = 200;

/// What a container holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// 2.
    pub container_version: u32,
    /// How to load it.
    pub format: ArtifactFormat,
    /// Who can load it.
    pub toolchain: Toolchain,
    /// Where it runs.
    pub device: DeviceKind,
    /// The parts that segments of a handle name.
    pub entries: Vec<ManifestEntry>,
    /// Every other member, sorted by path.
    pub files: Vec<ManifestFile>,
}

/// A part of the artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// As segments call it.
    pub name: String,
    /// The path of a member.
    pub program: String,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Relative, `/`-separated.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
    /// Hexadecimal, lower case.
    pub sha256: String,
}

impl Manifest {
    /// Reads and checks a manifest. `container_bytes` bounds what its files may add up to.
    pub(crate) fn parse(text: &[u8], container_bytes: u64) -> Result<Self, ContainerError> {
        let bad = |problem: String| ContainerError::BadManifest { problem };
        // The version first: the other fields of another version may be others.
        #[derive(Deserialize)]
        struct Version {
            container_version: u32,
        }
        let version: Version = serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
        if version.container_version != CONTAINER_VERSION {
            return Err(ContainerError::UnknownVersion { found: version.container_version });
        }
        let manifest: Self = serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
        manifest.check_files(container_bytes)?;
        manifest.check_entries()?;
        Ok(manifest)
    }

    fn check_files(&self, container_bytes: u64) -> Result<(), ContainerError> {
        let mut total_bytes: u64 = 0;
        for file in &self.files {
            check_path(&file.path)?;
            if file.path == MANIFEST {
                return Err(ContainerError::BadPath { path: file.path.clone(), problem: "it is the manifest's own" });
            }
            total_bytes = total_bytes.saturating_add(file.size_bytes);
            if total_bytes > container_bytes {
                return Err(ContainerError::TooLarge { declared_bytes: total_bytes, container_bytes });
            }
        }
        if let Some(pair) = self.files.windows(2).find(|pair| pair[0].path >= pair[1].path) {
            let problem =
                format!("{:?} is listed after {:?}: files must be sorted and unique", pair[1].path, pair[0].path);
            return Err(ContainerError::BadManifest { problem });
        }
        // "a" and "a/b" can't both be files.
        let paths: HashSet<&str> = self.files.iter().map(|file| file.path.as_str()).collect();
        for file in &self.files {
            let folders = file.path.match_indices('/').map(|(end, _)| &file.path[..end]);
            if let Some(folder) = folders.into_iter().find(|folder| paths.contains(folder) || *folder == MANIFEST) {
                return Err(ContainerError::BadPath { path: folder.into(), problem: "it is both a file and a folder" });
            }
        }
        Ok(())
    }

    fn check_entries(&self) -> Result<(), ContainerError> {
        let bad = |problem: String| Err(ContainerError::BadManifest { problem });
        if self.entries.is_empty() {
            return bad("it lists no entries".into());
        }
        let mut programs: HashMap<&str, &str> = HashMap::new();
        for entry in &self.entries {
            if programs.insert(&entry.name, &entry.program).is_some() {
                return bad(format!("entry {:?} is listed twice", entry.name));
            }
            if self.files.binary_search_by(|file| file.path.as_str().cmp(&entry.program)).is_err() {
                return bad(format!("entry {:?} runs {:?}, which is not among the files", entry.name, entry.program));
            }
        }
        Ok(())
    }
}

/// A path that stays inside the folder it is joined to, on every system.
pub(crate) fn check_path(path: &str) -> Result<(), ContainerError> {
    let bad = |problem| Err(ContainerError::BadPath { path: path.chars().take(300).collect(), problem });
    if path.is_empty() || path.len() > MAX_PATH_BYTES {
        return bad("it is empty or longer than 200 bytes");
    }
    for component in path.split('/') {
        if component.is_empty() {
            return bad("it is absolute or has an empty component");
        }
        if component == "." || component == ".." {
            return bad("it has a . or .. component");
        }
        if !component.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
            return bad("it has a character outside A-Z a-z 0-9 . _ -");
        }
    }
    Ok(())
}
