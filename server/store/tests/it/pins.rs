//! What an operator pins stays, whatever becomes of the budget, the index and the artifact; and goes again when it is unpinned.

use std::{fs, path::Path};

use piecewised_graph::{Digest, Handle};
use piecewised_store::{GcGoal, Store, StoreConfig};
use tempfile::tempdir;

use crate::{
    evict::put,
    support::{bytes, handle, key, open},
};

/// As in `evict.rs`.
const LEN: usize = 100_000;
const CHARGE: u64 = (100_000_u64 + 88).next_multiple_of(4096) + 4096;

async fn shrink(store: &Store, n_artifacts: u64) -> Vec<u64> {
    let goal = GcGoal { max_bytes: Some(n_artifacts * CHARGE), ..GcGoal::default() };
    store.gc(goal).await.unwrap();
    let mut left = Vec::new();
    for n in 0..10 {
        if store.peek(&key(n)).await.unwrap().is_some() {
            left.push(n);
        }
    }
    left
}

async fn filled(path: &Path) -> Store {
    let (store, _) = Store::open(StoreConfig { reserve_bytes: 0, ..StoreConfig::new(path) }).await.unwrap();
    for n in 0..6 {
        put(&store, n).await;
    }
    store
}

#[tokio::test]
async fn pinned_keys_are_not_evicted_until_they_are_unpinned() {
    let dir = tempdir().unwrap();
    let store = filled(dir.path()).await;
    assert_eq!(store.pin(vec![key(0), key(2), key(77)]).await.unwrap(), 2, "under the last one nothing is stored");
    assert_eq!(store.pin(vec![key(0)]).await.unwrap(), 0, "it was");
    assert_eq!(store.stats().pinned_bytes, 2 * CHARGE);
    let listed = store.peek(&key(0)).await.unwrap().unwrap();
    assert!(listed.is_pinned_by_operator && !listed.is_pinned);
    assert_eq!(shrink(&store, 3).await, [0, 2, 5]);
    store.close().await.unwrap();

    // Also without the index.
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    let (store, _) = open(dir.path()).await;
    assert_eq!(shrink(&store, 0).await, [0, 2]);
    assert_eq!(store.unpin(vec![key(2), key(3)]).await.unwrap(), 1);
    assert_eq!(shrink(&store, 0).await, [0]);
    store.close().await.unwrap();
    let (store, _) = open(dir.path()).await;
    assert_eq!(shrink(&store, 0).await, [0]);
    assert_eq!(store.unpin(vec![key(0)]).await.unwrap(), 1);
    assert_eq!(shrink(&store, 0).await, [0u64; 0]);
}

#[tokio::test]
async fn a_pin_is_the_keys_and_not_the_artifacts() {
    let dir = tempdir().unwrap();
    let store = filled(dir.path()).await;
    store.pin(vec![key(1)]).await.unwrap();
    // Compiled again, with another result; and another key names the first one's artifact.
    let other = bytes(500, LEN);
    store.put(handle(key(1), &other), other.clone()).await.unwrap();
    let first = bytes(1, LEN);
    store.put(handle(key(9), &first), first.clone()).await.unwrap();
    assert_eq!(shrink(&store, 1).await, [1]);
    assert!(store.open_artifact(&Digest::of(&other)).await.unwrap().is_some());
    assert!(store.open_artifact(&Digest::of(&first)).await.unwrap().is_none());
    // An artifact of several keys stays for the pinned one, and the others with it.
    let shared = Handle { key: key(3), ..handle(key(3), &other) };
    store.put(shared, other.clone()).await.unwrap();
    assert_eq!(shrink(&store, 0).await, [1, 3]);
    // A key that is removed on purpose is gone; its pin is for what comes back under it.
    assert!(store.remove(&key(1)).await.unwrap());
    assert_eq!(shrink(&store, 0).await, [0u64; 0]);
    put(&store, 1).await;
    assert_eq!(shrink(&store, 0).await, [1]);
}

#[tokio::test]
async fn a_damaged_note_of_pins_pins_nothing_and_is_counted() {
    let dir = tempdir().unwrap();
    let store = filled(dir.path()).await;
    store.pin(vec![key(1)]).await.unwrap();
    store.close().await.unwrap();
    let note = dir.path().join("notes/pins");
    let mut text = fs::read(&note).unwrap();
    *text.last_mut().unwrap() ^= 1;
    fs::write(&note, text).unwrap();
    let (store, _) = open(dir.path()).await;
    assert_eq!(store.stats().n_damaged_dropped, 1);
    assert_eq!(store.stats().pinned_bytes, 0);
    assert_eq!(store.pin(vec![key(2)]).await.unwrap(), 1);
    store.close().await.unwrap();
    let (store, _) = open(dir.path()).await;
    assert_eq!(shrink(&store, 0).await, [2]);
}
