//! From the start of an executor to its end: what it sees, what it answers, what is left of it.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps nothing")]

mod common;

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, time::Duration};

use common::{eventually, job, members, misbehaving, nothing_left, python, started};
use piecewised_executor::{Executor, ExecutorError, FailureReason, Placement, Unshared, find_python};
use piecewised_graph::request::OptionValue;
use piecewised_plan::Range;

#[tokio::test]
async fn a_job_is_answered_and_the_next_one_too() {
    let (mut executor, _root) = started().await;
    assert_eq!(executor.hello().functions, ["_operator.add"]);
    for _ in 0..2 {
        let mut phases = Vec::new();
        let outcome =
            executor.compile(&job("ok"), &mut Unshared(|phase: &str| phases.push(phase.to_owned()))).await.unwrap();
        assert_eq!(phases, ["rebuild", "compile"]);
        assert_eq!(outcome.artifact, "artifact");
        let ranges: Vec<_> = outcome.segments.iter().map(|segment| segment.range).collect();
        assert_eq!(ranges, [Range::new(1, 1).ok(), Range::new(2, 16).ok()]);
        assert_eq!((outcome.returns_tuple, outcome.n_arguments, outcome.timings.cpu_s), (true, 3, 2.0));
    }
    assert!(executor.is_usable());
}

#[tokio::test]
async fn the_job_arrives_as_the_protocol_has_it() {
    let (mut executor, _root) = started().await;
    let mut job = job("echo");
    job.options.inductor = BTreeMap::from([("max_autotune".to_owned(), OptionValue::Bool(true))]);
    let outcome = executor.compile(&job, &mut Unshared(|_: &str| ())).await.unwrap();
    let seen: serde_json::Value = serde_json::from_slice(&outcome.artifact).unwrap();
    let expected = serde_json::json!({
        "job": "echo",
        "graph": {"nodes": []},
        "range": [1, 16],
        "dispatch_argument": 0,
        "hint": 8,
        "options": {
            "inductor": {"max_autotune": {"bool": true}},
            "torch": {
                "default_dtype": "float32",
                "float32_matmul_precision": "highest",
                "deterministic_algorithms": false,
                "num_threads": 0,
                "autocast": [],
            },
            "specialisation": "range",
            "tuning": "fast",
        },
        "format": "inductor",
        "device": {"type": "cpu", "name": "misbehaving", "capability": ""},
        "verify": false,
        "frontend": null,
    });
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_large_graph_and_a_large_artifact_pass() {
    let (mut executor, _root) = started().await;
    let graph = format!(r#"{{"nodes":["{}"]}}"#, "x".repeat(5_000_000));
    let large = piecewised_executor::CompileJob { graph: graph.into(), ..job("large") };
    let outcome = executor.compile(&large, &mut Unshared(|_: &str| ())).await.unwrap();
    assert_eq!(outcome.artifact.len(), 256 * 40_000);
    assert!(outcome.artifact.iter().enumerate().all(|(i, byte)| *byte == (i % 256) as u8));
}

#[tokio::test]
async fn it_sees_its_own_folder_and_nothing_secret() {
    let (mut config, root) = misbehaving("ready");
    config.environment.insert("AWS_SECRET_ACCESS_KEY".into(), "secret".into());
    config.nice = 7;
    config.n_compile_threads = Some(2);
    let mut executor = Executor::spawn(&config, &Placement::default()).await.unwrap();
    let outcome = executor.compile(&job("surroundings"), &mut Unshared(|_: &str| ())).await.unwrap();
    let seen: serde_json::Value = serde_json::from_slice(&outcome.artifact).unwrap();

    let folder = fs::read_dir(root.path()).unwrap().next().unwrap().unwrap().path();
    assert_eq!(folder.metadata().unwrap().mode() & 0o777, 0o700);
    let environment = &seen["environment"];
    let inside = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    assert_eq!(environment["TMPDIR"], inside("tmp"));
    assert_eq!(environment["TORCHINDUCTOR_CACHE_DIR"], inside("inductor"));
    assert_eq!(environment["TRITON_CACHE_DIR"], inside("triton"));
    assert_eq!(environment["TORCHINDUCTOR_COMPILE_THREADS"], "2");
    assert!(environment.get("AWS_SECRET_ACCESS_KEY").is_none());
    assert_eq!(seen["cwd"], inside("work"));
    assert_eq!(seen["nice"], 7);
    assert_eq!(seen["oom_score_adj"], "500");
    assert_eq!(seen["pgid"], executor.pid());
}

#[tokio::test]
async fn a_compile_error_leaves_the_executor_well() {
    let (mut executor, _root) = started().await;
    let error = executor.compile(&job("failed"), &mut Unshared(|_: &str| ())).await.unwrap_err();
    assert!(error.executor_can_go_on() && !error.is_retryable());
    let ExecutorError::Failed { reason: FailureReason::CompileError, message } = error else { panic!("{error}") };
    assert!(message.starts_with("no such thing") && message.len() <= 16 << 10);
    executor.compile(&job("ok"), &mut Unshared(|_: &str| ())).await.unwrap();
}

#[tokio::test]
async fn a_graph_that_is_not_json_is_never_sent() {
    let (mut executor, _root) = started().await;
    let bad = piecewised_executor::CompileJob { graph: "{".into(), ..job("ok") };
    let error = executor.compile(&bad, &mut Unshared(|_: &str| ())).await.unwrap_err();
    assert!(matches!(error, ExecutorError::BadJob { .. }) && error.executor_can_go_on() && !error.is_retryable());
    executor.compile(&job("ok"), &mut Unshared(|_: &str| ())).await.unwrap();
}

#[tokio::test]
async fn shutdown_leaves_nothing() {
    let (executor, root) = started().await;
    let pid = executor.pid();
    executor.shutdown().await;
    assert_eq!(members(pid), [0; 0]);
    assert!(fs::read_dir(root.path()).unwrap().next().is_none());
}

#[tokio::test]
async fn dropping_it_leaves_nothing() {
    let (executor, root) = started().await;
    let pid = executor.pid();
    assert_eq!(members(pid), [pid]);
    drop(executor);
    nothing_left(pid, &root).await;
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_leaves_nothing() {
    for (start, words, retry) in [
        ("exit", "it ended with exit code 1; the last it printed:\nModuleNotFoundError: No module named 'torch'", true),
        ("hang", "it was not ready after 1 s; the last it printed:\nimporting for ever", true),
        ("unusable", "cannot compile: torch is too old here.", false),
        ("version", "broke the protocol: it speaks version 1, this daemon 4", true),
        ("garbage", "broke the protocol: a frame announced 1350136936 bytes of JSON", true),
    ] {
        let (mut config, root) = misbehaving(start);
        config.ready_deadline = Duration::from_secs(if start == "hang" { 1 } else { 60 });
        let error = Executor::spawn(&config, &Placement::default()).await.unwrap_err();
        assert!(error.to_string().contains(words), "{start}: {error}");
        assert_eq!(error.is_retryable(), retry, "{start}");
        eventually("no folder is left", || fs::read_dir(root.path()).unwrap().next().is_none()).await;
    }
}

#[tokio::test]
async fn an_interpreter_that_is_not_there_is_a_spawn_error() {
    let (config, root) = misbehaving("ready");
    let error = Executor::spawn(&config.with_python("/no/such/python"), &Placement::default()).await.unwrap_err();
    assert!(matches!(&error, ExecutorError::Spawn { .. }), "{error}");
    assert!(error.to_string().starts_with("cannot start /no/such/python: No such file"), "{error}");
    assert!(fs::read_dir(root.path()).unwrap().next().is_none());
}

#[tokio::test]
async fn the_first_interpreter_that_works_is_found() {
    let (mut config, root) = misbehaving("ready");
    let folder = root.path().join("bin");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("python3"), "#!/bin/sh\necho 'this is no Python' >&2\nexit 7\n").unwrap();
    fs::set_permissions(folder.join("python3"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.display(), python().parent().unwrap().display());
    config.environment.insert("PATH".into(), path.into());

    let mut found = find_python(None, &config).await.unwrap();
    assert_eq!(found.python.parent(), python().parent());
    assert_eq!(found.rejected.len(), 1);
    assert_eq!(found.rejected[0].why, "it ended with exit code 7; the last it printed was: this is no Python");
    found.executor.compile(&job("ok"), &mut Unshared(|_: &str| ())).await.unwrap();

    let named = find_python(Some("python3".as_ref()), &config).await.unwrap_err();
    assert_eq!(named.rejected[0].python, folder.join("python3"));
    config.environment.insert("PATH".into(), folder.into());
    let none = find_python(None, &config).await.unwrap_err();
    assert_eq!(none.rejected, found.rejected);
}
