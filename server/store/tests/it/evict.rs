//! The byte budget: least recently used first, pins never, space really given back.

use std::{os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use piecewised_graph::{Digest, Manifest, ManifestPiece};
use piecewised_store::{Store, StoreConfig, StoreStats};
use tempfile::tempdir;
use tokio::task::JoinSet;

use crate::support::{artifact_files, assert_stored, bytes, config, files_below, handle, key, open, read};

const LEN: usize = 100_000;
/// What each of them counts for: its blocks, and one for its handle.
const CHARGE: u64 = (100_000_u64 + 88).next_multiple_of(4096) + 4096;

fn budget(path: &Path, n_artifacts: u64) -> StoreConfig {
    StoreConfig { max_bytes: Some(n_artifacts * CHARGE), ..config(path) }
}

pub(crate) fn manifest(program: &str, artifacts: &[u64]) -> Manifest {
    let handles: Vec<_> = artifacts.iter().map(|n| handle(key(*n), &bytes(*n, LEN))).collect();
    Manifest {
        program: program.parse().unwrap(),
        toolchain: handles[0].toolchain.clone(),
        devices: vec![handles[0].device.clone()],
        n_distinct_pieces: 1,
        signature: None,
        pieces: vec![ManifestPiece { index: 0, entries: vec![], handles }],
        created_unix_ms: 5,
    }
}

pub(crate) async fn put(store: &Store, n: u64) {
    let artifact = bytes(n, LEN);
    store.put(handle(key(n), &artifact), artifact).await.unwrap();
}

async fn is_there(store: &Store, n: u64) -> bool {
    let artifact = bytes(n, LEN);
    let found = read(store, &Digest::of(&artifact)).await;
    assert!(found.as_ref().is_none_or(|found| *found == artifact));
    found.is_some()
}

async fn left(store: &Store, all: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut left = Vec::new();
    for n in all {
        if is_there(store, n).await {
            left.push(n);
        }
    }
    left
}

async fn until(store: &Store, is_so: impl Fn(&StoreStats) -> bool) {
    for _ in 0..6000 {
        if is_so(&store.stats()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not come: {:?}", store.stats());
}

/// What the files take on the disk.
fn on_disk(path: &Path) -> u64 {
    files_below(path).iter().map(|file| file.metadata().unwrap().blocks() * 512).sum()
}

#[tokio::test]
async fn what_was_used_least_recently_goes_also_by_uses_before_a_restart() {
    let dir = tempdir().unwrap();
    let (store, _) = Store::open(budget(dir.path(), 100)).await.unwrap();
    for n in 0..20 {
        put(&store, n).await;
    }
    // 3 is looked up and 5 is fetched: they are the latest then.
    assert!(store.get(&key(3)).await.unwrap().is_some());
    assert!(is_there(&store, 5).await);
    store.close().await.unwrap();

    let (store, _) = Store::open(budget(dir.path(), 10)).await.unwrap();
    put(&store, 100).await;
    until(&store, |stats| stats.disk_bytes <= 9 * CHARGE).await;
    let stats = store.stats();
    assert_eq!((stats.n_evicted, stats.evicted_bytes, stats.n_artifacts), (12, 12 * LEN as u64, 9));
    assert_eq!(left(&store, (0..20).chain([100])).await, [3, 5, 14, 15, 16, 17, 18, 19, 100]);
    assert_eq!(store.get(&key(0)).await.unwrap(), None);
    assert_eq!(artifact_files(dir.path()).len(), 9);
    assert_eq!(store.stats().n_damaged_dropped, 0);
    store.close().await.unwrap();

    let (store, report) = open(dir.path()).await;
    assert_eq!((report.n_handles, report.n_dropped, report.n_taken_over), (9, 0, 0));
    assert_eq!(store.stats().n_evicted, 12, "counted for good");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn space_is_given_back_and_the_budget_holds_under_load() {
    let dir = tempdir().unwrap();
    let (store, _) = Store::open(budget(dir.path(), 40)).await.unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0..50 {
                put(&store, writer * 50 + n).await;
                // Puts that are under way at the same time each see room for themselves.
                assert!(store.stats().disk_bytes <= 48 * CHARGE, "{:?}", store.stats());
            }
        });
    }
    while let Some(result) = writers.join_next().await {
        result.unwrap();
    }
    until(&store, |stats| stats.disk_bytes <= 38 * CHARGE).await;
    let stats = store.stats();
    assert_eq!((stats.n_puts, stats.n_evicted + stats.n_artifacts), (400, 400));
    assert!(stats.n_artifacts >= 30, "{stats:?}");
    let files = on_disk(&dir.path().join("artifacts"));
    assert!(files <= stats.disk_bytes, "{files} on the disk, {} counted", stats.disk_bytes);
    assert!(files >= stats.artifact_bytes);
    assert!(on_disk(dir.path()) <= 40 * CHARGE + (8 << 20), "with the index");
}

#[tokio::test]
async fn what_a_manifest_names_stays_until_the_manifest_goes() {
    let dir = tempdir().unwrap();
    let (mut store, _) = Store::open(budget(dir.path(), 10)).await.unwrap();
    for n in 0..4 {
        put(&store, n).await;
    }
    assert!(store.put_manifest(manifest("model", &[0, 1])).await.unwrap());
    assert!(store.put_manifest(manifest("other", &[1, 2])).await.unwrap());
    assert_eq!((store.stats().n_manifests, store.stats().pinned_bytes), (2, 3 * CHARGE));
    for round in 0..3 {
        for n in 0..20 {
            put(&store, 100 + round * 20 + n).await;
        }
        until(&store, |stats| stats.disk_bytes <= 10 * CHARGE).await;
        assert_eq!(left(&store, 0..4).await, [0, 1, 2]);
        if round == 1 {
            store.close().await.unwrap();
            store = Store::open(budget(dir.path(), 10)).await.unwrap().0;
        }
    }
    let listed = store.list_manifests();
    let names: Vec<_> = listed.iter().map(|info| (info.program.as_str(), info.n_pieces, info.n_artifacts)).collect();
    assert_eq!(names, [("model", 1, 2), ("other", 1, 2)]);

    assert!(store.remove_manifest(&"model".parse().unwrap()).await.unwrap());
    assert!(!store.remove_manifest(&"model".parse().unwrap()).await.unwrap());
    assert_eq!(store.get_manifest(&"model".parse().unwrap()).await.unwrap(), None);
    assert!(is_there(&store, 0).await, "a key still names it");
    // In place of the other one: 1 and 2 may go, 0 may not.
    assert!(store.put_manifest(manifest("other", &[0])).await.unwrap());
    for n in 0..20 {
        put(&store, 200 + n).await;
    }
    until(&store, |stats| stats.disk_bytes <= 10 * CHARGE).await;
    assert_eq!(left(&store, 0..4).await, [0]);
}

#[tokio::test]
async fn pins_beyond_the_budget_are_kept_and_said() {
    let dir = tempdir().unwrap();
    let (store, _) = Store::open(budget(dir.path(), 4)).await.unwrap();
    // Pinned before they come: a manifest may be there first.
    store.put_manifest(manifest("model", &[0, 1, 2, 3, 4, 5])).await.unwrap();
    for n in 0..8 {
        put(&store, n).await;
    }
    until(&store, |stats| stats.disk_bytes <= 6 * CHARGE).await;
    assert_eq!(left(&store, 0..8).await, [0, 1, 2, 3, 4, 5]);
    let stats = store.stats();
    assert!(stats.pinned_bytes > 4 * CHARGE && stats.pinned_bytes == stats.disk_bytes);
}

/// An artifact that was compiled anew takes its key from one that a manifest names.
#[tokio::test]
async fn a_replaced_artifact_stays_for_its_manifest() {
    let dir = tempdir().unwrap();
    let (mut store, _) = open(dir.path()).await;
    put(&store, 1).await;
    store.put_manifest(manifest("model", &[1])).await.unwrap();
    let again = bytes(77, 5000);
    store.put(handle(key(1), &again), again.clone()).await.unwrap();
    assert_stored(&store, &handle(key(1), &again), &again).await;
    for step in ["now", "after a close", "after a crash", "with a lost index"] {
        assert!(is_there(&store, 1).await, "{step}");
        assert_eq!(store.get(&key(1)).await.unwrap(), Some(handle(key(1), &again)), "{step}");
        assert_eq!((store.stats().n_handles, store.stats().n_artifacts), (1, 2), "{step}");
        match step {
            "now" => store.close().await.unwrap(),
            "after a close" => drop(store),
            _ => {
                store.close().await.unwrap();
                std::fs::remove_dir_all(dir.path().join("db")).unwrap();
            }
        }
        store = open(dir.path()).await.0;
    }
    // A removal of the handle does not touch it either; only its manifest does.
    assert!(store.remove(&key(1)).await.unwrap());
    assert!(is_there(&store, 1).await);
    assert!(store.remove_manifest(&"model".parse().unwrap()).await.unwrap());
    assert!(!is_there(&store, 1).await);
    assert_eq!(artifact_files(dir.path()), [""; 0]);
    assert_eq!((store.stats().n_artifacts, store.stats().disk_bytes), (0, 0));
}

#[tokio::test]
async fn a_reader_that_stalls_reads_on_after_its_artifact_was_evicted() {
    let dir = tempdir().unwrap();
    let (store, _) = Store::open(budget(dir.path(), 5)).await.unwrap();
    put(&store, 0).await;
    let whole = bytes(0, LEN);
    let reader = store.open_artifact(&Digest::of(&whole)).await.unwrap().unwrap();
    let mut got = reader.read_at(0, 1000).await.unwrap().to_vec();
    for n in 1..20 {
        put(&store, n).await;
    }
    until(&store, |stats| stats.n_evicted > 10).await;
    assert!(!is_there(&store, 0).await);
    while got.len() < LEN {
        got.extend(reader.read_at(got.len() as u64, 7777).await.unwrap());
    }
    assert_eq!(got, whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_lookups_at_once_while_artifacts_come_and_go() {
    let dir = tempdir().unwrap();
    let (store, _) = Store::open(budget(dir.path(), 60)).await.unwrap();
    for n in 0..40 {
        put(&store, n).await;
    }
    store.put_manifest(manifest("model", &(0..40).collect::<Vec<_>>())).await.unwrap();
    let mut lookups = JoinSet::new();
    for n in 0..10_000_u64 {
        let store = store.clone();
        lookups.spawn(async move {
            let n = n % 50;
            let found = store.get(&key(n)).await.unwrap();
            assert_eq!(found, (n < 40).then(|| handle(key(n), &bytes(n, LEN))));
        });
    }
    for n in 100..200 {
        put(&store, n).await;
    }
    while let Some(result) = lookups.join_next().await {
        result.unwrap();
    }
    let stats = store.stats();
    assert_eq!((stats.n_hits, stats.n_misses), (8000, 2000));
    assert!(stats.n_evicted > 70, "{stats:?}");
}
