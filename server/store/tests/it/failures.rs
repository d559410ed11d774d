//! Remembered failures: durable, bounded in size, number and time, and gone when an artifact comes.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use piecewised_graph::Digest;
use piecewised_store::{FailureRecord, Store, StoreConfig};
use tempfile::tempdir;

use crate::support::{bytes, config, handle, key, open};

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

pub(crate) fn failure(n: u64) -> FailureRecord {
    FailureRecord { reason: "COMPILE_ERROR".into(), message: format!("line {n}\nédge"), failed_unix_ms: now_ms() }
}

async fn known(store: &Store, keys: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut known = Vec::new();
    for n in keys {
        if store.get_failure(&key(n)).await.unwrap().is_some() {
            known.push(n);
        }
    }
    known
}

#[tokio::test]
async fn failures_outlive_a_reopen_and_a_crash_until_they_are_forgotten() {
    let dir = tempdir().unwrap();
    let (mut store, _) = open(dir.path()).await;
    assert_eq!(store.get_failure(&key(1)).await.unwrap(), None);
    let records: Vec<_> = (0..3).map(failure).collect();
    for (record, n) in records.iter().zip(0..) {
        store.put_failure(&key(n), record.clone()).await.unwrap();
    }
    for is_closed in [true, false] {
        if is_closed {
            store.close().await.unwrap();
        } else {
            drop(store);
        }
        store = open(dir.path()).await.0;
        for (record, n) in records.iter().zip(0..) {
            assert_eq!(store.get_failure(&key(n)).await.unwrap().as_ref(), Some(record));
        }
    }
    assert_eq!(store.stats().n_failures, 3);
    assert_eq!(store.forget_failures(Some(key(1))).await.unwrap(), 1);
    assert_eq!(store.forget_failures(Some(key(1))).await.unwrap(), 0);
    assert_eq!(known(&store, 0..3).await, [0, 2]);
    assert_eq!(store.forget_failures(None).await.unwrap(), 2);
    drop(store);
    let (store, _) = open(dir.path()).await;
    assert_eq!(known(&store, 0..3).await, [0_u64; 0]);
}

#[tokio::test]
async fn an_artifact_clears_its_failure_also_where_the_index_was_set_back() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let artifact = bytes(1, 5000);
    store.put_failure(&key(1), failure(1)).await.unwrap();
    store.close().await.unwrap();
    let (index, old) = (dir.path().join("db"), dir.path().join("tmp-old"));
    crate::support::copy_tree(&index, &old);
    let (store, _) = open(dir.path()).await;
    store.put(handle(key(1), &artifact), artifact.clone()).await.unwrap();
    assert_eq!(store.get_failure(&key(1)).await.unwrap(), None);
    store.close().await.unwrap();

    fs::remove_dir_all(&index).unwrap();
    fs::rename(&old, &index).unwrap();
    let (store, report) = open(dir.path()).await;
    assert_eq!(report.n_taken_over, 1);
    assert_eq!(store.get_failure(&key(1)).await.unwrap(), None, "the artifact is newer");
    // One that comes later stands beside it: the artifact may not be good enough any more.
    store.put_failure(&key(1), failure(2)).await.unwrap();
    store.close().await.unwrap();
    let (store, _) = open(dir.path()).await;
    assert_eq!(known(&store, [1]).await, [1]);
    assert!(store.get(&key(1)).await.unwrap().is_some());
}

#[tokio::test]
async fn failures_expire() {
    let dir = tempdir().unwrap();
    let config = |failure_ttl| StoreConfig { failure_ttl, ..config(dir.path()) };
    let (store, _) = Store::open(config(Duration::from_secs(60))).await.unwrap();
    let ages = [(1, 0), (2, 50_000), (3, 61_000), (4, 1 << 40)];
    for (n, age) in ages {
        let record = FailureRecord { failed_unix_ms: now_ms() - age, ..failure(n) };
        store.put_failure(&key(n), record).await.unwrap();
    }
    // As after the clock was set back.
    let record = FailureRecord { failed_unix_ms: now_ms() + 100_000, ..failure(5) };
    store.put_failure(&key(5), record).await.unwrap();
    assert_eq!(known(&store, 1..6).await, [1, 2]);
    store.close().await.unwrap();
    let (store, _) = Store::open(config(Duration::from_secs(60))).await.unwrap();
    assert_eq!((known(&store, 1..6).await, store.stats().n_failures), (vec![1, 2], 2), "the others are gone for good");
    store.close().await.unwrap();

    let (store, _) = Store::open(config(Duration::ZERO)).await.unwrap();
    store.put_failure(&key(1), failure(1)).await.unwrap();
    assert_eq!((known(&store, 1..6).await, store.stats().n_failures), (vec![], 0), "never remembered");
}

#[tokio::test]
async fn failures_are_bounded_in_number_and_size() {
    let dir = tempdir().unwrap();
    let config = StoreConfig { max_failures: 32, ..config(dir.path()) };
    let (store, _) = Store::open(config).await.unwrap();
    for n in 0..100 {
        store.put_failure(&key(n), failure(n)).await.unwrap();
        assert!(store.stats().n_failures <= 32);
    }
    let left = known(&store, 0..100).await;
    assert!(left.len() > 28 && left.last() == Some(&99));
    assert!(left.windows(2).all(|pair| pair[1] == pair[0] + 1), "the oldest went: {left:?}");

    let message = format!("first line\n{}\nlast line", "x".repeat(1 << 20));
    store.put_failure(&key(1), FailureRecord { message, reason: "r".repeat(1000), ..failure(1) }).await.unwrap();
    let found = store.get_failure(&key(1)).await.unwrap().unwrap();
    assert!(found.message.len() <= 4096 && found.reason.len() <= 128);
    assert!(found.message.starts_with("first line") && found.message.ends_with("last line"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn failures_of_many_keys_at_once_are_all_there() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..300 {
        let store = store.clone();
        tasks.spawn(async move { store.put_failure(&key(n), failure(n)).await.unwrap() });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    assert!(store.stats().n_flushes < 300, "they share flushes");
    drop(store);
    let (store, _) = open(dir.path()).await;
    assert_eq!(known(&store, 0..300).await.len(), 300);
    assert_eq!(store.get_failure(&Digest::of(b"another")).await.unwrap(), None);
    assert_eq!(store.forget_failures(None).await.unwrap(), 300);
}
