//! Workers against a real daemon: what it compiles is fetched, loaded, dispatched on, called.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps nothing")]

#[path = "../common/mod.rs"]
mod common;
mod operators;

use std::{fs, path::Path, sync::Arc, thread};

use common::{assert_close, change_manifest, copied, daemon, plan, random, scaled, scaled_eagerly};
use expect_test::{Expect, expect};
use piecewised_client::{ClientOptions, Endpoint, ProgramPiece, write_graph_file};
use piecewised_graph::VerificationChecker;
use piecewised_tch::{
    Error, GraphBuilder, InputError, LoadOptions, Package, Piece, Worker, WorkerOptions, load_operators, request,
};
use tch::{Device, Kind, Tensor};

#[tokio::test]
async fn results_are_eagers_at_every_size_and_inputs_change_in_place() {
    let daemon = daemon();
    let worker = daemon.worker().await;
    let mut n_ready = 0;
    let ready = |event: &piecewised_client::Event| matches!(event.kind, piecewised_client::EventKind::Ready { .. });
    let piece = worker.compile(scaled(), |event| n_ready += usize::from(ready(event))).await.unwrap();
    assert_eq!(n_ready, 3);
    let weight = random(&[16, 16]);
    for n in [1, 2, 4, 8, 9, 17, 64] {
        let x = random(&[n, 16]);
        let [gated, sums, changed] = scaled_eagerly(&x, &weight);
        let outputs = piece.forward(&[&x, &weight]).unwrap();
        assert_eq!(outputs.len(), 2);
        assert_close(&outputs[0], &gated);
        assert_close(&outputs[1], &sums);
        assert_close(&x, &changed);
    }
}

#[tokio::test]
async fn the_runner_checked_what_is_released() {
    let daemon = daemon();
    let (handles, folders) = daemon.artifacts(scaled()).await;
    for handle in &handles {
        assert_eq!(handle.verification.checker, VerificationChecker::Runner, "{}", handle.verification.note);
    }
    // Single sizes beat the range around them, and size 1 is compiled apart.
    let piece = Piece::load(&handles, &folders, &LoadOptions::new(Device::Cpu)).unwrap();
    let used = |n: i64| std::ptr::from_ref(piece.package_for(&[random(&[n, 16]), random(&[16, 16])]).unwrap());
    assert_eq!(used(2), used(8));
    assert_eq!(used(9), used(64));
    assert_ne!(used(4), used(5));
    assert_ne!(used(1), used(2));
}

fn problem(error: Error, expected: &Expect) {
    expected.assert_eq(&error.to_string());
}

#[tokio::test]
async fn inputs_are_refused_by_what_was_expected_and_nothing_runs() {
    let daemon = daemon();
    let piece = daemon.worker().await.compile(scaled(), |_| ()).await.unwrap();
    let (x, weight) = (random(&[9, 16]), random(&[16, 16]));
    let before = x.copy();
    let refused = |inputs: &[&Tensor], expected: Expect| problem(piece.forward(inputs).unwrap_err(), &expected);
    refused(
        &[&x],
        expect!["1 tensors were given, and the piece takes 2: the graph's tensor arguments, in their order"],
    );
    refused(&[], expect!["0 tensors were given, and the piece takes 2: the graph's tensor arguments, in their order"]);
    refused(
        &[&x, &weight.to_kind(Kind::Double)],
        expect!["tensor 1 (argument 2 of the graph) has dtype float64, and the piece takes float32"],
    );
    refused(
        &[&x, &random(&[15, 16])],
        expect!["tensor 1 (argument 2 of the graph) has sizes [15, 16], and the piece takes [16, 16]"],
    );
    refused(
        &[&random(&[9, 17]), &weight],
        expect![
            "tensor 0 (argument 1 of the graph) has sizes [9, 17], and the piece takes [s0, 16] with s0 = 9, dimension 0 of tensor 0"
        ],
    );
    refused(
        &[&x, &random(&[16])],
        expect!["tensor 1 (argument 2 of the graph) has 1 dimensions, and the piece takes 2: [16, 16]"],
    );
    refused(
        &[&random(&[]), &weight],
        expect![
            "tensor 0 (argument 1 of the graph) has 0 dimensions, and the piece takes at least 1: its size tells what runs the call"
        ],
    );
    refused(
        &[&x, &weight.tr()],
        expect![
            "tensor 1 (argument 2 of the graph) has strides [1, 16], and the piece takes [16, 1]; make it contiguous first (Tensor::contiguous)"
        ],
    );
    refused(
        &[&x, &weight.to_sparse_sparse_dim(2)],
        expect![
            "tensor 1 (argument 2 of the graph) is not a plain tensor: it is sparse, quantised, or lazily conjugated or negated; make it a strided tensor with its values in memory first (to_dense, resolve_conj, resolve_neg)"
        ],
    );
    refused(
        &[&x, &Tensor::new()],
        expect!["tensor 1 (argument 2 of the graph) is not a plain tensor: there is no tensor in it"],
    );
    refused(
        &[&random(&[65, 16]), &weight],
        expect!["size 65 is outside every compiled range: [2, 8], [9, 64], [1, 1], [4, 4]"],
    );
    assert!(x.equal(&before), "a refused call changed its input");
    // Strides of what has one element at most in a dimension do not matter.
    let one = random(&[16, 1]).tr();
    assert_eq!(one.stride(), [1, 1]);
    piece.forward(&[&one, &weight]).unwrap();
}

#[tokio::test]
async fn several_threads_call_one_piece() {
    let daemon = daemon();
    let (handles, folders) = daemon.artifacts(scaled()).await;
    for n_runners in [1, 3] {
        let options = LoadOptions { n_runners: Some(n_runners), ..LoadOptions::new(Device::Cpu) };
        let piece = Arc::new(Piece::load(&handles, &folders, &options).unwrap());
        let threads = (1..=8).map(|n| {
            let piece = piece.clone();
            thread::spawn(move || {
                let weight = random(&[16, 16]);
                for _ in 0..200 {
                    let x = random(&[n * 8, 16]);
                    let [gated, sums, changed] = scaled_eagerly(&x, &weight);
                    let outputs = piece.forward(&[&x, &weight]).unwrap();
                    assert_close(&outputs[0], &gated);
                    assert_close(&outputs[1], &sums);
                    assert_close(&x, &changed);
                }
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[tokio::test]
async fn a_value_that_is_returned_twice_is_two_tensors_and_an_input_can_be_returned() {
    let daemon = daemon();
    let mut graph = GraphBuilder::new(Device::Cpu);
    let n = graph.symbol("n");
    let x = graph.tensor("x", Kind::Float, [n, 4.into()]);
    let doubled = graph.call("torch.mul", [(&x).into(), 2.into()]);
    let graph = graph.finish([doubled.clone(), x, doubled.clone(), doubled]).unwrap();
    let piece = daemon.worker().await.compile(request(graph, plan(&[(2, 8)], &[])), |_| ()).await.unwrap();
    for n in [2, 8] {
        let x = random(&[n, 4]);
        let mut outputs = piece.forward(&[&x]).unwrap();
        assert_eq!(outputs.len(), 4);
        assert_eq!(outputs[1].data_ptr(), x.data_ptr());
        // Each is its owner's to drop.
        drop(outputs.remove(0));
        drop(outputs.remove(2));
        assert_close(&outputs[0], &x);
        assert_close(&outputs[1], &(x * 2.0));
    }
}

#[tokio::test]
async fn what_compiled_code_throws_is_an_error_and_the_piece_goes_on() {
    let daemon = daemon();
    let mut graph = GraphBuilder::new(Device::Cpu);
    let n = graph.symbol("n");
    let index = graph.tensor("index", Kind::Int64, [n]);
    let table = graph.tensor("table", Kind::Float, [10.into(), 4.into()]);
    let rows = graph.call("torch.nn.functional.embedding", [index.into(), table.into()]);
    let graph = graph.finish([rows]).unwrap();
    let piece = daemon.worker().await.compile(request(graph, plan(&[(2, 8)], &[])), |_| ()).await.unwrap();
    let table = random(&[10, 4]);
    let (good, bad) = (Tensor::from_slice(&[3i64, 0, 9]), Tensor::from_slice(&[3i64, 0, 10]));
    for _ in 0..3 {
        assert_close(&piece.forward(&[&good, &table]).unwrap()[0], &table.index_select(0, &good));
        let error = piece.forward(&[&bad, &table]).unwrap_err();
        assert!(matches!(&error, Error::Call { entry, .. } if entry == "e0"), "{error}");
    }
}

#[tokio::test]
async fn a_program_starts_without_its_graphs_and_a_file_is_as_good_as_a_graph() {
    let daemon = daemon();
    let worker = daemon.worker().await;
    let name: piecewised_graph::ProgramName = "two-pieces".parse().unwrap();
    let piece = |index| ProgramPiece { program: name.clone(), run: "one".parse().unwrap(), index, n_pieces: 2 };
    let folder = tempfile::tempdir().unwrap();
    for index in 0..2 {
        let file = folder.path().join("piece.pwgraph");
        let request = piecewised_client::CompileRequest { program: Some(piece(index)), ..scaled() };
        write_graph_file(&file, request).unwrap();
        worker.compile_file(&file, |_| ()).await.unwrap();
    }
    let pieces = worker.program(&name).await.unwrap();
    assert_eq!(pieces.len(), 2);
    let (x, weight) = (random(&[5, 16]), random(&[16, 16]));
    let [gated, ..] = scaled_eagerly(&x, &weight);
    assert_close(&pieces[1].forward(&[&x, &weight]).unwrap()[0], &gated);

    let none = worker.program(&"nothing".parse().unwrap()).await.unwrap_err();
    assert!(none.to_string().contains("NO_SUCH_MANIFEST"), "{none}");
    let missing = worker.compile_file(folder.path().join("nothing"), |_| ()).await.unwrap_err();
    assert!(matches!(&missing, Error::GraphFile(_)), "{missing}");
}

#[tokio::test]
async fn with_two_symbols_the_right_one_is_dispatched_on_and_tensors_have_to_agree() {
    let daemon = daemon();
    let mut graph = GraphBuilder::new(Device::Cpu);
    // The second one stands first among the tensors.
    let (n, m) = (graph.symbol("n"), graph.symbol("m"));
    let y = graph.tensor("y", Kind::Float, [(&m).into(), 8.into()]);
    let x = graph.tensor("x", Kind::Float, [(&n).into(), 8.into()]);
    let z = graph.tensor("z", Kind::Float, [n, m]);
    let y = graph.call_method("t", &y, []);
    let product = graph.call("torch.matmul", [x.into(), y.into()]);
    let sum = graph.call("torch.add", [product.into(), z.into()]);
    let graph = graph.finish([sum]).unwrap();
    let name: piecewised_graph::ProgramName = "two-symbols".parse().unwrap();
    let place = ProgramPiece { program: name.clone(), run: "one".parse().unwrap(), index: 0, n_pieces: 1 };
    let request = piecewised_client::CompileRequest { program: Some(place), ..request(graph, plan(&[(2, 8)], &[])) };
    let worker = daemon.worker().await;
    let piece = worker.compile(request, |_| ()).await.unwrap();
    // The artifact says it too, for who has no graph.
    let without_graph = worker.program(&name).await.unwrap().remove(0);
    let (y, x, z) = (random(&[20, 8]), random(&[3, 8]), random(&[3, 20]));
    let expected = x.matmul(&y.tr()) + &z;
    assert_close(&piece.forward(&[&y, &x, &z]).unwrap()[0], &expected);
    assert_close(&without_graph.forward(&[&y, &x, &z]).unwrap()[0], &expected);
    problem(
        piece.forward(&[&y, &x, &random(&[3, 19])]).unwrap_err(),
        &expect![
            "tensor 2 (argument 4 of the graph) has sizes [3, 19], and the piece takes [s0, s1] with s0 = 3, dimension 0 of tensor 1; s1 = 20, dimension 0 of tensor 0"
        ],
    );
    for piece in [piece, without_graph] {
        let error = piece.forward(&[&random(&[3, 8]), &random(&[20, 8]), &random(&[20, 3])]).unwrap_err();
        assert!(matches!(&error, Error::Client(error) if error.reason() == "SIZE_NOT_COVERED"), "{error}");
    }
}

#[tokio::test]
async fn what_was_compiled_for_a_single_size_is_found_by_it() {
    let daemon = daemon();
    let only_sizes = piecewised_client::CompileRequest { plan: plan(&[], &[4]), ..scaled() };
    let piece = daemon.worker().await.compile(only_sizes, |_| ()).await.unwrap();
    piece.forward(&[random(&[4, 16]), random(&[16, 16])]).unwrap();
    let error = piece.forward(&[random(&[5, 16]), random(&[16, 16])]).unwrap_err();
    assert!(matches!(&error, Error::Client(error) if error.reason() == "SIZE_NOT_COVERED"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_compiled_is_told_in_the_compilers_words() {
    let daemon = daemon();
    let worker = daemon.worker().await;
    let mut graph = GraphBuilder::new(Device::Cpu);
    let n = graph.symbol("n");
    let x = graph.tensor("x", Kind::Float, [n, 4.into()]);
    let y = graph.tensor("y", Kind::Float, [5.into(), 4.into()]);
    let product = graph.call("torch.matmul", [x.into(), y.into()]);
    let graph = graph.finish([product]).unwrap();
    let error = worker.compile(request(graph, plan(&[(2, 8)], &[])), |_| ()).await.unwrap_err();
    let Error::NotCompiled { failed } = &error else { panic!("{error}") };
    assert_eq!(failed.len(), 1);
    assert!(error.to_string().starts_with("[2, 8] could not be compiled: "), "{error}");

    let nobody = Endpoint::Unix("/nowhere/socket".into());
    let error = Worker::connect(nobody, WorkerOptions { client: ClientOptions::default(), ..daemon.options() }).await;
    assert_eq!(
        error.unwrap_err().to_string().split(": ").next(),
        Some("no piecewised daemon answers at unix:/nowhere/socket")
    );
}

#[tokio::test]
async fn artifacts_that_this_process_cannot_load_are_refused() {
    let daemon = daemon();
    let (_, folders) = daemon.artifacts(scaled()).await;
    let load =
        |folder: &Path, entry: &str, device| Package::load(folder, entry, &LoadOptions::new(device)).unwrap_err();
    let refused = |expected: &str, change: &dyn Fn(&Path)| {
        let copy = copied(&folders[0]);
        Package::load(copy.path(), "e0", &LoadOptions::new(Device::Cpu)).expect(expected);
        change(copy.path());
        let error = load(copy.path(), "e0", Device::Cpu).to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    };
    refused("manifest.json can't be loaded: No such file", &|folder| {
        fs::remove_file(folder.join("manifest.json")).unwrap()
    });
    refused("its format is \"inductor\"", &|folder| change_manifest(folder, |it| it["format"] = "inductor".into()));
    refused("compiled by torch 2.9.1, and this program has libtorch 2.11.0", &|folder| {
        change_manifest(folder, |it| it["toolchain"]["torch_version"] = "2.9.1+cpu".into());
    });
    refused("compiled for cuda (NVIDIA H200)", &|folder| {
        change_manifest(folder, |it| {
            it["device"] = serde_json::json!({"type": "cuda", "name": "NVIDIA H200", "capability": "9.0"})
        });
    });
    refused("which nothing in this process registers", &|folder| {
        change_manifest(folder, |it| it["entries"][0]["operators"] = serde_json::json!(["nowhere::op"]));
    });
    refused("packages/e0.pt2 can't be loaded", &|folder| {
        fs::write(folder.join("packages/e0.pt2"), "no package").unwrap()
    });
    refused("packages/e0.pt2 can't be loaded", &|folder| fs::remove_file(folder.join("packages/e0.pt2")).unwrap());
    let error = load(&folders[0], "e9", Device::Cpu).to_string();
    assert!(error.contains("it has no entry \"e9\"; there is e0"), "{error}");
    let error = load_operators(Path::new("/nowhere/operators.so")).unwrap_err().to_string();
    assert!(error.contains("/nowhere/operators.so can't be loaded"), "{error}");
}

#[test]
fn input_errors_can_be_told_apart() {
    let error = InputError::Number { given: 1, expected: 2 };
    assert!(matches!(Error::from(error), Error::Input(InputError::Number { given: 1, .. })));
}
