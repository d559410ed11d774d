//! What the executor's integration tests share: a real interpreter, the misbehaving, and a look at what is left of a group.

#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod real;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use piecewised_executor::{CompileJob, Executor, ExecutorConfig, Placement};
use piecewised_graph::request::{ArtifactFormat, CompileOptions, DeviceKind};
use piecewised_plan::Range;
use tempfile::TempDir;

/// The interpreter with torch that the tests run on.
pub(crate) fn python() -> PathBuf {
    std::env::var_os("PIECEWISED_TEST_PYTHON").map(PathBuf::from).expect(
        "PIECEWISED_TEST_PYTHON is not set: it must name a Python interpreter that can import torch; `make test` sets it",
    )
}

/// A config that starts the misbehaving, and the folder that its executors live in.
pub(crate) fn misbehaving(start: &str) -> (ExecutorConfig, TempDir) {
    let root = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/misbehaving");
    let mut config = ExecutorConfig::new(python(), source, root.path());
    config.environment = BTreeMap::from_iter(std::env::vars_os());
    config.environment.insert("MISBEHAVING_START".into(), start.into());
    config.extra_environment = vec!["MISBEHAVING_START".into()];
    (config, root)
}

/// A running misbehaving.
pub(crate) async fn started() -> (Executor, TempDir) {
    let (config, root) = misbehaving("ready");
    (Executor::spawn(&config, &Placement::default()).await.unwrap(), root)
}

/// A job that tells the misbehaving what to do.
pub(crate) fn job(id: &str) -> CompileJob {
    CompileJob {
        id: id.into(),
        graph: r#"{"nodes":[]}"#.into(),
        range: Some(Range::new(1, 16).unwrap()),
        dispatch_argument: Some(0),
        hint: Some(8),
        options: CompileOptions::default(),
        format: ArtifactFormat::Inductor,
        device: DeviceKind { r#type: "cpu".into(), name: "misbehaving".into(), capability: String::new() },
        verify: false,
        frontend: None,
        deadline: Duration::from_secs(3600),
    }
}

/// Living members of the process group, by their numbers.
pub(crate) fn members(group: u32) -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // "pid (name) state ppid pgrp ...", and the name may hold anything.
            let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            (fields[0] != "Z" && fields[2].parse() == Ok(group)).then_some(pid)
        })
        .collect()
}

/// Waits until `so` holds; fails where it never does.
pub(crate) async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until nothing is left of an executor: neither a process of its group nor a file of its own.
pub(crate) async fn nothing_left(group: u32, root: &TempDir) {
    eventually("no process of the group is left", || members(group).is_empty()).await;
    let folders = || fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    eventually("no folder is left", || folders().is_empty()).await;
}
