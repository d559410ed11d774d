//! What a package takes from its process beside its inputs: constants that travel with it, and operators of a C++ library.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::common::{assert_close, daemon, daemon_of, plan, random, variable};
use piecewised_client::CompileRequest;
use piecewised_graph::Frontend;
use piecewised_tch::{GraphBuilder, LoadOptions, Piece, load_operators, request};
use tch::{Device, Kind, Tensor};

#[tokio::test]
async fn constants_travel_with_the_package() {
    let daemon = daemon();
    let table = random(&[3, 8]);
    let mut graph = GraphBuilder::new(Device::Cpu);
    let n = graph.symbol("n");
    let index = graph.tensor("index", Kind::Int64, [n]);
    let rows = graph.constant("table", &table);
    let shift = graph.constant("shift", &Tensor::from_slice(&[0.5f32]));
    let taken = graph.call("torch.nn.functional.embedding", [index.into(), rows.into()]);
    let shifted = graph.call("torch.add", [taken.into(), shift.into()]);
    let request = request(graph.finish([shifted]).unwrap(), plan(&[(2, 8)], &[]));
    let piece = daemon.worker().await.compile(request, |_| ()).await.unwrap();
    let index = Tensor::from_slice(&[2i64, 0, 2, 1]);
    let [found] = piece.forward(&[&index]).unwrap().try_into().unwrap();
    assert_close(&found, &(table.index_select(0, &index) + 0.5));
}

/// A graph that calls an operator of the engine that the Python tests have, for a worker of that engine.
fn shifted(packages: &Path) -> CompileRequest {
    let mut graph = GraphBuilder::new(Device::Cpu);
    let n = graph.symbol("n");
    let x = graph.tensor("x", Kind::Float, [n, 8.into()]);
    graph.call("torch.ops.scaling.shift_.default", [(&x).into(), 1.5.into()]);
    let doubled = graph.call("_operator.mul", [x.into(), 2.into()]);
    let config = r#"{"factor": 2.0, "runs": true}"#;
    // What the engine's identity is made of is its own business: it says so here, as it does in its worker.
    let script = "import sys, json; sys.path[:0] = sys.argv[1:3]\nfrom scaling_engine.frontend import identity\nprint(identity(json.loads(sys.argv[3])), end='')";
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../server/executor/python");
    let said = Command::new(variable("PIECEWISED_TEST_PYTHON"))
        .args(["-c", script])
        .args([packages, &source])
        .arg(config)
        .output()
        .unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let identity = String::from_utf8(said.stdout).unwrap();
    let frontend = Frontend { name: "scaling_engine.frontend".into(), version: "1.0".into(), identity };
    CompileRequest {
        frontend: Some((frontend, config.into())),
        ..request(graph.finish([doubled]).unwrap(), plan(&[(2, 8)], &[]))
    }
}

/// The engine's operator for processes without Python.
fn library(folder: &Path) -> PathBuf {
    let source = folder.join("operators.cpp");
    fs::write(
        &source,
        r#"
#include <ATen/core/Tensor.h>
#include <torch/library.h>
TORCH_LIBRARY(scaling, library) { library.def("shift_(Tensor(a!) x, float by) -> ()"); }
TORCH_LIBRARY_IMPL(scaling, CPU, library) {
    library.impl("shift_", [](const at::Tensor& x, double by) { x.add_(by); });
}
"#,
    )
    .unwrap();
    let library = folder.join("liboperators.so");
    let built = Command::new("g++")
        .args([
            "-std=c++17",
            "-shared",
            "-fPIC",
            "-O0",
            "-w",
            concat!("-I", env!("LIBTORCH_OF_BUILD"), "/include"),
            "-o",
        ])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(built.success());
    library
}

#[tokio::test]
async fn operators_of_a_library_are_called_once_it_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/packages");
    // An interpreter that has the engine installed.
    let python = folder.path().join("python");
    let interpreter = variable("PIECEWISED_TEST_PYTHON");
    let script =
        format!("#!/bin/sh\nPYTHONPATH=\"$PYTHONPATH:{}\" exec {} \"$@\"\n", packages.display(), interpreter.display());
    fs::write(&python, script).unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o700)).unwrap();
    let daemon = daemon_of(&python, &["--frontends", "scaling_engine.frontend"]);
    let (handles, folders) = daemon.artifacts(shifted(&packages)).await;

    let options = LoadOptions::new(Device::Cpu);
    let error = Piece::load(&handles, &folders, &options).unwrap_err().to_string();
    assert!(error.contains("scaling::shift_") && error.contains("load_operators"), "{error}");

    load_operators(&library(folder.path())).unwrap();
    let piece = Piece::load(&handles, &folders, &options).unwrap();
    let x = random(&[5, 8]);
    let before = x.copy();
    let [doubled] = piece.forward(&[&x]).unwrap().try_into().unwrap();
    assert_close(&x, &(&before + 1.5));
    assert_close(&doubled, &(x * 2.0));
}
