//! The real executor: the embedded source, torch, Inductor, a C++ compiler; and small jobs for it.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use piecewised_executor::{CompileJob, Executor, ExecutorConfig, ExecutorSource};
use piecewised_graph::request::{ArtifactFormat, CompileOptions, DeviceKind};
use piecewised_plan::Range;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::python;

/// A config as the daemon makes it; the second folder is what executors live in.
pub(crate) fn config() -> (ExecutorConfig, TempDir, TempDir) {
    let (runtime, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source_dir = ExecutorSource.lay_down(runtime.path()).unwrap();
    let mut config = ExecutorConfig::new(python(), source_dir, root.path());
    config.environment = BTreeMap::from_iter(std::env::vars_os());
    config.n_compile_threads = Some(1);
    // Kept, and the other tests' too: making what is in it takes longer than any test.
    config.headers_dir = Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-headers"));
    (config, runtime, root)
}

/// The same, with one more module among the executor's source, which Python imports at its very start.
pub(crate) fn config_with(sitecustomize: &str) -> (ExecutorConfig, TempDir, TempDir) {
    let (config, runtime, root) = config();
    let path: &Path = config.source_dir.as_ref();
    fs::write(path.join("sitecustomize.py"), sitecustomize).unwrap();
    (config, runtime, root)
}

/// A job that applies `function` to a tensor and itself.
pub(crate) fn job(executor: &Executor, id: &str, function: &str, range: (i64, i64)) -> CompileJob {
    let symbol = json!({"symbol": "s0"});
    let int = |value: i64| json!({"int": value});
    let tensor = json!({"dtype": "float32", "device": {"type": "cpu"}, "layout": "strided",
                        "sizes": [symbol, int(4)], "strides": [int(4), int(1)]});
    let nodes = json!([
        {"name": "n0", "op": {"placeholder": {"value": {"sym_int": symbol}}}},
        {"name": "n1", "op": {"placeholder": {"value": {"tensor": tensor}}}},
        {"name": "n2", "op": {"call_function": {"target": function, "args": [{"node": "n1"}, {"node": "n1"}]}}},
        {"name": "n3", "op": {"output": {"value": {"tuple": [{"node": "n2"}]}}}},
    ]);
    let graph: Value = json!({"nodes": nodes, "symbols": [{"name": "s0", "hint": 8}]});
    CompileJob {
        id: id.into(),
        graph: Arc::from(graph.to_string()),
        range: Some(Range::new(range.0, range.1).unwrap()),
        dispatch_argument: Some(0),
        hint: Some(range.1),
        options: CompileOptions::default(),
        format: ArtifactFormat::Inductor,
        device: cpu(executor),
        verify: true,
        frontend: None,
        deadline: Duration::from_secs(3600),
    }
}

pub(crate) fn cpu(executor: &Executor) -> DeviceKind {
    executor.hello().devices.iter().find(|device| device.r#type == "cpu").unwrap().clone()
}
