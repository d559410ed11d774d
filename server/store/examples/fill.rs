//! Fills a store with artifacts that the store itself wrote: for tests and screenshots of what shows a large one.
//!
//! `cargo run -p piecewised-store --example fill -- FOLDER N_ARTIFACTS` puts them in through the store's own interface. No two are alike: devices, ranges,
//! sizes and what came of checking them vary, as they do in a store that has been in use.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for people")]

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use piecewised_graph::{
    Handle, PhaseTiming, Segment, Timings, Verification, VerificationOutcome,
    request::{ArtifactFormat, DeviceKind, Tuning},
};
use piecewised_store::{Store, StoreConfig};
use tokio::task::JoinSet;

// What the tests make handles and artifacts with.
#[path = "../tests/it/support.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod support;

use support::{bytes, handle, key};

const WRITERS: u64 = 16;

/// The `n`th artifact's handle.
fn varied(n: u64, artifact: &[u8], now: Duration) -> Handle {
    let devices =
        [("cuda", "NVIDIA H100 80GB HBM3", "9.0"), ("cuda", "NVIDIA H200", "9.0"), ("cpu", "x86_64", "avx512")];
    let (r#type, name, capability) = devices[usize::try_from(n % 3).unwrap()];
    let end = 1 << (n % 13);
    let range = Some(serde_json::from_value(serde_json::json!([end / 2 + 1, end])).unwrap());
    let compile_s = 0.5 + (n % 97) as f64 / 4.0;
    let phase = |phase: &str, share| PhaseTiming { phase: phase.into(), seconds: compile_s * share };
    let mut it = Handle {
        range,
        device: DeviceKind { r#type: r#type.into(), name: name.into(), capability: capability.into() },
        format: if n.is_multiple_of(5) { ArtifactFormat::Aoti } else { ArtifactFormat::Inductor },
        segments: vec![Segment { range, entry: "e0".into(), guards: Vec::new() }],
        timings: Timings {
            total_s: compile_s,
            cpu_s: compile_s,
            phases: vec![phase("rebuild", 0.1), phase("compile", 0.6), phase("verify", 0.3)],
        },
        verification: Verification {
            outcome: if n.is_multiple_of(11) {
                VerificationOutcome::NotComparable
            } else {
                VerificationOutcome::Passed
            },
            ..Verification::default()
        },
        created_unix_ms: u64::try_from(now.as_millis()).unwrap() - n * 60_000,
        ..handle(key(n), artifact)
    };
    it.tuning.mode = if n.is_multiple_of(4) { Tuning::Full } else { Tuning::Fast };
    it
}

async fn fill(path: &Path, n_artifacts: u64) {
    let (store, _) = Store::open(StoreConfig { reserve_bytes: 0, ..StoreConfig::new(path) }).await.unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            for n in (writer..n_artifacts).step_by(usize::try_from(WRITERS).unwrap()) {
                let artifact = bytes(n, 200 + usize::try_from(n * 37 % 4000).unwrap());
                store.put(varied(n, &artifact, now), artifact).await.unwrap();
            }
        });
    }
    while let Some(result) = writers.join_next().await {
        result.unwrap();
    }
    store.close().await.unwrap();
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, n_artifacts] = arguments.as_slice() else {
        println!("usage: fill FOLDER N_ARTIFACTS");
        return;
    };
    let started = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(fill(Path::new(folder), n_artifacts.parse().unwrap()));
    println!("filled in {:.1} s", started.elapsed().as_secs_f64());
}
