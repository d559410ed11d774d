//! What an open finds: another owner, another version, somebody else's folder, a lost index.

use std::{fs, io::Read as _, process::Stdio, time::Duration};

use piecewised_store::{OpenOutcome, Store, StoreError};
use tempfile::tempdir;

use crate::support::{
    artifact_files, assert_stored, bytes, child_path, config, files_below, handle, key, long_handle, open, start_child,
    wait_for,
};

/// In another process: holds the store until its input ends.
#[tokio::test]
async fn child_holds_the_store() {
    let Some(path) = child_path() else { return };
    let (_store, _) = open(&path).await;
    fs::write(path.join("tmp/held"), "").unwrap();
    let _ = std::io::stdin().read(&mut [0]);
}

#[tokio::test]
async fn a_store_in_use_names_its_owner() {
    let dir = tempdir().unwrap();
    let mut child = start_child("opening::child_holds_the_store", dir.path(), Stdio::inherit());
    wait_for("the child's store", || dir.path().join("tmp/held").exists());
    let error = Store::open(config(dir.path())).await.unwrap_err();
    let pid = format!("process {} ", child.id());
    assert!(matches!(&error, StoreError::Locked { owner, .. } if owner.contains(&pid)), "{error}");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());

    let (store, _) = open(dir.path()).await;
    let error = Store::open(config(dir.path())).await.unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    store.close().await.unwrap();
    open(dir.path()).await;
}

#[tokio::test]
async fn another_format_version_is_set_aside_whole() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let artifact = bytes(1, 50_000);
    store.put(handle(key(1), &artifact), artifact.clone()).await.unwrap();
    store.close().await.unwrap();
    let claim = "piecewised-store 7";
    let text = format!("{claim} {}\n", blake3::hash(claim.as_bytes()));
    fs::write(dir.path().join("FORMAT"), &text).unwrap();

    let (store, report) = open(dir.path()).await;
    assert_eq!(report.outcome, OpenOutcome::ForeignFormat { found: 7 });
    assert_eq!(report.n_handles, 0);
    let aside = report.set_aside.unwrap();
    assert!(aside.starts_with(dir.path().join("set-aside")));
    assert_eq!(fs::read_to_string(aside.join("FORMAT")).unwrap(), text);
    assert_eq!(artifact_files(&aside).len(), 1);
    store.put(handle(key(1), &artifact), artifact.clone()).await.unwrap();
    store.close().await.unwrap();
    let (store, report) = open(dir.path()).await;
    assert_eq!(report.outcome, OpenOutcome::Existing);
    assert_stored(&store, &handle(key(1), &artifact), &artifact).await;
}

#[tokio::test]
async fn a_format_file_that_is_damaged_or_lost_costs_nothing() {
    let dir = tempdir().unwrap();
    let artifact = bytes(1, 50_000);
    let (store, _) = open(dir.path()).await;
    store.put(handle(key(1), &artifact), artifact.clone()).await.unwrap();
    store.close().await.unwrap();
    for damage in [Some("piecewised-store 2 00\n"), Some(""), None] {
        match damage {
            Some(text) => fs::write(dir.path().join("FORMAT"), text).unwrap(),
            None => fs::remove_file(dir.path().join("FORMAT")).unwrap(),
        }
        let (store, report) = open(dir.path()).await;
        assert_eq!(report.outcome, OpenOutcome::Existing);
        assert_stored(&store, &handle(key(1), &artifact), &artifact).await;
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn somebody_elses_folder_is_left_alone() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "").unwrap();
    let error = Store::open(config(dir.path())).await.unwrap_err();
    assert!(matches!(&error, StoreError::NotAStore { found, .. } if found == "thesis.tex"), "{error}");
    assert_eq!(files_below(dir.path()).len(), 1);

    let mounted = tempdir().unwrap();
    fs::create_dir(mounted.path().join("lost+found")).unwrap();
    open(mounted.path()).await;
}

#[tokio::test]
async fn a_lost_index_is_rebuilt_from_the_artifact_files() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let (shared, alone, gone, small) = (bytes(1, 50_000), bytes(2, 60_000), bytes(3, 70_000), bytes(4, 100));
    let (a, b, removed) = (handle(key(1), &shared), long_handle(key(2), &shared), handle(key(3), &shared));
    let (c, d, e) = (handle(key(4), &alone), handle(key(5), &gone), handle(key(6), &small));
    for (handle, artifact) in
        [(&a, &shared), (&removed, &shared), (&b, &shared), (&c, &alone), (&d, &gone), (&e, &small)]
    {
        store.put(handle.clone(), artifact.clone()).await.unwrap();
    }
    store.remove(&removed.key).await.unwrap();
    store.remove(&d.key).await.unwrap();
    store.close().await.unwrap();
    fs::remove_dir_all(dir.path().join("db")).unwrap();

    let (store, report) = open(dir.path()).await;
    assert_eq!((report.outcome, report.n_taken_over, report.n_dropped), (OpenOutcome::Rebuilt, 4, 0));
    assert_stored(&store, &a, &shared).await;
    assert_stored(&store, &b, &shared).await;
    assert_stored(&store, &c, &alone).await;
    assert_stored(&store, &e, &small).await;
    for handle in [removed, d] {
        assert_eq!(store.get(&handle.key).await.unwrap(), None);
    }
    store.close().await.unwrap();
    let (_, report) = open(dir.path()).await;
    assert_eq!((report.outcome, report.n_handles, report.n_taken_over), (OpenOutcome::Existing, 4, 0));
}

#[tokio::test]
async fn artifact_files_that_vanish_or_change_cost_only_their_own_handles() {
    let dir = tempdir().unwrap();
    let artifacts: Vec<_> = (0..4).map(|n| bytes(n, 30_000)).collect();
    let handles: Vec<_> = artifacts.iter().zip(0..).map(|(artifact, n)| handle(key(n), artifact)).collect();
    let file = |n: usize| {
        let digest = handles[n].digest.to_string();
        dir.path().join("artifacts").join(&digest[..2]).join(digest)
    };
    let (store, _) = open(dir.path()).await;
    for (handle, artifact) in handles.iter().zip(&artifacts) {
        store.put(handle.clone(), artifact.clone()).await.unwrap();
        assert_stored(&store, handle, artifact).await;
    }

    // While it is open: one goes, one changes after it was verified.
    fs::remove_file(file(0)).unwrap();
    let mut changed = fs::read(file(1)).unwrap();
    changed[20_000] ^= 1;
    fs::write(file(1), changed).unwrap();
    // A handle that was just looked up is at hand for a moment.
    let gone = async {
        while store.get(&handles[0].key).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("it is missed after that moment");
    assert!(store.open_artifact(&handles[1].digest).await.unwrap().is_none());
    assert_eq!(store.get(&handles[1].key).await.unwrap(), None);
    assert!(!file(1).exists());
    assert_eq!((store.stats().n_damaged_dropped, store.stats().n_handles), (2, 2));
    store.close().await.unwrap();

    // While it is closed: one more goes.
    fs::remove_file(file(2)).unwrap();
    let (store, report) = open(dir.path()).await;
    assert_eq!((report.n_handles, report.n_dropped), (1, 1));
    assert_stored(&store, &handles[3], &artifacts[3]).await;
    assert_eq!(store.stats().n_damaged_dropped, 3);

    // A put over a damaged file repairs it.
    fs::write(file(3), "short").unwrap();
    store.put(handles[3].clone(), artifacts[3].clone()).await.unwrap();
    assert_stored(&store, &handles[3], &artifacts[3]).await;
}
