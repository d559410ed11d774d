//! Bytes changed and files cut at rest: never wrong bytes, never a failed open, and a store that works afterwards.
//!
//! `PIECEWISED_STORE_DAMAGE_ROUNDS` sets how many damaged stores are tried (40 by default).

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use piecewised_graph::{Handle, Manifest, ManifestPiece};
use piecewised_store::{FailureRecord, OpenReport, Store, StoreConfig};
use tokio::task::JoinSet;

use crate::support::{
    self, Dice, artifact, assert_stored, copy_tree, files_below, handle, key, long_handle, memory_dir, read,
};

const N_KEYS: u64 = 60;

fn stored(n: u64) -> (Handle, Bytes) {
    let artifact = artifact(n / 2);
    let handle = if n.is_multiple_of(7) { long_handle(key(n), &artifact) } else { handle(key(n), &artifact) };
    (handle, artifact)
}

async fn put_all(store: &Store) {
    let mut puts = JoinSet::new();
    for n in 0..N_KEYS {
        let store = store.clone();
        puts.spawn(async move {
            let (handle, artifact) = stored(n);
            store.put(handle, artifact).await.unwrap();
        });
    }
    while let Some(result) = puts.join_next().await {
        result.unwrap();
    }
    store.put_manifest(program()).await.unwrap();
    for n in FAILED {
        store.put_failure(&key(n), failure(n)).await.unwrap();
    }
}

/// Keys without an artifact, that failed.
const FAILED: std::ops::Range<u64> = 1000..1010;

/// Old enough to be the same each time, and remembered all the same: see [`config`].
fn failure(n: u64) -> FailureRecord {
    FailureRecord { reason: "COMPILE_ERROR".into(), message: "no".repeat(500), failed_unix_ms: n }
}

fn program() -> Manifest {
    let handles = vec![stored(1).0, stored(9).0];
    Manifest {
        program: "model".parse().unwrap(),
        toolchain: handles[0].toolchain.clone(),
        devices: vec![handles[0].device.clone()],
        pieces: vec![ManifestPiece { index: 0, entries: vec![], handles }],
        n_distinct_pieces: 1,
        signature: None,
        created_unix_ms: 5,
    }
}

fn config(path: &Path) -> StoreConfig {
    let open_timeout = Duration::from_secs(5);
    StoreConfig { failure_ttl: Duration::MAX, open_timeout, ..support::config(path) }
}

async fn open(path: &Path) -> (Store, OpenReport) {
    Store::open(config(path)).await.unwrap()
}

/// Does something bad to a file.
pub(crate) fn damage(path: &Path, dice: &mut Dice) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let at = dice.below(len);
    match dice.below(6) {
        0 => file.set_len(at).unwrap(),
        1 => file.write_all_at(&vec![0; usize::try_from(dice.below(5000)).unwrap()], at).unwrap(),
        2 => {
            let noise: Vec<_> = (0..dice.below(600)).map(|_| u8::try_from(dice.below(256)).unwrap()).collect();
            file.write_all_at(&noise, at).unwrap();
        }
        _ => {
            for _ in 0..=dice.below(3) {
                let at = dice.below(len);
                let mut byte = [0];
                if file.read_at(&mut byte, at).unwrap() == 1 {
                    file.write_all_at(&[byte[0] ^ (1 << dice.below(8))], at).unwrap();
                }
            }
        }
    }
}

fn targets(store: &Path, dice: &mut Dice) -> (Vec<PathBuf>, bool) {
    let (index, others): (Vec<_>, Vec<_>) = files_below(store)
        .into_iter()
        .filter(|path| fs::metadata(path).unwrap().len() > 0)
        .partition(|path| path.starts_with(store.join("db")));
    let only_index = dice.below(2) == 0;
    let n_targets = if only_index { 1 } else { 1 + dice.below(5) };
    let mut pick = || {
        let from = if only_index || dice.below(4) == 0 { &index } else { &others };
        dice.pick(from).clone()
    };
    let targets = (0..n_targets).map(|_| pick()).collect();
    (targets, only_index)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_at_rest_costs_at_most_what_it_hit() {
    let n_rounds = std::env::var("PIECEWISED_STORE_DAMAGE_ROUNDS").map_or(40, |text| text.parse().unwrap());
    let dir = memory_dir();
    let whole = dir.path().join("whole");
    let (store, _) = open(&whole).await;
    put_all(&store).await;
    store.close().await.unwrap();

    for round in 0..n_rounds {
        let mut dice = Dice::new(round);
        let path = dir.path().join(format!("round {round}"));
        copy_tree(&whole, &path);
        let (targets, only_index) = targets(&path, &mut dice);
        for target in &targets {
            damage(target, &mut dice);
        }
        let context = format!("round {round}, damaged {targets:?}");
        let (store, report) = Store::open(config(&path)).await.unwrap_or_else(|error| panic!("{context}: {error}"));
        for n in 0..N_KEYS {
            let (handle, artifact) = stored(n);
            let found = store.get(&handle.key).await.unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(found.as_ref().is_none_or(|found| *found == handle), "{context}: key {n}");
            let bytes = read(&store, &handle.digest).await;
            assert!(bytes.as_ref().is_none_or(|bytes| *bytes == artifact), "{context}: key {n}");
            if only_index {
                assert!(found.is_some() && bytes.is_some(), "{context}: key {n} is lost, {report:?}");
            }
        }
        let manifest = store.get_manifest(&program().program).await.unwrap();
        assert!(manifest.as_ref().is_none_or(|found| *found == program()), "{context}");
        assert!(manifest.is_some() || !only_index, "{context}: the manifest is lost");
        for n in FAILED {
            let found = store.get_failure(&key(n)).await.unwrap();
            assert!(found.is_none_or(|found| found == failure(n)), "{context}: failure {n}");
        }
        put_all(&store).await;
        store.close().await.unwrap();
        let (store, report) = open(&path).await;
        assert_eq!(store.get_manifest(&program().program).await.unwrap(), Some(program()), "{context}");
        for n in FAILED {
            assert_eq!(store.get_failure(&key(n)).await.unwrap(), Some(failure(n)), "{context}");
        }
        assert_eq!(report.n_handles as u64, N_KEYS, "{context}: {report:?}");
        for n in 0..N_KEYS {
            let (handle, artifact) = stored(n);
            assert_stored(&store, &handle, &artifact).await;
        }
        store.close().await.unwrap();
        fs::remove_dir_all(path).unwrap();
    }
}
