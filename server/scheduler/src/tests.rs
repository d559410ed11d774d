//! The queue's state machine against a plain model, for arbitrary orders of what callers and workers do.
//!
//! With real executors, deaths and restarts it is tried in `tests/python/test_service.py`.
#![allow(clippy::unwrap_used)]

mod programs;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::FutureExt as _;
use piecewised_graph::{
    Digest, Handle, PhaseTiming, Segment, Timings, VerificationOutcome,
    request::{ArtifactFormat, CompileOptions, DeviceKind, Toolchain},
};
use piecewised_store::{Store, StoreConfig};
use proptest::prelude::*;
use tokio::sync::watch;

use crate::{
    JobFailure, JobSpec, Origin, Priority,
    Priority::{Background, Interactive},
    Scheduler, SchedulerConfig, Ticket, ToolchainStatus, VerifyPolicy, Watcher,
    flights::{Flights, Joined},
    job::Job,
};

const MAX_QUEUED: usize = 4;
const MAX_QUEUED_IN_BACKGROUND: usize = 2;

fn spec(key: u8) -> JobSpec {
    let text = String::new;
    JobSpec {
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
    }
}

/// What a job for `spec(key)` leaves in the store.
fn handle(key: u8) -> Handle {
    let spec = spec(key);
    Handle {
        key: spec.key,
        graph_digest: spec.graph_digest,
        range: None,
        digest: spec.key,
        size_bytes: 1,
        format: spec.format,
        toolchain: spec.toolchain,
        device: spec.device,
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
    }
}

/// What happens next. Positions count into what there is, modulo its number.
#[derive(Debug, Clone)]
enum Step {
    /// A caller asks for these keys.
    Submit(Vec<u8>, Priority),
    /// A maker has looked into the store again: nothing there.
    Enqueue(usize),
    /// A maker has found it in the store.
    FoundInStore(usize),
    /// A worker asks for a job.
    Take,
    /// A worker is done.
    Finish(usize),
    /// A caller leaves.
    Leave(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (prop::collection::vec(0..6u8, 1..4), prop_oneof![Just(Interactive), Just(Background)])
            .prop_map(|(keys, priority)| Step::Submit(keys, priority)),
        3 => any::<usize>().prop_map(Step::Enqueue),
        1 => any::<usize>().prop_map(Step::FoundInStore),
        3 => Just(Step::Take),
        3 => any::<usize>().prop_map(Step::Finish),
        2 => any::<usize>().prop_map(Step::Leave),
    ];
    prop::collection::vec(step, 0..60)
}

#[derive(Default)]
struct Model {
    settling: Vec<Arc<Job>>,
    /// By priority.
    interactive: VecDeque<Arc<Job>>,
    background: VecDeque<Arc<Job>>,
    running: Vec<Arc<Job>>,
    /// Keys of jobs that no interactive caller has asked for.
    unwanted: BTreeSet<Digest>,
    watchers: Vec<Watcher>,
}

impl Model {
    fn live(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.settling.iter().chain(&self.interactive).chain(&self.background).chain(&self.running)
    }

    fn has_key(&self, key: u8) -> bool {
        self.live().any(|job| job.spec.key == Digest([key; 32]))
    }

    fn n_watchers(&self, job: &Arc<Job>) -> usize {
        self.watchers.iter().filter(|watcher| Arc::ptr_eq(watcher.job(), job)).count()
    }

    fn n_waiting(&self) -> usize {
        self.settling.len() + self.interactive.len() + self.background.len()
    }

    fn n_waiting_in_background(&self) -> usize {
        let waiting = self.settling.iter().chain(&self.interactive).chain(&self.background);
        waiting.filter(|job| self.unwanted.contains(&job.spec.key)).count()
    }

    fn has_room(&self, n_new: usize, priority: Priority) -> bool {
        let fits = self.n_waiting() + n_new <= MAX_QUEUED;
        n_new == 0
            || fits && (priority == Interactive || self.n_waiting_in_background() + n_new <= MAX_QUEUED_IN_BACKGROUND)
    }

    /// An interactive caller wants the job of this key.
    fn promote(&mut self, key: Digest) {
        if self.unwanted.remove(&key)
            && let Some(at) = self.background.iter().position(|job| job.spec.key == key)
        {
            self.interactive.extend(self.background.remove(at));
        }
    }

    fn next(&mut self) -> Option<Arc<Job>> {
        loop {
            let job = self.interactive.pop_front().or_else(|| self.background.pop_front())?;
            if self.n_watchers(&job) > 0 {
                return Some(job);
            }
            self.unwanted.remove(&job.spec.key);
        }
    }
}

fn pick<T>(items: &mut Vec<T>, at: usize) -> Option<T> {
    (!items.is_empty()).then(|| items.remove(at % items.len()))
}

fn outcome() -> Result<Handle, JobFailure> {
    Err(JobFailure::cancelled())
}

fn apply(flights: &Flights, model: &mut Model, step: Step) {
    match step {
        Step::Submit(keys, priority) => {
            let new: BTreeSet<u8> = keys.iter().copied().filter(|key| !model.has_key(*key)).collect();
            let joined = flights.join_or_create(keys.iter().copied().map(spec).collect(), priority);
            assert_eq!(
                joined.is_ok(),
                model.has_room(new.len(), priority),
                "all or nothing, by the room that there is"
            );
            for (key, joined) in keys.into_iter().zip(joined.into_iter().flatten()) {
                match joined {
                    Joined::Existing(watcher) => {
                        assert!(model.has_key(key), "joined a job that is over");
                        assert!(matches!(watcher.origin(), Origin::Joined { .. }));
                        if priority == Interactive {
                            model.promote(watcher.key());
                        }
                        model.watchers.push(watcher);
                    }
                    Joined::Created(watcher) => {
                        assert!(!model.has_key(key), "a second job for a key");
                        let before = match priority {
                            Interactive => model.n_waiting() - model.n_waiting_in_background(),
                            Background => model.n_waiting(),
                        };
                        match watcher.origin() {
                            Origin::Queued { position } => assert_eq!(*position, before),
                            Origin::Joined { .. } => panic!("made, not joined"),
                        }
                        if priority == Background {
                            model.unwanted.insert(watcher.key());
                        }
                        model.settling.push(Arc::clone(watcher.job()));
                        model.watchers.push(watcher);
                    }
                }
            }
        }
        Step::Enqueue(at) => {
            if let Some(job) = pick(&mut model.settling, at) {
                flights.enqueue(&job);
                if model.unwanted.contains(&job.spec.key) {
                    model.background.push_back(job);
                } else {
                    model.interactive.push_back(job);
                }
            }
        }
        Step::FoundInStore(at) => {
            if let Some(job) = pick(&mut model.settling, at) {
                flights.finish(&job, outcome());
                model.unwanted.remove(&job.spec.key);
                assert!(job.state.borrow().outcome.is_some());
            }
        }
        Step::Take => {
            let expected = model.next();
            match (flights.next().now_or_never(), expected) {
                (None, None) => {}
                (Some(Some(job)), Some(expected)) => {
                    assert!(Arc::ptr_eq(&job, &expected), "interactive before background, and first in, first out");
                    model.running.push(job);
                }
                (taken, expected) => {
                    panic!(
                        "took {:?}, expected {:?}",
                        taken.flatten().map(|job| job.id.clone()),
                        expected.map(|job| job.id.clone())
                    )
                }
            }
        }
        Step::Finish(at) => {
            if let Some(job) = pick(&mut model.running, at) {
                flights.finish(&job, outcome());
                model.unwanted.remove(&job.spec.key);
                for watcher in model.watchers.iter_mut().filter(|watcher| Arc::ptr_eq(watcher.job(), &job)) {
                    assert!(watcher.state().outcome.is_some(), "every watcher hears of the end");
                }
            }
        }
        Step::Leave(at) => drop(pick(&mut model.watchers, at)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn one_job_per_key_whatever_the_order(steps in steps()) {
        let flights = Flights::new(MAX_QUEUED);
        let mut model = Model::default();
        for step in steps {
            apply(&flights, &mut model, step);
        }
        prop_assert!(model.n_waiting_in_background() <= MAX_QUEUED_IN_BACKGROUND);
        // Closing hands out what is still wanted, and then ends.
        while let Some(job) = pick(&mut model.settling, 0) {
            flights.finish(&job, outcome());
        }
        flights.close();
        prop_assert!(flights.join_or_create(vec![spec(0)], Interactive).is_err());
        while let Some(Some(job)) = flights.next().now_or_never() {
            flights.finish(&job, outcome());
        }
        prop_assert!(matches!(flights.next().now_or_never(), Some(None)));
    }
}

/// Every sequence of up to six steps over two keys and both priorities: whoever joins whom, before or after it was queued, taken,
/// finished or left.
#[test]
fn every_short_order_of_joins_agrees_with_the_model() {
    let alphabet = [
        Step::Submit(vec![0], Interactive),
        Step::Submit(vec![0], Background),
        Step::Submit(vec![1, 1], Background),
        Step::Submit(vec![1], Interactive),
        Step::Enqueue(0),
        Step::Take,
        Step::Finish(0),
        Step::Leave(0),
    ];
    let n_steps = 6u32;
    for number in 0..alphabet.len().pow(n_steps) {
        let flights = Flights::new(MAX_QUEUED);
        let mut model = Model::default();
        for place in 0..n_steps {
            let step = number / alphabet.len().pow(place) % alphabet.len();
            apply(&flights, &mut model, alphabet[step].clone());
        }
    }
}

/// The keys in the order in which a worker gets them, when all of these were asked for before it came.
fn served(asked: &[(u8, Priority)]) -> Vec<u8> {
    let flights = Flights::new(100);
    let mut watchers = Vec::new();
    for &(key, priority) in asked {
        let joined = flights.join_or_create(vec![spec(key)], priority).unwrap().remove(0);
        let (Joined::Created(watcher) | Joined::Existing(watcher)) = joined;
        flights.enqueue(watcher.job());
        watchers.push(watcher);
    }
    std::iter::from_fn(|| flights.next().now_or_never().flatten()).map(|job| job.spec.key.0[0]).collect()
}

#[test]
fn interactive_jobs_go_first_and_a_join_makes_a_job_interactive() {
    let check = |asked: &[(u8, Priority)], expected: &[u8]| assert_eq!(served(asked), expected, "{asked:?}");
    check(&[(1, Background), (2, Interactive), (3, Background), (4, Interactive)], &[2, 4, 1, 3]);
    // 3 becomes interactive behind 2, which was so before; 1 stays where it was.
    check(&[(1, Background), (2, Interactive), (3, Background), (3, Interactive), (4, Interactive)], &[2, 3, 4, 1]);
    // A background caller makes nothing less urgent.
    check(&[(1, Interactive), (2, Interactive), (1, Background)], &[1, 2]);
}

#[test]
fn background_jobs_leave_half_of_the_queue_to_interactive_ones() {
    let flights = Flights::new(MAX_QUEUED);
    let mut watchers = Vec::new();
    let mut ask = |keys: &[u8], priority| {
        let joined = flights.join_or_create(keys.iter().copied().map(spec).collect(), priority);
        joined.map(|joined| watchers.extend(joined)).map_err(|error| error.to_string())
    };
    ask(&[1, 2], Background).unwrap();
    assert!(ask(&[3], Background).unwrap_err().starts_with("2 jobs are waiting and 1 more do not fit, the limit is 2"));
    ask(&[1], Background).unwrap();
    ask(&[4, 5], Interactive).unwrap();
    assert!(
        ask(&[6], Interactive).unwrap_err().starts_with("4 jobs are waiting and 1 more do not fit, the limit is 4")
    );
    // What becomes interactive makes room in the background's half, though not in the whole.
    ask(&[1], Interactive).unwrap();
    assert!(ask(&[3], Background).unwrap_err().contains("the limit is 4"));
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
async fn a_worker_that_waits_is_woken_by_a_job_and_by_the_end() {
    let flights = Arc::new(Flights::new(MAX_QUEUED));
    let worker = tokio::spawn({
        let flights = Arc::clone(&flights);
        async move {
            let mut n_jobs = 0;
            while let Some(job) = flights.next().await {
                n_jobs += 1;
                flights.finish(&job, outcome());
            }
            n_jobs
        }
    });
    let mut watchers = Vec::new();
    for key in 0..3 {
        tokio::task::yield_now().await;
        match flights.join_or_create(vec![spec(key)], Interactive).unwrap().remove(0) {
            Joined::Created(watcher) => {
                flights.enqueue(watcher.job());
                watchers.push(watcher);
            }
            Joined::Existing(_) => panic!("there was none"),
        }
    }
    for watcher in &mut watchers {
        while watcher.state().outcome.is_none() {
            watcher.changed().await;
        }
    }
    flights.close();
    assert_eq!(worker.await.unwrap(), 3);
}

/// A caller whose call is cancelled between the making of its jobs and their queueing leaves none behind: they are queued, found to be
/// wanted by nobody, and dropped. A job that stayed would keep every later caller of its key, and a shutdown, waiting.
#[tokio::test]
async fn a_submission_that_is_cancelled_half_way_leaves_no_job_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(StoreConfig::new(folder.path())).await.unwrap();
    let (_status, toolchain) = watch::channel(ToolchainStatus::Probing);
    let config = SchedulerConfig {
        n_executors: 1,
        max_queued_jobs: MAX_QUEUED,
        max_attempts: 1,
        max_pieces: 1,
        idle_timeout: Duration::from_secs(3600),
        verify: VerifyPolicy::Always,
    };
    let scheduler = Scheduler::start(config, store, toolchain);
    assert!(
        scheduler.submit(vec![spec(1), spec(2)], Interactive).now_or_never().is_none(),
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
        let config = SchedulerConfig {
            n_executors: 1,
            max_queued_jobs: MAX_QUEUED,
            max_attempts: 1,
            max_pieces: 1,
            idle_timeout: Duration::from_secs(3600),
            verify: policy,
        };
        let scheduler = Scheduler::start(config, store.clone(), toolchain);
        let tickets = scheduler.submit((1..=3).map(spec).collect(), Interactive).await.unwrap();
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
