//! The store against a plain map, with reopens and lost indexes in between.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
};

use bytes::Bytes;
use piecewised_graph::{Digest, Handle};
use proptest::{collection::vec, prelude::*};

use crate::support::{artifact_files, bytes, copy_tree, handle, key, long_handle, memory_dir, open, read};

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
    Reopen,
    /// A reopen after the index's folder was deleted.
    LoseIndex,
    /// A reopen after the index's folder was set back to its state at the reopen before.
    OldIndex,
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

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        12 => (0..5u64, 0..N_ARTIFACTS, 0..3u64).prop_map(|(key, artifact, variant)| Op::Put { key, artifact, variant }),
        4 => (0..5u64).prop_map(|key| Op::Get { key }),
        4 => (0..N_ARTIFACTS).prop_map(|artifact| Op::Read { artifact }),
        4 => (0..5u64).prop_map(|key| Op::Remove { key }),
        1 => Just(Op::Reopen),
        1 => Just(Op::LoseIndex),
        1 => Just(Op::OldIndex),
    ];
    vec(op, 1..60)
}

async fn run(ops: Vec<Op>) {
    let dir = memory_dir();
    let mut model: HashMap<u64, Handle> = HashMap::new();
    let path = dir.path().join("store");
    let mut store = open(&path).await.0;
    let old = dir.path().join("old");
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
            Op::Reopen | Op::LoseIndex | Op::OldIndex => {
                store.close().await.unwrap();
                let index = path.join("db");
                match op {
                    Op::LoseIndex => fs::remove_dir_all(&index).unwrap(),
                    Op::OldIndex if old.exists() => {
                        fs::remove_dir_all(&index).unwrap();
                        copy_tree(&old, &index);
                    }
                    _ => {}
                }
                let _ = fs::remove_dir_all(&old);
                if index.exists() {
                    copy_tree(&index, &old);
                }
                store = open(&path).await.0;
            }
        }
        let sizes: HashMap<Digest, u64> = model.values().map(|handle| (handle.digest, handle.size_bytes)).collect();
        let stats = store.stats();
        let expect = (model.len() as u64, sizes.len() as u64, sizes.values().sum());
        assert_eq!((stats.n_handles, stats.n_artifacts, stats.artifact_bytes), expect);
    }
    let named: BTreeSet<String> = model.values().map(|handle| handle.digest.to_string()).collect();
    assert!(artifact_files(&path).into_iter().all(|name| named.contains(&name)), "what nobody names is gone");
    for (n, handle) in &model {
        assert_eq!(store.get(&key(*n)).await.unwrap().as_ref(), Some(handle));
        assert_eq!(Digest::of(&read(&store, &handle.digest).await.unwrap()), handle.digest);
    }
}

#[test]
fn it_is_a_map_whatever_becomes_of_the_index() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(ops in ops())| runtime.block_on(run(ops)));
}
