//! The rules of the layout that a compiler does not check: who may depend on whom, and what every file opens with.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// What each crate of the workspace may use of the others. api → scheduler → {store, executor} → {graph, plan}.
const ALLOWED: &[(&str, &[&str])] = &[
    ("piecewised-plan", &[]),
    ("piecewised-graph", &["piecewised-plan"]),
    ("piecewised-proto", &[]),
    ("piecewised-wire", &["piecewised-plan", "piecewised-graph", "piecewised-proto"]),
    ("piecewised-sign", &["piecewised-graph", "piecewised-proto", "piecewised-wire"]),
    ("piecewised-store", &["piecewised-plan", "piecewised-graph"]),
    ("piecewised-executor", &["piecewised-plan", "piecewised-graph"]),
    ("piecewised-scheduler", &["piecewised-plan", "piecewised-graph", "piecewised-store", "piecewised-executor"]),
    (
        "piecewised-api",
        &[
            "piecewised-plan",
            "piecewised-graph",
            "piecewised-proto",
            "piecewised-wire",
            "piecewised-store",
            "piecewised-executor",
            "piecewised-scheduler",
            "piecewised-sign",
        ],
    ),
    (
        "piecewised-client",
        &["piecewised-plan", "piecewised-graph", "piecewised-proto", "piecewised-wire", "piecewised-sign"],
    ),
    ("piecewised-python", &["piecewised-plan", "piecewised-graph", "piecewised-client"]),
    ("piecewised-tch", &["piecewised-plan", "piecewised-graph", "piecewised-client"]),
    ("piecewised-runner", &["piecewised-tch"]),
    ("piecewised-bench-aoti", &["piecewised-graph", "piecewised-tch"]),
    ("piecewised-with-torch", &[]),
];

/// Crates that must stay free of some dependency, however it would come in.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("piecewised-plan", &["tokio", "tonic", "prost", "sled", "pyo3"]),
    ("piecewised-graph", &["tokio", "tonic", "prost", "sled", "pyo3"]),
    ("piecewised-store", &["tonic", "prost", "pyo3"]),
    ("piecewised-executor", &["tonic", "prost", "sled", "pyo3"]),
    ("piecewised-client", &["sled", "pyo3"]),
    ("piecewised", &["tch", "torch-sys", "pyo3"]),
    ("piecewised-api", &["tch", "torch-sys", "pyo3"]),
    ("piecewised-python", &["tch", "torch-sys"]),
    ("piecewised-with-torch", &["tch", "torch-sys"]),
];

/// Longer than a file should be, and why it may.
const LONG_FILES: &[(&str, &str)] = &[];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// name → names of its direct normal dependencies, for every package of the lock file.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--all-features"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name_of: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (package["id"].as_str().unwrap(), package["name"].as_str().unwrap()))
        .collect();
    let mut dependencies: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let normal = node["deps"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|dep| dep["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null()));
        dependencies
            .entry(name_of[node["id"].as_str().unwrap()].to_owned())
            .or_default()
            .extend(normal.map(|dep| name_of[dep["pkg"].as_str().unwrap()].to_owned()));
    }
    dependencies
}

#[test]
fn dependencies_point_one_way() {
    let dependencies = dependencies();
    let ours: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    for name in dependencies.keys().filter(|name| name.starts_with("piecewised-") && *name != "piecewised-tests") {
        assert!(ours.contains(name.as_str()), "{name} has no row in ALLOWED: say what it may use");
    }
    for (name, allowed) in ALLOWED {
        for dependency in dependencies[*name].iter().filter(|dependency| dependency.starts_with("piecewised")) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn pure_crates_stay_pure() {
    let dependencies = dependencies();
    for (name, forbidden) in FORBIDDEN {
        let mut reached: BTreeSet<&str> = BTreeSet::new();
        let mut queue = vec![*name];
        while let Some(at) = queue.pop() {
            for dependency in &dependencies[at] {
                if reached.insert(dependency) {
                    queue.push(dependency);
                }
            }
        }
        for dependency in *forbidden {
            assert!(!reached.contains(dependency), "{name} must not reach {dependency}");
        }
    }
}

fn sources(extension: &str) -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", &format!("*.{extension}")])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // A file that is deleted and not yet committed is still listed.
    text.lines().map(|line| root().join(line)).filter(|path| path.is_file()).collect()
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let rust = sources("rs");
    let python = sources("py");
    assert!(rust.len() > 30 && python.len() > 5, "the listing is broken");
    for path in rust {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} does not open with a //! header", path.display());
    }
    for path in python {
        let text = fs::read_to_string(&path).unwrap();
        let text = text.strip_prefix("#!/usr/bin/env python3\n").unwrap_or(&text);
        assert!(text.starts_with("\"\"\""), "{} does not open with a docstring", path.display());
    }
}

#[test]
fn files_can_be_read_in_one_go() {
    for path in sources("rs").into_iter().chain(sources("py")) {
        let n_lines = fs::read_to_string(&path).unwrap().lines().count();
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        let has_reason = LONG_FILES.iter().any(|(long, _)| *long == name);
        assert!(n_lines <= 500 || has_reason, "{name} has {n_lines} lines: split it, or give the reason in LONG_FILES");
    }
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    for path in sources("toml").into_iter().filter(|path| path.ends_with("Cargo.toml")) {
        let text = fs::read_to_string(&path).unwrap();
        let takes = text.contains("[lints]\nworkspace = true") || text.contains("[lints.rust]");
        assert!(takes, "{} does not take the workspace's lints", path.display());
    }
}
