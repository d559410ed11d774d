//! Checks and repairs of a store that nobody has open.

use std::{fs, path::Path};

use piecewised_store::{OpenOutcome, ProblemKind, Store, StoreError, check};
use tempfile::tempdir;

use crate::{
    damage::damage,
    evict::{manifest, put},
    failures::failure,
    support::{
        Dice, artifact, assert_stored, bytes, config, copy_tree, files_below, handle, key, memory_dir, open, read,
    },
};

async fn fill(path: &Path) {
    let (store, _) = open(path).await;
    for n in 0..20 {
        let artifact = artifact(n);
        store.put(handle(key(n), &artifact), artifact).await.unwrap();
    }
    for n in 100..103 {
        put(&store, n).await;
    }
    store.put_manifest(manifest("model", &[100, 101])).await.unwrap();
    store.put_failure(&key(50), failure(1)).await.unwrap();
    store.close().await.unwrap();
}

async fn kinds(path: &Path) -> Vec<ProblemKind> {
    check(&config(path), false).await.unwrap().problems.into_iter().map(|problem| problem.kind).collect()
}

#[tokio::test]
async fn a_store_in_order_is_found_in_order_and_left_as_it_was() {
    let dir = tempdir().unwrap();
    fill(dir.path()).await;
    let content = |path: &Path| -> Vec<_> {
        let files = files_below(path).into_iter().filter(|file| !file.ends_with("lock"));
        files.map(|file| (fs::read(&file).unwrap(), file)).collect()
    };
    let before = content(dir.path());
    for repair in [false, true] {
        let report = check(&config(dir.path()), repair).await.unwrap();
        assert_eq!(report.problems, []);
        assert_eq!((report.n_handles, report.n_artifacts, report.n_manifests, report.n_failures), (23, 21, 1, 1));
        assert!(content(dir.path()) == before, "a check changes nothing");
    }
    let (_store, report) = open(dir.path()).await;
    assert_eq!((report.outcome, report.n_handles, report.n_dropped), (OpenOutcome::Existing, 23, 0));
    let error = check(&config(dir.path()), false).await.unwrap_err();
    let pid = format!("process {} ", std::process::id());
    assert!(matches!(&error, StoreError::Locked { owner, .. } if owner.starts_with(&pid)), "{error}");
    assert!(error.to_string().contains("/it-"), "with its command line: {error}");
}

#[tokio::test]
async fn a_folder_without_a_store_is_no_store() {
    let dir = tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("nowhere")] {
        let error = check(&config(&path), true).await.unwrap_err();
        assert!(matches!(error, StoreError::Absent { .. }), "{error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "and none is made");
}

#[tokio::test]
async fn each_kind_of_damage_is_found_and_repaired() {
    let dir = memory_dir();
    let whole = dir.path().join("whole");
    fill(&whole).await;
    let file_of = |store: &Path, n: u64| {
        let digest = handle(key(n), &bytes(n, 100_000)).digest.to_string();
        store.join("artifacts").join(&digest[..2]).join(digest)
    };
    let flip = |path: &Path, at: usize| {
        let mut bytes = fs::read(path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let manifest_of = |store: &Path| fs::read_dir(store.join("manifests")).unwrap().next().unwrap().unwrap().path();
    type Damage<'a> = &'a dyn Fn(&Path);
    let cases: [(Damage<'_>, &[ProblemKind]); 8] = [
        (&|store| flip(&store.join("FORMAT"), 3), &[ProblemKind::Format]),
        (&|store| fs::remove_dir_all(store.join("db")).unwrap(), &[ProblemKind::Index]),
        (&|store| flip(&file_of(store, 102), 5000), &[ProblemKind::Artifact]),
        (&|store| flip(&file_of(store, 102), 40), &[ProblemKind::Artifact]),
        (&|store| flip(&file_of(store, 102), 88 + 100_000 + 60), &[ProblemKind::Frames]),
        (&|store| fs::remove_file(file_of(store, 100)).unwrap(), &[ProblemKind::Record, ProblemKind::Incomplete]),
        (&|store| flip(&file_of(store, 101), 5000), &[ProblemKind::Artifact, ProblemKind::Incomplete]),
        (&|store| flip(&manifest_of(store), 100), &[ProblemKind::Manifest]),
    ];
    for (i, (harm, expect)) in cases.into_iter().enumerate() {
        let path = dir.path().join(format!("case {i}"));
        copy_tree(&whole, &path);
        harm(&path);
        assert_eq!(kinds(&path).await, expect, "case {i}");
        assert_eq!(kinds(&path).await, expect, "case {i}: looking did not change it");
        let report = check(&config(&path), true).await.unwrap();
        // Damaged frames stay in their file until it is written anew; nothing is lost by them.
        let left = usize::from(expect == [ProblemKind::Frames]);
        assert_eq!(report.problems.len(), left, "case {i}: {report:?}");
        assert_eq!(report.n_repaired, expect.len() - left, "case {i}");
        let (store, report) = open(&path).await;
        assert_eq!(report.n_dropped, 0, "case {i}: {report}");
        for n in 0..20 {
            assert_stored(&store, &handle(key(n), &artifact(n)), &artifact(n)).await;
        }
        fs::remove_dir_all(path).unwrap();
    }
}

#[tokio::test]
async fn an_unindexed_handle_and_an_orphan_are_told_apart_from_damage() {
    let dir = memory_dir();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    fill(&first).await;
    copy_tree(&first.join("db"), &dir.path().join("old"));
    let (store, _) = open(&first).await;
    put(&store, 200).await;
    store.close().await.unwrap();
    fs::remove_dir_all(first.join("db")).unwrap();
    copy_tree(&dir.path().join("old"), &first.join("db"));
    assert_eq!(kinds(&first).await, [ProblemKind::Unindexed]);
    assert_eq!(check(&config(&first), true).await.unwrap().problems, []);

    // The removal of an artifact's last handle reached the disk, that of its file did not.
    let (store, _) = open(&second).await;
    put(&store, 1).await;
    put(&store, 2).await;
    store.close().await.unwrap();
    let name = handle(key(1), &bytes(1, 100_000)).digest.to_string();
    let file = second.join("artifacts").join(&name[..2]).join(&name);
    let content = fs::read(&file).unwrap();
    let (store, _) = open(&second).await;
    store.remove(&key(1)).await.unwrap();
    store.close().await.unwrap();
    fs::write(&file, &content[..88 + 100_000]).unwrap();
    assert_eq!(kinds(&second).await, [ProblemKind::Orphan]);
    assert_eq!(check(&config(&second), true).await.unwrap().problems, []);
    assert!(!file.exists());
}

/// Whatever random damage does: what a check does not find is no harm, and what it repairs is a good store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_damage_is_found_before_a_caller_finds_it() {
    let dir = memory_dir();
    let whole = dir.path().join("whole");
    fill(&whole).await;
    for round in 0..25 {
        let mut dice = Dice::new(1000 + round);
        let path = dir.path().join(format!("round {round}"));
        copy_tree(&whole, &path);
        let files: Vec<_> =
            files_below(&path).into_iter().filter(|file| fs::metadata(file).unwrap().len() > 0).collect();
        let target = dice.pick(&files).clone();
        damage(&target, &mut dice);
        let found = check(&config(&path), false).await.unwrap();
        let report = check(&config(&path), true).await.unwrap();
        let is_frames = |problem: &piecewised_store::Problem| problem.kind == ProblemKind::Frames;
        assert!(report.problems.iter().all(is_frames), "round {round}, {target:?}: {report:?}");
        let (store, _) = Store::open(config(&path)).await.unwrap();
        for n in 0..20 {
            let is_there = store.get(&key(n)).await.unwrap().is_some();
            let bytes = read(&store, &handle(key(n), &artifact(n)).digest).await;
            assert!(bytes.as_ref().is_none_or(|bytes| *bytes == artifact(n)));
            let is_whole = is_there && bytes.is_some();
            assert!(is_whole || !found.problems.is_empty(), "round {round}, {target:?}: key {n} is lost unseen");
        }
        store.close().await.unwrap();
        fs::remove_dir_all(path).unwrap();
    }
}
