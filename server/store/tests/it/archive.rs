//! Exports and imports: the same content comes over, and nothing that is damaged or cut off does.

use std::{fs, path::Path};

use piecewised_graph::Digest;
use piecewised_store::{ImportReport, Store, StoreError};
use tempfile::tempdir;

use crate::{
    evict::{manifest, put},
    support::{Dice, artifact, assert_stored, bytes, handle, key, long_handle, memory_dir, open, read, run},
};

const N_KEYS: u64 = 30;

async fn filled(path: &Path) -> Store {
    let (store, _) = open(path).await;
    for n in 0..N_KEYS {
        // Some share an artifact.
        let artifact = artifact(n / 2);
        let handle = if n % 7 == 0 { long_handle(key(n), &artifact) } else { handle(key(n), &artifact) };
        store.put(handle, artifact).await.unwrap();
    }
    for n in 100..104 {
        put(&store, n).await;
    }
    store.put_manifest(manifest("model", &[100, 101])).await.unwrap();
    store.put_manifest(manifest("other", &[101, 102])).await.unwrap();
    store
}

/// That whatever the store has is what was put; returns how many handles it has.
async fn assert_right(store: &Store) -> u64 {
    for n in (0..N_KEYS).chain(100..104) {
        let artifact = if n < N_KEYS { artifact(n / 2) } else { bytes(n, 100_000) };
        if let Some(found) = store.get(&key(n)).await.unwrap() {
            let is_long = n < N_KEYS && n % 7 == 0;
            let expect = if is_long { long_handle(key(n), &artifact) } else { handle(key(n), &artifact) };
            assert_stored(store, &expect, &artifact).await;
            assert_eq!(found, expect);
        }
    }
    store.stats().n_handles
}

#[tokio::test]
async fn an_export_brings_everything_over_and_is_the_same_each_time() {
    let dir = tempdir().unwrap();
    let store = filled(&dir.path().join("a")).await;
    let (first, second) = (dir.path().join("first.tar"), dir.path().join("second.tar"));
    let report = store.export(&first, vec![]).await.unwrap();
    assert_eq!((report.n_handles, report.n_manifests, report.n_left_out), (34, 2, 0));
    assert_eq!(report.n_artifacts as u64, store.stats().n_artifacts);

    let (other, _) = open(&dir.path().join("b")).await;
    let taken = other.import(&first).await.unwrap();
    assert!(taken.is_complete(), "{taken:?}");
    let counts = (taken.n_handles, taken.n_artifacts, taken.n_manifests, taken.artifact_bytes);
    assert_eq!(counts, (34, report.n_artifacts, 2, report.artifact_bytes));
    assert_eq!(assert_right(&other).await, 34);
    assert_eq!(other.list_manifests(), store.list_manifests());
    other.export(&second, vec![]).await.unwrap();
    assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap(), "one content, one file");

    let again = other.import(&first).await.unwrap();
    assert_eq!(again, ImportReport { n_known_handles: 34, n_known_manifests: 2, ..ImportReport::default() });
    drop(other);
    let (other, report) = open(&dir.path().join("b")).await;
    assert_eq!((report.n_handles, report.n_dropped, report.n_taken_over), (34, 0, 0), "durable like any other");
    assert_eq!(assert_right(&other).await, 34);
}

#[tokio::test]
async fn a_program_is_exported_with_what_it_names_and_no_more() {
    let dir = tempdir().unwrap();
    let store = filled(&dir.path().join("a")).await;
    // Only the manifest names it now.
    let again = bytes(77, 10);
    store.put(handle(key(100), &again), again.clone()).await.unwrap();
    let file = dir.path().join("model.tar");
    let report = store.export(&file, vec!["model".parse().unwrap()]).await.unwrap();
    assert_eq!((report.n_manifests, report.n_artifacts, report.n_handles), (1, 2, 1));
    let error = store.export(&file, vec!["nobody".parse().unwrap()]).await.unwrap_err();
    assert!(error.to_string().contains("no program nobody"), "{error}");

    let (other, _) = open(&dir.path().join("b")).await;
    let taken = other.import(&file).await.unwrap();
    assert!(taken.is_complete(), "{taken:?}");
    assert_eq!((taken.n_manifests, taken.n_artifacts, taken.n_handles), (1, 2, 1));
    drop(other);
    let (other, _) = open(&dir.path().join("b")).await;
    let program = "model".parse().unwrap();
    assert_eq!(other.get_manifest(&program).await.unwrap(), Some(manifest("model", &[100, 101])));
    for n in [100, 101] {
        assert!(read(&other, &Digest::of(&bytes(n, 100_000))).await.unwrap() == bytes(n, 100_000));
    }
    other.remove_manifest(&program).await.unwrap();
    assert_eq!(other.stats().n_artifacts, 1);
}

#[tokio::test]
async fn ordinary_tools_look_into_an_export() {
    let dir = tempdir().unwrap();
    let store = filled(&dir.path().join("a")).await;
    let file = dir.path().join("export.tar");
    store.export(&file, vec![]).await.unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    run("tar", ["-xf".as_ref(), file.as_os_str(), "-C".as_ref(), out.as_os_str()]).unwrap();
    let sums = fs::read_to_string(out.join("B3SUMS")).unwrap();
    assert_eq!(sums.lines().count(), 34 + store.stats().n_artifacts as usize + 2);
    for line in sums.lines() {
        let (digest, name) = line.split_once("  ").unwrap();
        assert_eq!(Digest::of(&fs::read(out.join(name)).unwrap()).to_string(), digest, "{name}");
    }
    let format = fs::read_to_string(out.join("FORMAT")).unwrap();
    assert_eq!(format, format!("piecewised-export 1\n{}  B3SUMS\n", Digest::of(sums.as_bytes())));
}

#[tokio::test]
async fn what_is_no_export_is_refused_with_a_reason() {
    let dir = tempdir().unwrap();
    let (store, _) = open(&dir.path().join("store")).await;
    let file = dir.path().join("file");
    for (content, reason) in [(&b""[..], "not an export"), (b"hello", "not an export"), (&[0; 20_000], "not an export")]
    {
        fs::write(&file, content).unwrap();
        let error = store.import(&file).await.unwrap_err();
        assert!(matches!(error, StoreError::Archive { .. }) && error.to_string().contains(reason), "{error}");
    }
    let inner = dir.path().join("FORMAT");
    for (text, reason) in [("piecewised-export 2\n", "version 2"), ("something else", "not an export")] {
        fs::write(&inner, text).unwrap();
        run("tar", ["-cf".as_ref(), file.as_os_str(), "-C".as_ref(), dir.path().as_os_str(), "FORMAT".as_ref()])
            .unwrap();
        let error = store.import(&file).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
    let error = store.import(&dir.path().join("nowhere")).await.unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert_eq!(store.stats().n_handles, 0);
}

/// Cut anywhere, or with changed bits: what is taken is right, and what is not is said.
#[tokio::test]
async fn a_damaged_export_gives_what_verifies_and_says_what_does_not() {
    let dir = memory_dir();
    let store = filled(&dir.path().join("a")).await;
    let file = dir.path().join("export.tar");
    store.export(&file, vec![]).await.unwrap();
    let whole = fs::read(&file).unwrap();
    let (mut n_refused, mut n_partial) = (0, 0);
    for round in 0..60 {
        let mut dice = Dice::new(round);
        let mut bytes = whole.clone();
        let is_cut = round % 3 == 0;
        if is_cut {
            bytes.truncate(usize::try_from(dice.below(whole.len() as u64 - 2048)).unwrap());
        } else {
            // The list is a small part of the file; half of the flips are near it.
            let end = if round % 2 == 0 { 20_000 } else { whole.len() as u64 };
            for _ in 0..=dice.below(4) {
                bytes[usize::try_from(dice.below(end)).unwrap()] ^= 1 << dice.below(8);
            }
        }
        fs::write(&file, &bytes).unwrap();
        let path = dir.path().join(format!("round {round}"));
        let (other, _) = open(&path).await;
        match other.import(&file).await {
            Err(error) => {
                assert!(matches!(error, StoreError::Archive { .. }), "round {round}: {error}");
                assert_eq!((other.stats().n_handles, other.stats().n_artifacts), (0, 0), "round {round}");
                n_refused += 1;
            }
            Ok(report) => {
                let n = assert_right(&other).await;
                assert_eq!(n, report.n_handles as u64, "round {round}");
                assert!(!(is_cut && report.is_complete()), "round {round}: {report:?}");
                assert_eq!(report.is_complete(), n == 34 && report.n_manifests == 2, "round {round}: {report:?}");
                for info in other.list_manifests() {
                    let manifest = other.get_manifest(&info.program).await.unwrap().unwrap();
                    for handle in &manifest.pieces[0].handles {
                        assert!(
                            read(&other, &handle.digest).await.is_some(),
                            "round {round}: a manifest lacks something"
                        );
                    }
                }
                n_partial += u64::from(!report.is_complete());
            }
        }
        // And the whole one fills the gaps.
        fs::write(&file, &whole).unwrap();
        let report = other.import(&file).await.unwrap();
        assert!(report.is_complete(), "round {round}: {report:?}");
        assert_eq!(assert_right(&other).await, 34);
        other.close().await.unwrap();
        fs::remove_dir_all(path).unwrap();
    }
    assert!(n_refused > 3 && n_partial > 10, "{n_refused} refused, {n_partial} in part");
}
