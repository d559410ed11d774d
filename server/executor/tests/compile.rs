//! The real executor: the embedded source, torch, Inductor, a C++ compiler.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps nothing")]

mod common;

use std::time::Duration;

use common::{
    members, nothing_left, python,
    real::{config, job},
};
use piecewised_executor::{Executor, ExecutorError, FailureReason, Unshared, find_python};
use piecewised_graph::VerificationOutcome;
use tempfile::TempDir;

async fn found() -> (Executor, TempDir, TempDir) {
    let (config, runtime, root) = config();
    (find_python(Some(&python()), &config).await.unwrap().executor, runtime, root)
}

#[tokio::test]
async fn a_graph_is_compiled_and_a_bad_one_does_no_harm() {
    let (mut executor, _runtime, root) = found().await;
    let hello = executor.hello().clone();
    assert!(hello.toolchain.torch_version.starts_with("2."), "{:?}", hello.toolchain);
    assert!(hello.functions.iter().any(|name| name == "torch.add"));
    assert!(hello.options.iter().any(|option| option.name == "max_autotune" && !option.reserved));

    let bad = job(&executor, "bad", "torch.matmul", (2, 16));
    let error = executor.compile(&bad, &mut Unshared(|_: &str| ())).await.unwrap_err();
    let ExecutorError::Failed { reason: FailureReason::CompileError, message } = error else { panic!("{error}") };
    assert!(!message.is_empty());

    let mut phases = Vec::new();
    let good = job(&executor, "good", "torch.add", (1, 16));
    let outcome = executor.compile(&good, &mut Unshared(|phase: &str| phases.push(phase.to_owned()))).await.unwrap();
    assert_eq!(phases.first().map(String::as_str), Some("rebuild"));
    assert_eq!(phases.last().map(String::as_str), Some("verify"));
    assert_eq!(outcome.verification.outcome, VerificationOutcome::Passed);
    assert_eq!((outcome.n_arguments, outcome.returns_tuple), (2, true));
    let mut ranges: Vec<_> = outcome.segments.iter().filter_map(|segment| segment.range).collect();
    ranges.sort();
    assert_eq!((ranges.first().unwrap().start(), ranges.last().unwrap().end()), (1, 16));
    assert!(outcome.artifact.starts_with(b"manifest.json\0"), "the container's first member is its manifest");
    assert!(outcome.timings.total_s > 0.0 && outcome.timings.cpu_s > 0.0);

    let pid = executor.pid();
    assert!(outcome.peak_memory_bytes > 10 << 20, "{}", outcome.peak_memory_bytes);
    executor.shutdown().await;
    nothing_left(pid, &root).await;
}

#[tokio::test]
async fn a_compile_that_is_abandoned_takes_its_compilers_along() {
    let (mut executor, _runtime, root) = found().await;
    let pid = executor.pid();
    let job = job(&executor, "abandoned", "torch.add", (2, 16));
    let mut host = Unshared(|_: &str| ());
    let compile = executor.compile(&job, &mut host);
    let the_compiler_runs = async {
        // Beside the executor and the process that its trials are forked from.
        while members(pid).len() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = compile => panic!("no compiler was ever seen: {result:?}"),
        () = the_compiler_runs => {}
    }
    nothing_left(pid, &root).await;
    assert!(!executor.is_usable());
}
