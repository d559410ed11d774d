//! The queue's state machine against a plain model, for arbitrary orders of what callers and workers do.
//!
//! With real executors, deaths and restarts it is tried in `tests/python/test_service.py`.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use futures::FutureExt as _;
use piecewised_graph::{
    Digest,
    request::{ArtifactFormat, CompileOptions, DeviceKind, Toolchain},
};
use proptest::prelude::*;

use crate::{
    JobFailure, JobSpec, Origin, Watcher,
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
                    panic!("took {:?}, expected {:?}", taken.flatten().map(|job| job.id.clone()), expected.map(|job| job.id.clone()))
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
