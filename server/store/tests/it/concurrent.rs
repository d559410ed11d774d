//! Many callers at once.

use std::sync::Arc;

use piecewised_store::Store;
use tempfile::tempdir;
use tokio::task::JoinSet;

use crate::support::{artifact_files, assert_stored, bytes, config, handle, key, open, read};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_key_put_and_read_by_many_ends_in_one_of_the_puts() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let artifacts: Arc<Vec<_>> =
        Arc::new([60_000, 30_000, 500, 60].into_iter().zip(0..).map(|(len, n)| bytes(n, len)).collect());
    let mut tasks = JoinSet::new();
    for n in 0..48 {
        let (store, artifacts) = (store.clone(), artifacts.clone());
        tasks.spawn(async move {
            let artifact = &artifacts[n % artifacts.len()];
            for round in 0..4 {
                let key = key(round % 2);
                match n % 8 {
                    7 => drop(store.remove(&key).await.unwrap()),
                    6 => {
                        // The artifact may be replaced between the two calls, but never be another one.
                        if let Some(found) = store.get(&key).await.unwrap()
                            && let Some(bytes) = read(&store, &found.digest).await
                        {
                            assert!(
                                artifacts.iter().any(|artifact| *artifact == bytes && handle(key, artifact) == found)
                            );
                        }
                    }
                    _ => drop(store.put(handle(key, artifact), artifact.clone()).await.unwrap()),
                }
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    let check = async |store: &Store| {
        let mut files = Vec::new();
        for key in [key(0), key(1)] {
            let Some(found) = store.get(&key).await.unwrap() else { continue };
            let artifact = artifacts.iter().find(|artifact| handle(key, artifact) == found).unwrap();
            assert_stored(store, &found, artifact).await;
            files.push(found.digest.to_string());
        }
        files.sort();
        files.dedup();
        assert_eq!(artifact_files(dir.path()), files, "what nobody names is gone");
        assert_eq!(store.stats().n_damaged_dropped, 0);
    };
    check(&store).await;
    store.close().await.unwrap();
    let (store, report) = open(dir.path()).await;
    assert_eq!((report.n_taken_over, report.n_dropped), (0, 0));
    check(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_put_whose_caller_leaves_is_whole_or_absent() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let mut tasks = JoinSet::new();
    for n in 0..64 {
        let store = store.clone();
        tasks.spawn(async move {
            let artifact = bytes(n, 10_000);
            let put = store.put(handle(key(n), &artifact), artifact.clone());
            tokio::time::timeout(std::time::Duration::from_micros(n * 200), put).await.is_ok()
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    store.close().await.unwrap();
    let (store, report) = open(dir.path()).await;
    assert_eq!((report.n_taken_over, report.n_dropped), (0, 0));
    for n in 0..64 {
        let artifact = bytes(n, 10_000);
        if let Some(found) = store.get(&key(n)).await.unwrap() {
            assert_stored(&store, &found, &artifact).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_gate_may_be_as_narrow_as_it_likes() {
    let dir = tempdir().unwrap();
    let mut config = config(dir.path());
    config.gate_permits = 0;
    let (store, _) = Store::open(config).await.unwrap();
    let mut tasks = JoinSet::new();
    for n in 0..30 {
        let store = store.clone();
        tasks.spawn(async move {
            let artifact = bytes(n, 5000);
            store.put(handle(key(n), &artifact), artifact.clone()).await.unwrap();
            assert_stored(&store, &handle(key(n), &artifact), &artifact).await;
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    assert_eq!(store.stats().n_handles, 30);
}
