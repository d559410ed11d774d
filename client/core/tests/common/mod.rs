//! Makes containers, right ones and hostile ones, and handles.
#![allow(dead_code, clippy::unwrap_used, reason = "shared by several test binaries; a failure here is the test's")]

use std::io::{Seek, SeekFrom, Write};

use piecewised_client::{CompileRequest, Keyring, Manifest, ManifestEntry, ManifestFile};
use piecewised_graph::{
    Digest, Handle, Segment, Timings,
    model::Graph,
    request::{ArtifactFormat, DeviceKind, Toolchain},
};
use piecewised_plan::{Plan, Range};
use piecewised_sign::{Signer, Statement};
use sha2::Digest as _;

/// The files of the container that the tests start from.
pub(crate) const FILES: [(&str, &[u8]); 3] =
    [("cache/ab/kernel.so", b"\x7fELF and so on"), ("cache/ab/kernel.py", b"print(1)\n"), ("programs/r0", b"program")];

pub(crate) fn toolchain() -> Toolchain {
    let text = |s: &str| s.to_owned();
    Toolchain {
        fingerprint: "f".repeat(64),
        python_version: text("3.11"),
        torch_version: text("2.11.0"),
        torch_git_version: text("abc"),
        triton_version: text(""),
        cuda_version: text(""),
        executable: text("/usr/bin/python3"),
    }
}

pub(crate) fn device() -> DeviceKind {
    DeviceKind { r#type: "cpu".into(), name: "x86_64".into(), capability: "abc".into() }
}

/// For [1, 16] and 4, of an empty graph.
pub(crate) fn request() -> CompileRequest {
    let plan = Plan::new(&[Range::new(1, 16).unwrap()], &[4]).unwrap();
    CompileRequest::new(Graph::default(), plan, ArtifactFormat::Inductor)
}

pub(crate) fn manifest(files: &[(&str, &[u8])]) -> Manifest {
    let mut files: Vec<ManifestFile> = files
        .iter()
        .map(|(path, data)| ManifestFile {
            path: (*path).into(),
            size_bytes: data.len() as u64,
            sha256: sha2::Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect(),
        })
        .collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Manifest {
        container_version: 2,
        format: ArtifactFormat::Inductor,
        toolchain: toolchain(),
        device: device(),
        entries: vec![ManifestEntry { name: "r0".into(), program: "programs/r0".into() }],
        files,
    }
}

/// A header whose path is written as it is: the tar crate's own setters refuse the paths that the tests need.
pub(crate) fn header(path: &str, kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    header
}

/// A tar of members as given, the manifest first.
pub(crate) struct Container(tar::Builder<Vec<u8>>);

impl Container {
    pub(crate) fn new(manifest: &Manifest) -> Self {
        Self(tar::Builder::new(Vec::new())).file("manifest.json", &serde_json::to_vec(manifest).unwrap())
    }

    pub(crate) fn empty() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn file(self, path: &str, data: &[u8]) -> Self {
        self.member(&header(path, tar::EntryType::Regular, data.len() as u64), data)
    }

    pub(crate) fn member(mut self, header: &tar::Header, data: &[u8]) -> Self {
        self.0.append(header, data).unwrap();
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A container that is right.
pub(crate) fn good() -> Vec<u8> {
    with_files(&manifest(&FILES), &FILES)
}

/// A container of these members, sorted, whatever the manifest says.
pub(crate) fn with_files(manifest: &Manifest, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut files = files.to_vec();
    files.sort_by_key(|(path, _)| *path);
    files.iter().fold(Container::new(manifest), |container, (path, data)| container.file(path, data)).bytes()
}

/// The bytes as a file, read from its start.
pub(crate) fn as_file(bytes: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

/// The key that what is right is signed with.
pub(crate) fn signer() -> Signer {
    Signer::from_seed(&[7; 32])
}

/// Trusts [`signer`] alone.
pub(crate) fn keyring() -> Keyring {
    Keyring::pinned(vec![signer().public_key()])
}

/// With a signature by [`signer`].
pub(crate) fn signed(handle: Handle) -> Handle {
    let signature = signer().sign(&Statement::of_handle(&handle));
    Handle { signature: Some(signature), ..handle }
}

/// A handle for a range with these segments.
pub(crate) fn handle(range: Option<(i64, i64)>, segments: &[Option<(i64, i64)>]) -> Handle {
    let range_of = |pair: (i64, i64)| Range::new(pair.0, pair.1).unwrap();
    Handle {
        key: Digest([1; 32]),
        graph_digest: Digest([2; 32]),
        range: range.map(range_of),
        digest: Digest([3; 32]),
        size_bytes: 10,
        format: ArtifactFormat::Inductor,
        toolchain: toolchain(),
        device: device(),
        segments: segments
            .iter()
            .enumerate()
            .map(|(i, segment)| Segment { range: segment.map(range_of), entry: format!("r{i}"), guards: Vec::new() })
            .collect(),
        dispatch_argument: range.map(|_| 0),
        hint: None,
        returns_tuple: true,
        n_arguments: 2,
        timings: Timings::default(),
        created_unix_ms: 0,
        guard_symbols: Vec::new(),
        verification: Default::default(),
        tuning: Default::default(),
        latencies: Vec::new(),
        key_record: Default::default(),
        signature: None,
    }
}
