//! A collection on request removes what it says, and nothing that is named.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use piecewised_graph::Digest;
use piecewised_store::{FailureRecord, GcGoal, Store, StoreConfig};
use tempfile::tempdir;

use crate::{
    evict::{manifest, put},
    support::{artifact_files, config, key, open},
};

/// As in `evict.rs`.
const CHARGE: u64 = (100_000_u64 + 88).next_multiple_of(4096) + 4096;

#[tokio::test]
async fn it_goes_down_to_the_budget_and_says_what_it_freed() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    for n in 0..8 {
        put(&store, n).await;
    }
    assert!(store.put_manifest(manifest("model", &[0])).await.unwrap());
    store.pin(vec![key(1)]).await.unwrap();
    assert!(store.get(&key(2)).await.unwrap().is_some(), "used last");

    let nothing = store.gc(GcGoal::default()).await.unwrap();
    assert_eq!((nothing.n_evicted, nothing.freed_bytes, nothing.n_artifacts), (0, 0, 8));
    assert!(nothing.is_within_budget);

    let goal = GcGoal { max_bytes: Some(4 * CHARGE), ..GcGoal::default() };
    let report = store.gc(goal).await.unwrap();
    assert_eq!((report.n_evicted, report.freed_bytes), (4, 4 * CHARGE));
    assert_eq!((report.n_artifacts, report.disk_bytes, report.pinned_bytes), (4, 4 * CHARGE, 2 * CHARGE));
    assert!(report.is_within_budget);
    for (n, is_left) in [(0, true), (1, true), (2, true), (3, false), (6, false), (7, true)] {
        assert_eq!(store.peek(&key(n)).await.unwrap().is_some(), is_left, "{n}");
    }
    assert_eq!(artifact_files(dir.path()).len(), 4);

    let report = store.gc(GcGoal { max_bytes: Some(CHARGE), ..goal }).await.unwrap();
    assert_eq!((report.n_evicted, report.n_artifacts), (2, 2));
    assert!(!report.is_within_budget, "more is pinned");
}

#[tokio::test]
async fn old_failures_and_what_was_set_aside_go_too() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    put(&store, 1).await;
    store.close().await.unwrap();
    // Another version's store is set aside.
    let claim = "piecewised-store 7";
    fs::write(dir.path().join("FORMAT"), format!("{claim} {}\n", Digest::of(claim.as_bytes()))).unwrap();
    let ttl = StoreConfig { failure_ttl: Duration::from_secs(3600), ..config(dir.path()) };
    let (store, report) = Store::open(ttl).await.unwrap();
    assert!(report.set_aside.is_some_and(|path| path.exists()));
    put(&store, 1).await;

    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let now = u64::try_from(now).unwrap();
    let record =
        |failed_unix_ms| FailureRecord { reason: "COMPILE_ERROR".into(), message: "no".into(), failed_unix_ms };
    store.put_failure(&key(8), record(now - 3_599_900)).await.unwrap();
    store.put_failure(&key(9), record(now)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;

    let kept = store.gc(GcGoal::default()).await.unwrap();
    assert_eq!((kept.n_failures, kept.n_set_aside), (1, 0));
    let report = store.gc(GcGoal { also_set_aside: true, ..GcGoal::default() }).await.unwrap();
    assert_eq!((report.n_failures, report.n_set_aside), (0, 1));
    assert!(report.set_aside_bytes > 100_000, "{report:?}");
    assert_eq!(fs::read_dir(dir.path().join("set-aside")).unwrap().count(), 0);
    assert!(store.peek(&key(1)).await.unwrap().is_some());
    assert!(store.get_failure(&key(9)).await.unwrap().is_some());
}
