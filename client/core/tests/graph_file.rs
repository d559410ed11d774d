//! Graph files: what is written is read again, and what is none is refused by name.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;

use piecewised_client::{CompileRequest, Delivery, GRAPH_FILE_MAGIC, GraphFileError, Priority, ProgramPiece};
use piecewised_client::{read_graph_file, write_graph_file};
use piecewised_graph::{
    Frontend,
    model::Graph,
    request::{ArtifactFormat, CompileOptions, OptionValue, Specialisation},
};
use piecewised_plan::{Plan, Range};
use serde_json::json;

fn request() -> CompileRequest {
    let (symbol, int) = (json!({"symbol": "s0"}), |value: i64| json!({"int": value}));
    let tensor = json!({"dtype": "float32", "device": {"type": "cpu"}, "layout": "strided", "sizes": [symbol, int(4)], "strides": [int(4), int(1)]});
    let graph: Graph = serde_json::from_value(json!({
        "nodes": [
            {"name": "n", "op": {"placeholder": {"value": {"sym_int": symbol}}}},
            {"name": "x", "op": {"placeholder": {"value": {"tensor": tensor}}}},
            {"name": "y", "op": {"call_function": {"target": "torch.add", "args": [{"node": "x"}, {"node": "x"}]}}},
            {"name": "out", "op": {"output": {"value": {"tuple": [{"node": "y"}]}}}},
        ],
        "symbols": [{"name": "s0", "hint": 8}],
    }))
    .unwrap();
    let options = CompileOptions {
        inductor: [("max_autotune".to_owned(), OptionValue::Bool(true))].into(),
        specialisation: Specialisation::Generic,
        ..CompileOptions::default()
    };
    CompileRequest {
        graph,
        plan: Plan::new(&[Range::new(1, 8).unwrap(), Range::new(9, 64).unwrap()], &[4]).unwrap(),
        options,
        format: ArtifactFormat::Aoti,
        delivery: Delivery { hints: vec![4, 16, 4], is_tiered: false, is_strict: true },
        priority: Priority::Prefetch,
        toolchain: None,
        device: None,
        program: Some(ProgramPiece {
            program: "llama".parse().unwrap(),
            run: "run-1".parse().unwrap(),
            index: 2,
            n_pieces: 3,
        }),
        frontend: Some((Frontend::new("f".into(), "1".into(), b"{}".to_vec()).unwrap(), b"payload".to_vec())),
        label: "llama/backbone/2".into(),
    }
}

#[test]
fn what_is_written_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("piece.pwgraph");
    fs::write(&path, "an earlier one").unwrap();
    write_graph_file(&path, request()).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert!(bytes.starts_with(GRAPH_FILE_MAGIC));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");

    let (read, written) = (read_graph_file(&path).unwrap(), request());
    assert_eq!(read.graph, written.graph);
    assert_eq!(read.plan.entries(), written.plan.entries());
    assert_eq!((read.options, read.format, read.delivery), (written.options, written.format, written.delivery));
    assert_eq!((read.priority, read.program, read.label), (written.priority, written.program, written.label));
    assert_eq!(read.frontend, written.frontend);
    assert_eq!((read.toolchain, read.device), (None, None));
}

#[test]
fn what_is_none_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("piece.pwgraph");
    let refused = || read_graph_file(&path).unwrap_err();
    assert!(matches!(refused(), GraphFileError::Io { .. }) && refused().to_string().contains("piece.pwgraph"));

    fs::write(&path, "PK\x03\x04 something else").unwrap();
    assert!(matches!(refused(), GraphFileError::NotOne { .. }), "{}", refused());
    fs::write(&path, b"pwgraph9").unwrap();
    assert!(refused().to_string().contains("it does not begin with \"pwgraph1\""), "{}", refused());

    write_graph_file(&path, request()).unwrap();
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    assert!(matches!(refused(), GraphFileError::NotOne { .. }), "{}", refused());
    // Nothing but the name: a request without a plan.
    fs::write(&path, GRAPH_FILE_MAGIC).unwrap();
    assert!(matches!(refused(), GraphFileError::Bad { .. }), "{}", refused());

    let missing = folder.path().join("missing/piece.pwgraph");
    assert!(matches!(write_graph_file(&missing, request()), Err(GraphFileError::Io { .. })));
}
