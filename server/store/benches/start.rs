//! Time to the first answer, and memory at rest, of a store with many artifacts.
//!
//! `cargo bench -p piecewised-store --bench start -- FOLDER N_ARTIFACTS ARTIFACT_BYTES` fills FOLDER/store and opens it in
//! processes of their own: after a close in order, after a kill, and with a lost index. 10,000 artifacts of 1,000,000 bytes
//! need 10 GB, which are deleted at the end. The page cache is as the filling left it.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for people")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use piecewised_store::{Store, StoreConfig};
use tokio::task::JoinSet;

// What the tests make handles and artifacts with.
#[path = "../tests/it/support.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod support;

use support::{bytes, handle, key};

async fn fill(path: &Path, n_artifacts: u64, len: usize) {
    let (store, _) = Store::open(StoreConfig::new(path)).await.unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let store = store.clone();
        writers.spawn(async move {
            for n in (writer..n_artifacts).step_by(4) {
                let artifact = bytes(n, len);
                store.put(handle(key(n), &artifact), artifact).await.unwrap();
            }
        });
    }
    while let Some(result) = writers.join_next().await {
        result.unwrap();
    }
    store.close().await.unwrap();
}

fn resident_mb() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1e3
}

/// In a process of its own: opens, answers, rests, and ends in order or by a kill.
async fn measure(path: &Path, n_artifacts: u64, end: &str) {
    let started = Instant::now();
    let (store, report) = Store::open(StoreConfig::new(path)).await.unwrap();
    let found = store.get(&key(n_artifacts / 2)).await.unwrap().unwrap();
    let answered = started.elapsed();
    let reader = store.open_artifact(&found.digest).await.unwrap().unwrap();
    reader.read_at(0, 256 << 10).await.unwrap();
    let fetched = started.elapsed();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let resident = resident_mb();
    for n in 0..n_artifacts {
        store.get(&key(n)).await.unwrap().unwrap();
    }
    println!(
        "{report}; first answer {:.3} s, first bytes {:.3} s; {resident:.0} MB at rest, {:.0} MB after looking all up",
        answered.as_secs_f64(),
        fetched.as_secs_f64(),
        resident_mb()
    );
    match end {
        "close" => {
            let started = Instant::now();
            store.close().await.unwrap();
            println!("closed in {:.3} s", started.elapsed().as_secs_f64());
        }
        _ => rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap(),
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [folder, n_artifacts, len, rest @ ..] = arguments.as_slice() else {
        println!("usage: start FOLDER N_ARTIFACTS ARTIFACT_BYTES");
        return;
    };
    let path = PathBuf::from(folder).join("store");
    let n = n_artifacts.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let [end] = rest {
        runtime.block_on(measure(&path, n, end));
        return;
    }
    let started = Instant::now();
    runtime.block_on(fill(&path, n, len.parse().unwrap()));
    println!("filled in {:.0} s", started.elapsed().as_secs_f64());
    for (what, end) in [("closed in order", "close"), ("again", "kill"), ("killed", "close"), ("index lost", "close")] {
        if what == "index lost" {
            fs::remove_dir_all(path.join("db")).unwrap();
        }
        println!("{what}:");
        let program = std::env::current_exe().unwrap();
        Command::new(program).args([folder, n_artifacts, len, end]).status().unwrap();
    }
    fs::remove_dir_all(path).unwrap();
}
