//! Put, get, read, remove.

use bytes::Bytes;
use piecewised_graph::Digest;
use piecewised_store::{OpenOutcome, Store, StoreConfig, StoreError};
use tempfile::tempdir;

use crate::support::{
    artifact, artifact_files, assert_stored, bytes, config, handle, key, long_handle, memory_dir, mode, open, read,
};

#[tokio::test]
async fn what_is_put_comes_back_now_and_after_a_reopen() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a/store");
    let (store, report) = open(&path).await;
    assert_eq!(report.outcome, OpenOutcome::Fresh);
    for n in 0..20 {
        let artifact = artifact(n);
        assert_eq!(store.get(&key(n)).await.unwrap(), None);
        store.put(handle(key(n), &artifact), artifact.clone()).await.unwrap();
        assert_stored(&store, &handle(key(n), &artifact), &artifact).await;
    }
    let stats = store.stats();
    assert_eq!((stats.n_handles, stats.n_artifacts, stats.n_puts), (20, 20 - 2, 20), "the empty artifact is shared");
    store.close().await.unwrap();

    let (store, report) = open(&path).await;
    assert_eq!(report.outcome, OpenOutcome::Existing);
    assert_eq!((report.n_handles, report.n_artifacts, report.artifact_bytes), (20, 18, stats.artifact_bytes));
    assert_eq!((report.n_taken_over, report.n_dropped, report.set_aside), (0, 0, None));
    for n in 0..20 {
        assert_stored(&store, &handle(key(n), &artifact(n)), &artifact(n)).await;
    }
    let stats = store.stats();
    assert_eq!((stats.n_hits, stats.n_misses, stats.n_puts), (40, 20, 20), "counters go on after a restart");
}

#[tokio::test]
async fn two_handles_share_one_artifact_until_the_last_is_removed() {
    let dir = tempdir().unwrap();
    for (n, len) in [(0, 50_000), (10, 500)] {
        let (store, _) = open(dir.path()).await;
        let artifact = bytes(n, len);
        let (a, b) = (handle(key(n), &artifact), handle(key(n + 1), &artifact));
        store.put(a.clone(), artifact.clone()).await.unwrap();
        store.put(b.clone(), artifact.clone()).await.unwrap();
        assert_eq!((store.stats().n_handles, store.stats().n_artifacts), (2, 1));
        assert_eq!(store.stats().artifact_bytes, artifact.len() as u64);
        assert_eq!(artifact_files(dir.path()).len(), 1);

        assert!(store.remove(&a.key).await.unwrap());
        assert!(!store.remove(&a.key).await.unwrap());
        assert_eq!(store.get(&a.key).await.unwrap(), None);
        assert_stored(&store, &b, &artifact).await;
        store.close().await.unwrap();

        let (store, _) = open(dir.path()).await;
        assert_stored(&store, &b, &artifact).await;
        assert!(store.remove(&b.key).await.unwrap());
        assert!(store.open_artifact(&b.digest).await.unwrap().is_none());
        assert_eq!(artifact_files(dir.path()), [""; 0]);
        assert_eq!((store.stats().n_handles, store.stats().artifact_bytes), (0, 0));
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn another_artifact_under_the_same_key_replaces_the_first() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    for (n, len) in [30_000, 200, 40_000, 41_000].into_iter().enumerate() {
        let artifact = bytes(n as u64, len);
        let handle = handle(key(0), &artifact);
        store.put(handle.clone(), artifact.clone()).await.unwrap();
        assert_stored(&store, &handle, &artifact).await;
        assert_eq!(artifact_files(dir.path()), [handle.digest.to_string()]);
        assert_eq!((store.stats().n_handles, store.stats().artifact_bytes), (1, len as u64));
    }
}

#[tokio::test]
async fn a_repeated_put_changes_nothing_and_a_new_handle_is_taken() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let artifact = bytes(1, 30_000);
    let first = handle(key(1), &artifact);
    for _ in 0..5 {
        store.put(first.clone(), artifact.clone()).await.unwrap();
    }
    assert_eq!(store.stats().n_puts, 1);
    let mut second = first.clone();
    second.created_unix_ms += 1;
    store.put(second.clone(), artifact.clone()).await.unwrap();
    assert_stored(&store, &second, &artifact).await;
    assert_eq!(store.stats().n_puts, 2);
}

#[tokio::test]
async fn handles_too_long_for_the_index_are_kept_with_their_artifact() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let (small, large) = (bytes(1, 10), bytes(2, 100_000));
    let handles = [long_handle(key(1), &small), long_handle(key(2), &large), handle(key(3), &small)];
    store.put(handles[0].clone(), small.clone()).await.unwrap();
    store.put(handles[1].clone(), large.clone()).await.unwrap();
    store.put(handles[2].clone(), small.clone()).await.unwrap();
    store.close().await.unwrap();
    let (store, _) = open(dir.path()).await;
    assert_stored(&store, &handles[0], &small).await;
    assert_stored(&store, &handles[1], &large).await;
    assert_stored(&store, &handles[2], &small).await;
    assert!(store.remove(&handles[0].key).await.unwrap());
    assert_stored(&store, &handles[2], &small).await;

    let mut endless = handle(key(4), &small);
    endless.device.name = "x".repeat(2 << 20);
    let error = store.put(endless, small).await.unwrap_err();
    assert!(matches!(error, StoreError::HandleTooLarge { .. }), "{error}");
}

#[tokio::test]
async fn an_artifact_that_is_not_the_handles_is_refused() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let artifact = bytes(1, 100);
    let error = store.put(handle(key(1), &artifact), bytes(2, 100)).await.unwrap_err();
    assert!(matches!(error, StoreError::DigestMismatch { .. }), "{error}");
    let error = store.put(handle(key(1), &artifact), bytes(1, 99)).await.unwrap_err();
    assert!(matches!(error, StoreError::SizeMismatch { expected: 100, found: 99 }), "{error}");
    assert_eq!(store.get(&key(1)).await.unwrap(), None);
}

#[tokio::test]
async fn readers_read_any_part_and_outlive_a_removal() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    for artifact in [bytes(1, 100_000), bytes(2, 1000), Bytes::new()] {
        let handle = handle(key(artifact.len() as u64), &artifact);
        store.put(handle.clone(), artifact.clone()).await.unwrap();
        let reader = store.open_artifact(&handle.digest).await.unwrap().unwrap();
        assert!(store.remove(&handle.key).await.unwrap());
        let len = artifact.len();
        for (offset, max_len) in [(0, len), (0, 0), (1, 10), (len / 2, usize::MAX), (len, 1), (usize::MAX, 1)] {
            let expect = &artifact[offset.min(len)..offset.saturating_add(max_len).min(len).max(offset.min(len))];
            assert_eq!(reader.read_at(offset as u64, max_len).await.unwrap(), expect, "{offset} {max_len}");
        }
        assert_eq!(read(&store, &handle.digest).await, None);
    }
}

#[tokio::test]
async fn a_closed_store_answers_so_and_can_be_opened_again() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let artifact = bytes(1, 50_000);
    store.put(handle(key(1), &artifact), artifact.clone()).await.unwrap();
    let other = store.clone();
    let reader = store.open_artifact(&Digest::of(&artifact)).await.unwrap().unwrap();
    store.close().await.unwrap();
    assert!(matches!(other.get(&key(1)).await, Err(StoreError::Closed)));
    assert!(matches!(other.put(handle(key(1), &artifact), artifact.clone()).await, Err(StoreError::Closed)));
    assert!(matches!(reader.read_at(0, 10).await, Err(StoreError::Closed)));
    let (again, _) = open(dir.path()).await;
    assert_stored(&again, &handle(key(1), &artifact), &artifact).await;
    assert!(matches!(other.get(&key(1)).await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn nobody_else_can_look_into_the_folder() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("store");
    let (store, _) = open(&path).await;
    let artifact = bytes(1, 50_000);
    store.put(handle(key(1), &artifact), artifact.clone()).await.unwrap();
    let digest = Digest::of(&artifact).to_string();
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("artifacts")), 0o700);
    assert_eq!(mode(&path.join("artifacts").join(&digest[..2]).join(&digest)), 0o600);
    for name in ["FORMAT", "lock"] {
        assert_eq!(mode(&path.join(name)), 0o600, "{name}");
    }
}

#[tokio::test]
async fn what_artifacts_may_still_take_is_told() {
    let dir = memory_dir();
    let config = StoreConfig { max_bytes: Some(32 << 20), reserve_bytes: 7, ..config(dir.path()) };
    let (store, _) = Store::open(config).await.unwrap();
    let room = store.room().await.unwrap();
    assert_eq!((room.max_bytes, room.reserve_bytes), (Some(32 << 20), 7));
    assert!(room.available_bytes > 0);
    let other = store.clone();
    store.close().await.unwrap();
    assert!(matches!(other.room().await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn what_was_just_looked_up_and_changes_is_seen_changed() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let artifact = artifact(1);
    let first = handle(key(1), &artifact);
    // The same artifact, and another word about it.
    let second = piecewised_graph::Handle { created_unix_ms: first.created_unix_ms + 1, ..first.clone() };
    for expected in [&first, &second, &first] {
        store.put(expected.clone(), artifact.clone()).await.unwrap();
        for _ in 0..3 {
            assert_eq!(store.get(&key(1)).await.unwrap().as_ref(), Some(expected));
        }
    }
    assert_eq!(store.stats().n_hits, 9, "each counts, also what was still at hand");
    store.remove(&key(1)).await.unwrap();
    assert_eq!(store.get(&key(1)).await.unwrap(), None);
    store.close().await.unwrap();
}
