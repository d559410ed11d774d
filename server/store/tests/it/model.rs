//! The store against a plain map, with reopens and lost indexes in between.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
};

use bytes::Bytes;
use piecewised_graph::{Digest, Handle};
use piecewised_store::Store;
use proptest::{collection::vec, prelude::*};
use tempfile::tempdir;

use crate::support::{artifact_files, bytes, config, handle, key, long_handle, read};

#[derive(Debug, Clone)]
enum Op {
    Put {
        key: u64,
        artifact: u64,
        variant: u64,
    },
    Get {
        key: u64,
    },
    Read {
        artifact: u64,
    },
    Remove {
        key: u64,
    },
    Reopen {
        threshold: usize,
    },
    /// A reopen after the index's folder was deleted.
    LoseIndex,
}

const N_ARTIFACTS: u64 = 6;

fn artifact(n: u64) -> Bytes {
    bytes(n, [0, 300, 4096, 5000, 30_000, 30_001][usize::try_from(n).unwrap()])
}

fn variant_of(key: Digest, artifact: &[u8], variant: u64) -> Handle {
    match variant {
        0 => long_handle(key, artifact),
        n => Handle { created_unix_ms: n, ..handle(key, artifact) },
    }
}

fn ops(can_lose_index: bool) -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0..5u64, 0..N_ARTIFACTS, 0..3u64).prop_map(|(key, artifact, variant)| Op::Put { key, artifact, variant }),
        2 => (0..5u64).prop_map(|key| Op::Get { key }),
        2 => (0..N_ARTIFACTS).prop_map(|artifact| Op::Read { artifact }),
        2 => (0..5u64).prop_map(|key| Op::Remove { key }),
        1 => prop_oneof![Just(0), Just(4096)].prop_map(move |threshold| match can_lose_index {
            true => Op::LoseIndex,
            false => Op::Reopen { threshold },
        }),
    ];
    vec(op, 1..40)
}

async fn open(path: &Path, inline_threshold_bytes: usize) -> Store {
    let mut config = config(path);
    config.inline_threshold_bytes = inline_threshold_bytes;
    Store::open(config).await.unwrap().0
}

async fn run(ops: Vec<Op>) {
    let dir = tempdir().unwrap();
    let mut model: HashMap<u64, Handle> = HashMap::new();
    let mut store = open(dir.path(), 0).await;
    for op in ops {
        match op {
            Op::Put { key: n, artifact: which, variant } => {
                let artifact = artifact(which);
                let handle = variant_of(key(n), &artifact, variant);
                store.put(handle.clone(), artifact).await.unwrap();
                model.insert(n, handle);
            }
            Op::Get { key: n } => assert_eq!(store.get(&key(n)).await.unwrap().as_ref(), model.get(&n)),
            Op::Read { artifact: which } => {
                let artifact = artifact(which);
                let is_named = model.values().any(|handle| handle.digest == Digest::of(&artifact));
                let found = read(&store, &Digest::of(&artifact)).await;
                assert!(found == is_named.then(|| artifact.to_vec()), "artifact {which}");
            }
            Op::Remove { key: n } => {
                assert_eq!(store.remove(&key(n)).await.unwrap(), model.remove(&n).is_some());
            }
            Op::Reopen { threshold } => {
                store.close().await.unwrap();
                store = open(dir.path(), threshold).await;
            }
            Op::LoseIndex => {
                store.close().await.unwrap();
                fs::remove_dir_all(dir.path().join("db")).unwrap();
                store = open(dir.path(), 0).await;
            }
        }
        let sizes: HashMap<Digest, u64> = model.values().map(|handle| (handle.digest, handle.size_bytes)).collect();
        let stats = store.stats();
        let expect = (model.len() as u64, sizes.len() as u64, sizes.values().sum());
        assert_eq!((stats.n_handles, stats.n_artifacts, stats.artifact_bytes), expect);
        assert_eq!(stats.n_damaged_dropped, 0);
    }
    let named: BTreeSet<String> = model.values().map(|handle| handle.digest.to_string()).collect();
    assert!(artifact_files(dir.path()).into_iter().all(|name| named.contains(&name)), "what nobody names is gone");
    for (n, handle) in &model {
        assert_eq!(store.get(&key(*n)).await.unwrap().as_ref(), Some(handle));
        assert_eq!(Digest::of(&read(&store, &handle.digest).await.unwrap()), handle.digest);
    }
}

fn check(n_cases: u32, can_lose_index: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = ProptestConfig { cases: n_cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(ops in ops(can_lose_index))| runtime.block_on(run(ops)));
}

#[test]
fn it_is_a_map() {
    check(24, false);
}

#[test]
fn it_is_a_map_even_if_the_index_is_lost() {
    check(24, true);
}
