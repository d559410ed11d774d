//! The store against plain maps, with reopens and lost indexes in between: of handles, artifacts, manifests and failures.
//! What is evicted has a model of its own (`lru`). `PIECEWISED_STORE_MODEL_CASES` sets how many runs of operations are tried (32 by default).

use std::{
    collections::{BTreeSet, HashMap},
    fs,
};

use bytes::Bytes;
use piecewised_graph::{Digest, Handle, Manifest, ManifestPiece, ProgramName};
use piecewised_store::FailureRecord;
use proptest::{collection::vec, prelude::*};

use crate::{
    failures::failure,
    support::{artifact_files, bytes, copy_tree, handle, key, long_handle, memory_dir, open, read},
};

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
    /// Of a program, naming the artifacts whose bits are set.
    PutManifest {
        program: u64,
        artifacts: u64,
    },
    RemoveManifest {
        program: u64,
    },
    PutFailure {
        key: u64,
        n: u64,
    },
    ForgetFailure {
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
        2 => (0..2u64, 1..1u64 << N_ARTIFACTS).prop_map(|(program, artifacts)| Op::PutManifest { program, artifacts }),
        2 => (0..2u64).prop_map(|program| Op::RemoveManifest { program }),
        2 => (0..5u64, 0..1000u64).prop_map(|(key, n)| Op::PutFailure { key, n }),
        1 => (0..5u64).prop_map(|key| Op::ForgetFailure { key }),
        1 => Just(Op::Reopen),
        1 => Just(Op::LoseIndex),
        1 => Just(Op::OldIndex),
    ];
    vec(op, 1..60)
}

fn named_by(artifacts: u64) -> impl Iterator<Item = u64> {
    (0..N_ARTIFACTS).filter(move |n| artifacts & (1 << n) != 0)
}

fn manifest(program: &ProgramName, artifacts: u64) -> Manifest {
    let handles: Vec<_> = named_by(artifacts).map(|n| handle(key(100 + n), &artifact(n))).collect();
    Manifest {
        program: program.clone(),
        toolchain: handles[0].toolchain.clone(),
        devices: vec![handles[0].device.clone()],
        pieces: vec![ManifestPiece { index: 0, entries: vec![], handles }],
        n_distinct_pieces: 1,
        signature: None,
        created_unix_ms: 5,
    }
}

fn program(n: u64) -> ProgramName {
    format!("program-{n}").parse().unwrap()
}

async fn run(ops: Vec<Op>) {
    let dir = memory_dir();
    let mut model: HashMap<u64, Handle> = HashMap::new();
    let mut programs: HashMap<u64, u64> = HashMap::new();
    let mut failures: HashMap<u64, FailureRecord> = HashMap::new();
    let mut all_failures: Vec<(u64, FailureRecord)> = Vec::new();
    // Artifacts that are there; one that a program names stays when its last key goes, but does not come by it.
    let mut present: BTreeSet<u64> = BTreeSet::new();
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
                failures.remove(&n);
                present.insert(which);
            }
            Op::Get { key: n } => assert_eq!(store.get(&key(n)).await.unwrap().as_ref(), model.get(&n)),
            Op::Read { artifact: which } => {
                let artifact = artifact(which);
                let found = read(&store, &Digest::of(&artifact)).await;
                assert!(found == present.contains(&which).then(|| artifact.to_vec()), "artifact {which}");
            }
            Op::Remove { key: n } => {
                assert_eq!(store.remove(&key(n)).await.unwrap(), model.remove(&n).is_some());
            }
            Op::PutManifest { program: n, artifacts } => {
                let differs = store.put_manifest(manifest(&program(n), artifacts)).await.unwrap();
                assert_eq!(differs, programs.insert(n, artifacts) != Some(artifacts));
            }
            Op::RemoveManifest { program: n } => {
                assert_eq!(store.remove_manifest(&program(n)).await.unwrap(), programs.remove(&n).is_some());
            }
            Op::PutFailure { key: n, n: message } => {
                let record = failure(message);
                store.put_failure(&key(n), record.clone()).await.unwrap();
                all_failures.push((n, record.clone()));
                failures.insert(n, record);
            }
            Op::ForgetFailure { key: n } => {
                let n_forgotten = store.forget_failures(Some(key(n))).await.unwrap();
                assert_eq!(n_forgotten, u64::from(failures.remove(&n).is_some()));
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
                match op {
                    Op::LoseIndex => failures.clear(),
                    // An older index knows older failures: any that was put may be back, and no other.
                    Op::OldIndex => {
                        failures.clear();
                        for n in 0..5 {
                            let Some(found) = store.get_failure(&key(n)).await.unwrap() else { continue };
                            assert!(all_failures.contains(&(n, found.clone())));
                            failures.insert(n, found);
                        }
                    }
                    _ => {}
                }
            }
        }
        present.retain(|n| {
            let digest = Digest::of(&artifact(*n));
            model.values().any(|handle| handle.digest == digest)
                || programs.values().any(|artifacts| artifacts & (1 << n) != 0)
        });
        for n in 0..5 {
            assert_eq!(store.get_failure(&key(n)).await.unwrap().as_ref(), failures.get(&n), "failure {n}");
        }
        let stats = store.stats();
        let expect =
            (model.len() as u64, present.len() as u64, present.iter().map(|n| artifact(*n).len() as u64).sum::<u64>());
        assert_eq!((stats.n_handles, stats.n_artifacts, stats.artifact_bytes), expect);
    }
    let named: BTreeSet<String> = present.iter().map(|n| Digest::of(&artifact(*n)).to_string()).collect();
    assert_eq!(artifact_files(&path).into_iter().collect::<BTreeSet<_>>(), named, "what nobody names is gone");
    for n in 0..2 {
        let expect = programs.get(&n).map(|artifacts| manifest(&program(n), *artifacts));
        assert_eq!(store.get_manifest(&program(n)).await.unwrap(), expect);
    }
    for (n, handle) in &model {
        assert_eq!(store.get(&key(*n)).await.unwrap().as_ref(), Some(handle));
        assert_eq!(Digest::of(&read(&store, &handle.digest).await.unwrap()), handle.digest);
    }
}

#[test]
fn it_is_a_map_whatever_becomes_of_the_index() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cases = std::env::var("PIECEWISED_STORE_MODEL_CASES").map_or(32, |text| text.parse().unwrap());
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(ops in ops())| runtime.block_on(run(ops)));
}
