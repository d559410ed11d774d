//! The queue's state machine against a plain model, for arbitrary orders of what callers and workers do.
//!
//! With real executors, deaths and restarts it is tried in `tests/python/test_service.py`.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::FutureExt as _;
use piecewised_graph::{
    Digest,
    request::{ArtifactFormat, CompileOptions, DeviceKind, Toolchain},
};
use piecewised_store::{Store, StoreConfig};
use proptest::prelude::*;
use tokio::sync::watch;

use crate::{
    JobFailure, JobSpec, Origin, Scheduler, SchedulerConfig, ToolchainStatus, Watcher,
    flights::{Flights, Joined},
    job::Job,
};

const MAX_QUEUED: usize = 4;

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
        verify: false,
    }
}

/// What happens next. Positions count into what there is, modulo its number.
#[derive(Debug, Clone)]
enum Step {
    /// A caller asks for these keys.
    Submit(Vec<u8>),
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
        3 => prop::collection::vec(0..6u8, 1..4).prop_map(Step::Submit),
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
    queued: VecDeque<Arc<Job>>,
    running: Vec<Arc<Job>>,
    watchers: Vec<Watcher>,
}

impl Model {
    fn live(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.settling.iter().chain(&self.queued).chain(&self.running)
    }

    fn has_key(&self, key: u8) -> bool {
        self.live().any(|job| job.spec.key == Digest([key; 32]))
    }

    fn n_watchers(&self, job: &Arc<Job>) -> usize {
        self.watchers.iter().filter(|watcher| Arc::ptr_eq(watcher.job(), job)).count()
    }

    fn n_waiting(&self) -> usize {
        self.settling.len() + self.queued.len()
    }
}

fn pick<T>(items: &mut Vec<T>, at: usize) -> Option<T> {
    (!items.is_empty()).then(|| items.remove(at % items.len()))
}

fn outcome() -> Result<piecewised_graph::Handle, JobFailure> {
    Err(JobFailure::cancelled())
}

fn apply(flights: &Flights, model: &mut Model, step: Step) {
    match step {
        Step::Submit(keys) => {
            let new: BTreeMap<u8, ()> = keys.iter().filter(|key| !model.has_key(**key)).map(|key| (*key, ())).collect();
            let fits = new.is_empty() || model.n_waiting() + new.len() <= MAX_QUEUED;
            let joined = flights.join_or_create(keys.iter().copied().map(spec).collect());
            assert_eq!(joined.is_ok(), fits, "all or nothing, by the room that there is");
            for (key, joined) in keys.into_iter().zip(joined.into_iter().flatten()) {
                match joined {
                    Joined::Existing(watcher) => {
                        assert!(model.has_key(key), "joined a job that is over");
                        assert!(matches!(watcher.origin(), Origin::Joined { .. }));
                        model.watchers.push(watcher);
                    }
                    Joined::Created(watcher) => {
                        assert!(!model.has_key(key), "a second job for a key");
                        match watcher.origin() {
                            Origin::Queued { position } => assert_eq!(*position, model.n_waiting()),
                            Origin::Joined { .. } => panic!("made, not joined"),
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
                model.queued.push_back(job);
            }
        }
        Step::FoundInStore(at) => {
            if let Some(job) = pick(&mut model.settling, at) {
                flights.finish(&job, outcome());
                assert!(job.state.borrow().outcome.is_some());
            }
        }
        Step::Take => {
            while model.queued.front().is_some_and(|job| model.n_watchers(job) == 0) {
                model.queued.pop_front();
            }
            let expected = model.queued.pop_front();
            match (flights.next().now_or_never(), expected) {
                (None, None) => {}
                (Some(Some(job)), Some(expected)) => {
                    assert!(Arc::ptr_eq(&job, &expected), "first in, first out");
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
        // Closing hands out what is still wanted, and then ends.
        while let Some(job) = pick(&mut model.settling, 0) {
            flights.finish(&job, outcome());
        }
        flights.close();
        prop_assert!(flights.join_or_create(vec![spec(0)]).is_err());
        while let Some(Some(job)) = flights.next().now_or_never() {
            flights.finish(&job, outcome());
        }
        prop_assert!(matches!(flights.next().now_or_never(), Some(None)));
    }
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
        match flights.join_or_create(vec![spec(key)]).unwrap().remove(0) {
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

mod programs {
    //! Runs of programs: what fits, what does not, and when one is complete.

    use std::time::{Duration, Instant};

    use piecewised_graph::{Digest, Handle, PhaseTiming, Segment, Timings};
    use piecewised_plan::Range;

    use super::spec;
    use crate::programs::{CameFrom, Place, Programs, RunStatus};

    const MAX_PIECES: u32 = 8;

    fn place(run: &str, index: u32, n_pieces: u32) -> Place {
        Place { program: "llama".parse().unwrap(), run: run.parse().unwrap(), index, n_pieces }
    }

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

    struct Harness {
        programs: Programs,
        now: Instant,
    }

    impl Harness {
        fn new() -> Self {
            Self { programs: Programs::default(), now: Instant::now() }
        }

        /// Submits a piece with these keys; its graph is named by the first of them.
        fn submit(&self, place: &Place, keys: &[u8]) -> Result<(), &'static str> {
            let entries = (1..).zip(keys).map(|(size, _)| Range::single(size).unwrap()).collect();
            let keys: Vec<_> = keys.iter().map(|&key| Digest([key; 32])).collect();
            let submitted = self.programs.submit(place, keys[0], keys, entries, MAX_PIECES, self.now);
            submitted.map_err(|error| error.reason())
        }

        fn ready(&self, place: &Place, position: usize, key: u8, from: CameFrom) -> RunStatus {
            self.programs.ready(place, position, handle(key), from, self.now);
            self.status(place).unwrap()
        }

        fn status(&self, place: &Place) -> Option<RunStatus> {
            self.programs.status(place, self.now, 7)
        }
    }

    #[test]
    fn a_program_is_complete_with_the_last_range_of_the_last_piece_and_not_before() {
        let it = Harness::new();
        let (first, last) = (place("r", 0, 2), place("r", 1, 2));
        // The last piece may come first.
        it.submit(&last, &[1, 3]).unwrap();
        assert!(it.ready(&last, 1, 3, CameFrom::Compiled).manifest.is_none());
        assert!(it.ready(&last, 0, 1, CameFrom::Store).manifest.is_none());
        it.submit(&first, &[1]).unwrap();
        assert_eq!(it.status(&first).unwrap().n_pieces_ready, 1);
        let status = it.ready(&first, 0, 1, CameFrom::Joined);
        assert_eq!((status.n_pieces, status.n_pieces_ready, status.n_distinct_pieces), (2, 2, 1));
        assert_eq!((status.n_from_store, status.n_compiled, status.n_joined), (1, 1, 1));
        // Key 1 is in two pieces and was compiled once.
        assert_eq!(status.phases, [PhaseTiming { phase: "compile".into(), seconds: 4.0 }]);
        let manifest = status.manifest.unwrap();
        assert_eq!(manifest.pieces.iter().map(|piece| piece.index).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(manifest.pieces[1].handles.iter().map(|handle| handle.key.0[0]).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(manifest.created_unix_ms, 7);
    }

    #[test]
    fn runs_do_not_mix() {
        let it = Harness::new();
        it.submit(&place("a", 0, 2), &[1]).unwrap();
        it.ready(&place("a", 0, 2), 0, 1, CameFrom::Compiled);
        it.submit(&place("b", 1, 2), &[2]).unwrap();
        let status = it.ready(&place("b", 1, 2), 0, 2, CameFrom::Compiled);
        assert_eq!((status.n_pieces_ready, status.manifest), (1, None));
        // Another run of the program may have other pieces, and another number of them.
        it.submit(&place("c", 0, 1), &[9]).unwrap();
        assert!(it.ready(&place("c", 0, 1), 0, 9, CameFrom::Compiled).manifest.is_some());
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let it = Harness::new();
        it.submit(&place("r", 0, 2), &[1]).unwrap();
        assert_eq!(it.submit(&place("r", 2, 2), &[2]), Err("BAD_PIECE_INDEX"));
        assert_eq!(it.submit(&place("r", 0, 0), &[2]), Err("BAD_PIECE_INDEX"));
        assert_eq!(it.submit(&place("r", 0, MAX_PIECES + 1), &[2]), Err("BAD_PIECE_INDEX"));
        assert_eq!(it.submit(&place("r", 1, 3), &[2]), Err("DIFFERENT_TOTALS"));
        assert_eq!(it.submit(&place("r", 0, 2), &[2]), Err("DIFFERENT_PIECE"));
        it.submit(&place("r", 0, 2), &[1]).unwrap();
        it.submit(&place("r", 1, 2), &[2]).unwrap();
        it.ready(&place("r", 0, 2), 0, 1, CameFrom::Compiled);
        // Beyond its entries: of no meaning, and not counted.
        it.ready(&place("r", 1, 2), 5, 2, CameFrom::Compiled);
        assert!(it.ready(&place("r", 1, 2), 0, 2, CameFrom::Compiled).manifest.is_some());
    }

    #[test]
    fn an_abandoned_run_is_forgotten() {
        let mut it = Harness::new();
        it.submit(&place("r", 0, 2), &[1]).unwrap();
        it.now += Duration::from_secs(3601);
        it.submit(&place("other", 0, 1), &[2]).unwrap();
        assert_eq!(it.status(&place("r", 0, 2)), None);
    }
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
    };
    let scheduler = Scheduler::start(config, store, toolchain);
    assert!(scheduler.submit(vec![spec(1), spec(2)]).now_or_never().is_none(), "dropped while it was under way");
    // Waits for every job; one that is neither queued nor ended would never let it.
    scheduler.shutdown(Duration::from_secs(3600)).await;
    assert_eq!(scheduler.drain(), 0);
}
