//! Evictions against a list in order of use, with pins and reopens in between.

use std::collections::BTreeSet;

use piecewised_graph::Digest;
use piecewised_store::{Store, StoreConfig};
use proptest::{collection::vec, prelude::*};

use crate::{
    evict::{manifest, put},
    support::{bytes, config, handle, key, memory_dir, read},
};

const LEN: usize = 100_000;
/// What an artifact with one handle counts for.
const CHARGE: u64 = (100_000_u64 + 88).next_multiple_of(4096) + 4096;
/// One less than fits: a put makes room for the handle's frame too.
const N_KEPT: usize = 7;

#[derive(Debug, Clone)]
enum Op {
    Put(u64),
    Get(u64),
    Read(u64),
    Remove(u64),
    /// In place of the one before.
    Pin(u64),
    Unpin,
    Reopen,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        12 => (0..16u64).prop_map(Op::Put),
        4 => (0..16u64).prop_map(Op::Get),
        4 => (0..16u64).prop_map(Op::Read),
        1 => (0..16u64).prop_map(Op::Remove),
        1 => (1..8u64).prop_map(Op::Pin),
        1 => Just(Op::Unpin),
        1 => Just(Op::Reopen),
    ];
    vec(op, 20..100)
}

fn config_of(path: &std::path::Path) -> StoreConfig {
    StoreConfig { max_bytes: Some((N_KEPT as u64 + 1) * CHARGE), ..config(path) }
}

async fn run(ops: Vec<Op>) {
    let dir = memory_dir();
    let mut store = Store::open(config_of(dir.path())).await.unwrap().0;
    // The least recently used one first.
    let mut order: Vec<u64> = Vec::new();
    let mut pinned: BTreeSet<u64> = BTreeSet::new();
    let mut n_evicted = 0;
    let touch = |order: &mut Vec<u64>, n: u64| {
        let was_there = order.iter().position(|other| *other == n).map(|at| order.remove(at)).is_some();
        if was_there {
            order.push(n);
        }
        was_there
    };
    for op in ops {
        match op {
            Op::Put(n) => {
                put(&store, n).await;
                if !touch(&mut order, n) {
                    while order.len() >= N_KEPT {
                        let at = order.iter().position(|other| !pinned.contains(other)).unwrap();
                        order.remove(at);
                        n_evicted += 1;
                    }
                    order.push(n);
                }
            }
            Op::Get(n) => {
                let expect = touch(&mut order, n).then(|| handle(key(n), &bytes(n, LEN)));
                assert_eq!(store.get(&key(n)).await.unwrap(), expect, "{n} of {order:?}");
            }
            Op::Read(n) => {
                let expect = touch(&mut order, n).then(|| bytes(n, LEN).to_vec());
                assert!(read(&store, &Digest::of(&bytes(n, LEN))).await == expect, "{n} of {order:?}");
            }
            Op::Remove(n) => {
                // What a manifest names would stay without its handle; the other model has that.
                if !pinned.contains(&n) {
                    assert_eq!(store.remove(&key(n)).await.unwrap(), touch(&mut order, n));
                    order.retain(|other| *other != n);
                }
            }
            Op::Pin(bits) => {
                pinned = (0..3).filter(|n| bits & (1 << n) != 0).collect();
                store.put_manifest(manifest("model", &pinned.iter().copied().collect::<Vec<_>>())).await.unwrap();
            }
            Op::Unpin => {
                store.remove_manifest(&"model".parse().unwrap()).await.unwrap();
                pinned.clear();
            }
            Op::Reopen => {
                store.close().await.unwrap();
                store = Store::open(config_of(dir.path())).await.unwrap().0;
            }
        }
        let stats = store.stats();
        let expect = (order.len() as u64, order.len() as u64, n_evicted);
        assert_eq!((stats.n_artifacts, stats.n_handles, stats.n_evicted), expect);
        assert_eq!((stats.disk_bytes, stats.n_damaged_dropped), (order.len() as u64 * CHARGE, 0));
    }
}

#[test]
fn evictions_follow_the_order_of_use_and_spare_pins() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cases = std::env::var("PIECEWISED_STORE_MODEL_CASES").map_or(32, |text| text.parse().unwrap());
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(ops in ops())| runtime.block_on(run(ops)));
}
