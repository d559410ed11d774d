//! Executors that crash, hang, talk nonsense, flood their stderr, or are left in the middle: what the caller hears, and that
//! nothing of them stays.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps nothing")]

mod common;

use std::{
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use common::{eventually, job, members, misbehaving, nothing_left, started};
use piecewised_executor::{CompileJob, Executor, ExecutorError, Placement, Unshared};
use tracing_subscriber::fmt::MakeWriter;

/// Runs one job that ends the executor, and returns what the caller hears.
async fn broken_by(id: &str) -> ExecutorError {
    let (mut executor, root) = started().await;
    let pid = executor.pid();
    let job = |id| CompileJob { verify: id == "unverified", ..job(id) };
    let error = executor.compile(&job(id), &mut Unshared(|_: &str| ())).await.unwrap_err();
    assert!(!error.executor_can_go_on() && error.is_retryable(), "{id}: {error}");
    assert!(!executor.is_usable(), "{id}");
    assert!(
        matches!(executor.compile(&job("ok"), &mut Unshared(|_: &str| ())).await, Err(ExecutorError::Broken)),
        "{id}"
    );
    // Without waiting for the drop: it is dead from the moment that the error is told.
    nothing_left(pid, &root).await;
    error
}

#[tokio::test]
async fn a_crash_is_told_with_its_signal_and_last_words() {
    for (id, words) in [
        ("exit", "the executor ended with exit code 3; the last it printed:\nfirst\nRuntimeError: last words"),
        ("kill", "the executor was killed by SIGKILL"),
        ("segv", "the executor was killed by SIGSEGV (a fault in native code: compiler or driver)"),
        ("truncated", "the executor ended with exit code 0"),
        ("mute", "the executor closed its output without ending, and was killed"),
    ] {
        let error = broken_by(id).await;
        assert!(matches!(error, ExecutorError::Crashed { .. }), "{id}: {error}");
        assert_eq!(error.to_string(), words, "{id}");
    }
}

#[tokio::test]
async fn nonsense_is_refused() {
    for (id, words) in [
        ("garbage", "bytes of JSON, the limit is 67108864"),
        ("nonsense", "a message that is not understood"),
        ("huge", "announced 1099511627776 bytes of artifact, the limit is 1073741824"),
        ("stranger", "`done` that is no answer to job stranger"),
        ("outside", "a segment for [1, 17] lies outside of its range [1, 16]"),
        ("empty", "`done` without an artifact"),
        ("unverified", "`done` without the verification that was asked for"),
        ("leased twice", "`lease` that is no answer to job leased twice"),
        ("released", "`release` that is no answer to job released"),
    ] {
        let error = broken_by(id).await;
        assert!(matches!(error, ExecutorError::Protocol { .. }), "{id}: {error}");
        assert!(error.to_string().contains(words), "{id}: {error}");
    }
}

#[tokio::test]
async fn a_crash_takes_its_children_and_theirs_along() {
    let error = broken_by("orphans").await;
    assert!(error.to_string().contains("children are there"), "{error}");
}

#[tokio::test]
async fn a_hang_is_ended_by_its_deadline_with_the_whole_group() {
    let (mut config, root) = misbehaving("ready");
    config.job_deadline = Duration::from_secs(2);
    let mut executor = Executor::spawn(&config, &Placement::default()).await.unwrap();
    let pid = executor.pid();
    let start = Instant::now();
    let mut n_members = 0;
    let error = executor
        .compile(
            &job("hang"),
            &mut Unshared(|phase: &str| {
                if phase == "compile" {
                    n_members = members(pid).len();
                }
            }),
        )
        .await
        .unwrap_err();
    assert!(n_members >= 3, "the misbehaving left {n_members} processes");
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert!(matches!(error, ExecutorError::TimedOut { .. }) && error.is_retryable(), "{error}");
    assert!(error.to_string().ends_with("hanging"), "{error}");
    nothing_left(pid, &root).await;
}

#[tokio::test]
async fn a_dropped_compile_breaks_the_executor_and_kills_its_group() {
    // In the middle of a compile, and in the middle of a frame.
    for id in ["hang", "half"] {
        let (mut executor, root) = started().await;
        let pid = executor.pid();
        let (tell, told) = tokio::sync::oneshot::channel();
        let mut tell = Some(tell);
        let job = job(id);
        let mut host = Unshared(|_: &str| {
            if let Some(tell) = tell.take() {
                tell.send(()).unwrap();
            }
        });
        let compile = executor.compile(&job, &mut host);
        let a_moment = async {
            told.await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        tokio::select! {
            result = compile => panic!("{result:?}"),
            () = a_moment => {}
        }
        assert!(
            matches!(
                executor.compile(&common::job("ok"), &mut Unshared(|_: &str| ())).await,
                Err(ExecutorError::Broken)
            ),
            "{id}"
        );
        nothing_left(pid, &root).await;
    }
}

#[tokio::test]
async fn a_dropped_start_leaves_nothing() {
    let (config, root) = misbehaving("hang");
    let placement = Placement::default();
    let spawn = Executor::spawn(&config, &placement);
    assert!(tokio::time::timeout(Duration::from_millis(300), spawn).await.is_err());
    eventually("no folder is left", || std::fs::read_dir(root.path()).unwrap().next().is_none()).await;
}

#[tokio::test]
async fn one_that_died_in_its_sleep_is_noticed() {
    let (mut executor, root) = started().await;
    let pid = executor.pid();
    let leader = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(leader, rustix::process::Signal::KILL).unwrap();
    eventually("it is not usable any more", || !executor.is_usable()).await;
    let error = executor.compile(&job("ok"), &mut Unshared(|_: &str| ())).await.unwrap_err();
    assert!(matches!(error, ExecutorError::Crashed { .. }), "{error}");
    nothing_left(pid, &root).await;
}

#[tokio::test]
async fn a_flood_on_stderr_neither_blocks_it_nor_fills_the_log() {
    let (written, _guard) = log();
    let (mut executor, _root) = started().await;
    executor.compile(&job("flood"), &mut Unshared(|_: &str| ())).await.unwrap();
    eventually("the flood was seen", || written.text().contains("noise 499")).await;
    let n_lines = written.text().lines().count();
    assert!(n_lines < 1500, "{n_lines} lines in the log");
}

#[tokio::test]
async fn what_it_prints_is_logged_with_its_job() {
    let (written, _guard) = log();
    let (mut executor, _root) = started().await;
    executor.compile(&job("say:1234"), &mut Unshared(|_: &str| ())).await.unwrap();
    eventually("it is in the log", || written.text().contains("hello from the compiler")).await;
    let text = written.text();
    let line = text.lines().find(|line| line.contains("hello from the compiler")).unwrap();
    assert!(line.contains(r#""target":"executor""#) && line.contains(r#""job":"say:1234""#), "{line}");
}

/// Collects this thread's log as JSON lines.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Written {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn log() -> (Written, tracing::subscriber::DefaultGuard) {
    let written = Written::default();
    let subscriber = tracing_subscriber::fmt().json().with_writer(written.clone()).finish();
    (written, tracing::subscriber::set_default(subscriber))
}
