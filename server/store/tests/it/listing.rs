//! Lists: in pages, of everything once, and without any trace.

use bytes::Bytes;
use piecewised_graph::{Digest, SnapshotName};
use piecewised_store::{FailureRecord, ListedItem, Store};
use tempfile::tempdir;

use crate::{
    evict,
    support::{artifact, config, handle, key, long_handle, open},
};

async fn keys(store: &Store, limit: usize) -> Vec<Digest> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(after, limit).await.unwrap();
        assert!(page.len() <= limit);
        after = page.last().map(|last| last.key);
        if page.is_empty() {
            return all;
        }
        all.extend(page.iter().map(|listed| listed.key));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_listed_once_by_key() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    assert_eq!(keys(&store, 3).await, []);
    for n in 0..7 {
        store.put(handle(key(n), &artifact(n)), artifact(n)).await.unwrap();
    }
    // One whose handle does not fit into the index, and one that shares its artifact.
    store.put(long_handle(key(7), &artifact(7)), artifact(7)).await.unwrap();
    store.put(handle(key(8), &artifact(7)), artifact(7)).await.unwrap();
    let name = SnapshotName::new("vllm".into(), "aot".into(), "ab12".into()).unwrap();
    let snapshot = store.put_snapshot(name, Bytes::from_static(b"bytes")).await.unwrap();
    store.put_manifest(evict::manifest("program", &[100])).await.unwrap();
    evict::put(&store, 100).await;

    let mut expect: Vec<Digest> = (0..9).map(key).chain([key(100), snapshot.key]).collect();
    expect.sort_unstable();
    for limit in [1, 3, 4, 100] {
        assert_eq!(keys(&store, limit).await, expect, "pages of {limit}");
    }
    for listed in store.list(None, 100).await.unwrap() {
        assert_eq!(listed.is_pinned, listed.key == key(100));
        assert!(listed.used_unix_ms > 1_600_000_000_000, "{}", listed.used_unix_ms);
        match listed.item {
            ListedItem::Handle(found) => assert_eq!(found.key, listed.key),
            ListedItem::Snapshot(found) => assert_eq!(found, snapshot),
        }
    }

    let by = |digits: String| {
        let store = store.clone();
        async move { store.list_by_prefix(&digits, 3).await.unwrap().iter().map(|it| it.key).collect::<Vec<_>>() }
    };
    assert_eq!(by(key(3).to_string()).await, [key(3)]);
    assert_eq!(by(key(3).to_string()[..20].to_owned()).await, [key(3)]);
    assert_eq!(by(String::new()).await, expect[..3]);
    assert_eq!(by("no digits".to_owned()).await, []);
}

#[tokio::test]
async fn listing_leaves_no_trace() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    for n in 0..3 {
        store.put(handle(key(n), &artifact(n)), artifact(n)).await.unwrap();
    }
    let (before, stats) = (store.list(None, 10).await.unwrap(), store.stats());
    store.list_by_prefix("", 10).await.unwrap();
    assert_eq!(store.list(None, 10).await.unwrap(), before);
    assert_eq!((store.stats().n_hits, store.stats().n_misses), (stats.n_hits, stats.n_misses));
    store.get(&key(1)).await.unwrap();
    let used = |listed: &[piecewised_store::Listed]| listed.iter().map(|it| it.used_unix_ms).sum::<u64>();
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    store.get(&key(1)).await.unwrap();
    assert!(used(&store.list(None, 10).await.unwrap()) > used(&before), "a lookup does");
}

#[tokio::test]
async fn failures_are_listed_in_pages() {
    let dir = tempdir().unwrap();
    let (store, _) = Store::open(config(dir.path())).await.unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let now = u64::try_from(now).unwrap();
    for n in 0..5 {
        let record =
            FailureRecord { reason: "COMPILE_ERROR".into(), message: format!("number {n}"), failed_unix_ms: now };
        store.put_failure(&key(n), record).await.unwrap();
    }
    let mut expect: Vec<Digest> = (0..5).map(key).collect();
    expect.sort_unstable();
    let first = store.list_failures(None, 3).await.unwrap();
    let second = store.list_failures(Some(first[2].0), 3).await.unwrap();
    let found: Vec<Digest> = first.iter().chain(&second).map(|(key, _)| *key).collect();
    assert_eq!((first.len(), found), (3, expect));
    assert!(first.iter().all(|(_, record)| record.message.starts_with("number ")));
}
