//! Flights and the scheduler around the queue, whose own tests are in `queue/tests.rs`.
//!
//! With real executors, deaths and restarts it is tried in `tests/python/test_service*.py`.
#![allow(clippy::unwrap_used)]

mod programs;

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use piecewised_graph::{
    Digest, Handle, PhaseTiming, Segment, Timings, VerificationOutcome,
    request::{ArtifactFormat, CompileOptions, DeviceKind, Toolchain},
};
use piecewised_store::{Store, StoreConfig};
use tokio::sync::watch;

use crate::{
    Abandoned, JobFailure, JobSpec, Peer,
    Priority::Interactive,
    Scheduler, SchedulerConfig, SubmitError, Ticket, ToolchainStatus, VerifyPolicy, Watcher,
    flights::{Flights, Joined},
    queue::{Queue, Room},
    slots::Slots,
};

fn config() -> SchedulerConfig {
    SchedulerConfig {
        n_executors: 1,
        max_executor_memory_bytes: u64::MAX,
        max_jobs_per_gpu: Some(1),
        max_queued_jobs: 4,
        max_queued_jobs_per_peer: 4,
        max_queued_bytes_per_peer: 1 << 20,
        max_attempts: 1,
        job_deadline: Duration::from_secs(3600),
        abandoned: Abandoned::Finish,
        max_pieces: 1,
        idle_timeout: Duration::from_secs(3600),
        gpu_idle_timeout: Duration::from_secs(3600),
        verify: VerifyPolicy::Always,
    }
}

fn flights(abandoned: Abandoned) -> Arc<Flights> {
    let room = Room { max_jobs: 4, max_jobs_per_peer: 4, max_bytes_per_peer: 1 << 20 };
    Arc::new(Flights::new(Queue::new(room, Slots::new(1, u64::MAX, Some(1))), 1, abandoned))
}

fn peer() -> Peer {
    Peer::new("a")
}

fn ask(flights: &Arc<Flights>, key: u8) -> Watcher {
    match flights.join_or_create(&peer(), Interactive, vec![spec(key)]).unwrap().remove(0) {
        Joined::Created(watcher) => {
            flights.enqueue(watcher.job());
            watcher
        }
        Joined::Existing(watcher) => watcher,
    }
}

fn outcome() -> Result<Handle, JobFailure> {
    Err(JobFailure::cancelled())
}

pub(crate) fn spec(key: u8) -> Arc<JobSpec> {
    let text = String::new;
    Arc::new(JobSpec {
        key: Digest([key; 32]),
        graph_digest: Digest([0; 32]),
        graph: "{}".into(),
        range: None,
        dispatch_argument: None,
        hint: None,
        options: CompileOptions::default(),
        format: ArtifactFormat::Inductor,
        toolchain: Toolchain {
            fingerprint: text(),
            python_version: text(),
            torch_version: text(),
            torch_git_version: text(),
            triton_version: text(),
            cuda_version: text(),
            executable: text(),
        },
        device: DeviceKind { r#type: text(), name: text(), capability: text() },
        frontend: None,
        label: "".into(),
        key_record: Default::default(),
    })
}

/// What a job for `spec(key)` leaves in the store.
pub(crate) fn handle(key: u8) -> Handle {
    let spec = spec(key);
    Handle {
        key: spec.key,
        graph_digest: spec.graph_digest,
        range: None,
        digest: spec.key,
        size_bytes: 1,
        format: spec.format,
        toolchain: spec.toolchain.clone(),
        device: spec.device.clone(),
        segments: vec![Segment { range: None, entry: "e0".into(), guards: Vec::new() }],
        dispatch_argument: None,
        hint: None,
        returns_tuple: true,
        n_arguments: 1,
        timings: Timings {
            phases: vec![PhaseTiming { phase: "compile".into(), seconds: f64::from(key) }],
            ..Timings::default()
        },
        created_unix_ms: 0,
        guard_symbols: Vec::new(),
        verification: Default::default(),
        tuning: Default::default(),
        latencies: Vec::new(),
        key_record: Default::default(),
        signature: None,
    }
}

#[test]
fn which_keys_are_verified_is_decided_by_the_key() {
    let key = |n: u32| Digest::of(&n.to_le_bytes());
    let n_wanted = |policy: VerifyPolicy| (0..1000).filter(|&n| policy.wants(&key(n))).count();
    assert_eq!(n_wanted(VerifyPolicy::Off), 0);
    assert_eq!(n_wanted(VerifyPolicy::Always), 1000);
    assert_eq!(n_wanted(VerifyPolicy::Sample { percent: 0 }), 0);
    assert_eq!(n_wanted(VerifyPolicy::Sample { percent: 100 }), 1000);
    assert!((60..140).contains(&n_wanted(VerifyPolicy::Sample { percent: 10 })));
    // Who is in a smaller sample is in a larger one.
    let (small, large) = (VerifyPolicy::Sample { percent: 10 }, VerifyPolicy::Sample { percent: 30 });
    assert!((0..1000).all(|n| !small.wants(&key(n)) || large.wants(&key(n))));
}

#[tokio::test]
async fn workers_that_wait_are_woken_by_jobs_by_executors_that_are_free_again_and_by_the_end() {
    let flights = flights(Abandoned::Finish);
    let worker = |flights: Arc<Flights>| async move {
        let mut n_jobs = 0;
        while let Some((job, _)) = flights.next().await {
            n_jobs += 1;
            tokio::task::yield_now().await;
            flights.finish(&job, outcome());
        }
        n_jobs
    };
    // One executor, so that the second worker often finds none free.
    let workers = [tokio::spawn(worker(Arc::clone(&flights))), tokio::spawn(worker(Arc::clone(&flights)))];
    let mut watchers = Vec::new();
    for key in 0..4 {
        tokio::task::yield_now().await;
        watchers.push(ask(&flights, key));
    }
    for watcher in &mut watchers {
        while watcher.state().outcome.is_none() {
            watcher.changed().await;
        }
    }
    flights.close();
    let mut n_jobs = 0;
    for worker in workers {
        n_jobs += worker.await.unwrap();
    }
    assert_eq!(n_jobs, 4);
}

#[test]
fn the_last_who_leaves_drops_what_waits_and_ends_what_runs_where_that_is_the_policy() {
    for (abandoned, is_ended) in [(Abandoned::Finish, false), (Abandoned::End, true)] {
        let flights = flights(abandoned);
        let (running, waiting) = (ask(&flights, 1), ask(&flights, 2));
        let (job, _) = flights.next().now_or_never().flatten().unwrap();
        let other = ask(&flights, 1);
        drop(running);
        assert!(!job.end.is_cancelled(), "somebody still waits for it");
        drop((other, waiting));
        assert_eq!(flights.counts(), (0, 1));
        assert_eq!(job.end.is_cancelled(), is_ended);
        // Whoever asks now never hears that it was cancelled: he joins one that goes on, or gets one of his own.
        let again = ask(&flights, 1);
        assert_eq!(Arc::ptr_eq(again.job(), &job), !is_ended);
        flights.finish(&job, outcome());
        assert_eq!(again.job().state.borrow().outcome.is_some(), !is_ended);
    }
}

#[test]
fn a_refusal_says_when_to_ask_again() {
    let flights = flights(Abandoned::Finish);
    let _watchers: Vec<_> = (0..4).map(|key| ask(&flights, key)).collect();
    let refused = |keys: std::ops::Range<u8>| flights.join_or_create(&peer(), Interactive, keys.map(spec).collect());
    match refused(4..5).map(drop).unwrap_err() {
        SubmitError::QueueFull { retry_after: Some(delay), .. } => assert!(delay >= Duration::from_secs(1)),
        other => panic!("{other}"),
    }
    assert!(matches!(refused(4..9).map(drop), Err(SubmitError::QueueFull { retry_after: None, .. })));
}

/// Nobody has to wait for the same compiler to say the same thing again; an operator can have it said again.
#[tokio::test]
async fn a_failure_that_is_remembered_is_told_at_once_until_it_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(StoreConfig::new(folder.path())).await.unwrap();
    let (_status, toolchain) = watch::channel(ToolchainStatus::Probing);
    let scheduler = Scheduler::start(config(), store.clone(), toolchain);
    let key = spec(1).key;
    let failed = |reason| JobFailure { reason, message: "no such operator".into(), retryable: false, age: None };
    crate::failures::remember(&store, &key, &failed("COMPILE_ERROR".into())).await;
    crate::failures::remember(&store, &spec(2).key, &failed("VERIFICATION_FAILED".into())).await;
    let peer = peer();
    let submit = || scheduler.submit(&peer, Interactive, vec![spec(1), spec(2)]);
    let tickets = submit().await.unwrap();
    match &tickets[..] {
        [Ticket::Failed { key: failed, failure }, Ticket::Running(_)] => {
            assert_eq!(*failed, key);
            assert_eq!((failure.reason.as_str(), failure.message.as_str()), ("COMPILE_ERROR", "no such operator"));
            assert!(failure.age.is_some() && !failure.retryable);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(scheduler.forget_failures(Some(key)).await.unwrap(), 1);
    assert!(matches!(submit().await.unwrap()[..], [Ticket::Running(_), Ticket::Running(_)]));
    scheduler.shutdown(Duration::ZERO).await;
}

/// A caller whose call is cancelled between the making of its jobs and their queueing leaves none behind: they are queued, found to be
/// wanted by nobody, and dropped. A job that stayed would keep every later caller of its key, and a shutdown, waiting.
#[tokio::test]
async fn a_submission_that_is_cancelled_half_way_leaves_no_job_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(StoreConfig::new(folder.path())).await.unwrap();
    let (_status, toolchain) = watch::channel(ToolchainStatus::Probing);
    let scheduler = Scheduler::start(config(), store, toolchain);
    assert!(
        scheduler.submit(&peer(), Interactive, vec![spec(1), spec(2)]).now_or_never().is_none(),
        "dropped while it was under way"
    );
    // Waits for every job; one that is neither queued nor ended would never let it.
    scheduler.shutdown(Duration::from_secs(3600)).await;
    assert_eq!(scheduler.drain(), 0);
}

/// What was stored under a laxer policy is compiled again under a stricter one; what could not be compared is not.
#[tokio::test]
async fn a_stored_artifact_that_should_have_been_verified_counts_as_absent() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(StoreConfig::new(folder.path())).await.unwrap();
    let outcomes = [VerificationOutcome::NotDone, VerificationOutcome::Passed, VerificationOutcome::NotComparable];
    for (key, outcome) in (1..).zip(outcomes) {
        let mut handle = handle(key);
        let artifact = vec![key];
        handle.digest = Digest::of(&artifact);
        handle.verification.outcome = outcome;
        store.put(handle, artifact.into()).await.unwrap();
    }
    for (policy, expected) in [(VerifyPolicy::Off, [true, true, true]), (VerifyPolicy::Always, [false, true, true])] {
        let (_status, toolchain) = watch::channel(ToolchainStatus::Probing);
        let scheduler = Scheduler::start(SchedulerConfig { verify: policy, ..config() }, store.clone(), toolchain);
        let tickets = scheduler.submit(&peer(), Interactive, (1..=3).map(spec).collect()).await.unwrap();
        let is_stored: Vec<_> = tickets.iter().map(|ticket| matches!(ticket, Ticket::Stored(_))).collect();
        assert_eq!(is_stored, expected, "{policy:?}");
        for (key, expected) in (1..).zip(expected) {
            assert_eq!(scheduler.stored(&Digest([key; 32])).await.unwrap().is_some(), expected);
        }
        drop(tickets);
        // A worker that has the job already waits for a toolchain.
        scheduler.shutdown(Duration::ZERO).await;
    }
}
