//! What an executor shares with others: leases of what is timed on, the machine's memory, its GPU.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps nothing")]

mod common;

use std::{
    future::{Future, pending},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use common::{job, misbehaving, nothing_left, started};
use piecewised_executor::{Executor, ExecutorError, JobHost, LeaseMode, MemoryShortage, Placement, Unshared};

/// Counts what is held, and grants after a while.
struct Host {
    asked: Vec<LeaseMode>,
    n_held: Arc<AtomicUsize>,
    most_held: usize,
    takes: Duration,
}

struct Lease(Arc<AtomicUsize>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl JobHost for Host {
    type Lease = Lease;

    fn on_phase(&mut self, _: &str) {}

    fn lease(&mut self, mode: LeaseMode) -> impl Future<Output = Lease> + Send {
        self.asked.push(mode);
        let (n_held, takes) = (Arc::clone(&self.n_held), self.takes);
        self.most_held = self.most_held.max(n_held.fetch_add(1, SeqCst) + 1);
        async move {
            let lease = Lease(n_held);
            tokio::time::sleep(takes).await;
            lease
        }
    }
}

fn host(takes: Duration) -> Host {
    Host { asked: Vec::new(), n_held: Arc::default(), most_held: 0, takes }
}

#[tokio::test]
async fn leases_are_held_one_at_a_time_until_they_are_released_or_the_job_ends() {
    let (mut executor, _root) = started().await;
    let mut host = host(Duration::from_millis(10));
    executor.compile(&job("leases"), &mut host).await.unwrap();
    assert_eq!(host.asked, [LeaseMode::Shared, LeaseMode::Exclusive, LeaseMode::Exclusive]);
    assert_eq!((host.most_held, host.n_held.load(SeqCst)), (1, 0));
    // The last one was not released, and the next job starts without it.
    executor.compile(&job("leases"), &mut host).await.unwrap();
    assert_eq!(host.n_held.load(SeqCst), 0);
}

#[tokio::test]
async fn a_lease_ends_with_the_executor_that_holds_it() {
    let (mut executor, root) = started().await;
    let pid = executor.pid();
    let mut host = host(Duration::ZERO);
    let error = executor.compile(&job("leased and dead"), &mut host).await.unwrap_err();
    assert!(matches!(error, ExecutorError::Crashed { .. }), "{error}");
    assert_eq!(host.n_held.load(SeqCst), 0);
    nothing_left(pid, &root).await;
}

/// Kills the executor instead of granting anything.
struct Killer(u32);

impl JobHost for Killer {
    type Lease = ();

    fn on_phase(&mut self, _: &str) {}

    fn lease(&mut self, _: LeaseMode) -> impl Future<Output = ()> + Send {
        let leader = rustix::process::Pid::from_raw(i32::try_from(self.0).unwrap()).unwrap();
        rustix::process::kill_process(leader, rustix::process::Signal::KILL).unwrap();
        pending()
    }
}

#[tokio::test]
async fn an_executor_that_dies_while_it_waits_for_a_lease_is_noticed() {
    let (mut executor, root) = started().await;
    let pid = executor.pid();
    let error = executor.compile(&job("never leased"), &mut Killer(pid)).await.unwrap_err();
    assert!(matches!(error, ExecutorError::Crashed { .. }), "{error}");
    nothing_left(pid, &root).await;
}

#[tokio::test]
async fn the_deadline_stands_still_while_a_lease_is_waited_for() {
    let (mut executor, _root) = started().await;
    let mut host = host(Duration::from_millis(1500));
    let job = piecewised_executor::CompileJob { deadline: Duration::from_secs(2), ..job("leases") };
    executor.compile(&job, &mut host).await.unwrap();
}

#[tokio::test]
async fn the_jobs_own_deadline_counts_where_it_is_the_shorter() {
    let (mut executor, root) = started().await;
    let pid = executor.pid();
    let deadline = Duration::from_millis(300);
    let job = piecewised_executor::CompileJob { deadline, ..job("hang") };
    let error = executor.compile(&job, &mut Unshared(|_: &str| ())).await.unwrap_err();
    assert!(matches!(error, ExecutorError::TimedOut { deadline: told, .. } if told == deadline), "{error}");
    nothing_left(pid, &root).await;
}

#[tokio::test]
async fn a_lost_gpu_and_a_failed_allocation_end_the_executor_and_are_no_failure_of_the_job() {
    for id in ["device fault", "no allocation"] {
        let (mut executor, root) = started().await;
        let pid = executor.pid();
        let error = executor.compile(&job(id), &mut Unshared(|_: &str| ())).await.unwrap_err();
        assert!(error.is_retryable() && !error.executor_can_go_on(), "{error}");
        match (id, &error) {
            ("device fault", ExecutorError::DeviceFault { message, .. }) => {
                assert_eq!(message, "an illegal memory access");
            }
            ("no allocation", ExecutorError::OutOfMemory { what, limit_bytes: None, .. }) => {
                assert_eq!(*what, MemoryShortage::Allocation("tried to allocate 80 GiB".into()));
            }
            _ => panic!("{id}: {error}"),
        }
        assert!(!executor.is_usable());
        nothing_left(pid, &root).await;
    }
}

#[tokio::test]
async fn a_group_that_holds_more_than_it_may_is_ended_with_the_child_that_holds_it() {
    let (config, root) = misbehaving("ready");
    let limit = 256 << 20;
    let placement = Placement { max_memory_bytes: Some(limit), ..Placement::default() };
    let mut executor = Executor::spawn(&config, &placement).await.unwrap();
    let pid = executor.pid();
    let error = executor.compile(&job("grow"), &mut Unshared(|_: &str| ())).await.unwrap_err();
    let ExecutorError::OutOfMemory { what: MemoryShortage::Limit, limit_bytes, used_bytes, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*limit_bytes, Some(limit));
    assert!(*used_bytes > limit, "{used_bytes}");
    assert!(error.is_retryable() && error.to_string().contains("where it may take 0.25 GiB"), "{error}");
    nothing_left(pid, &root).await;
}

#[tokio::test]
async fn the_most_that_a_job_holds_is_measured_for_each_job() {
    let (mut executor, _root) = started().await;
    let mut peak = async |id| executor.compile(&job(id), &mut Unshared(|_: &str| ())).await.unwrap().peak_memory_bytes;
    let (before, large, after) = (peak("ok").await, peak("peak").await, peak("ok").await);
    assert!(before > 0 && after > 0);
    assert!(large > 160 << 20 && large < 1 << 30, "{large}");
    assert!(before < 100 << 20 && after < 100 << 20, "{before} {after}");
}
