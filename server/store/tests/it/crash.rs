//! kill -9 at random moments: nothing acknowledged is lost, nothing half done is seen.
//!
//! A child puts, replaces and removes artifacts, remembers and forgets failures, and stores manifests; it writes down what it
//! begins and what was acknowledged. The parent kills it, opens the store, and compares. In every other round artifacts are
//! evicted all the while: then one may be absent, but never an older one, and what a manifest names is there.
//! `PIECEWISED_STORE_KILL_ROUNDS` sets how often (10 by default).

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::Path,
    process::Child,
    time::Duration,
};

use bytes::Bytes;
use piecewised_graph::{Digest, Handle, ProgramName};
use piecewised_store::{FailureRecord, OpenOutcome, OpenReport, Store, StoreConfig};
use tempfile::tempdir;
use tokio::task::JoinSet;

use crate::{
    evict,
    support::{self, Dice, artifact, artifact_files, child_path, handle, key, read, start_child, wait_for},
};

const N_WRITERS: u64 = 6;
const KEYS_PER_WRITER: u64 = 8;

/// Numbers from here on are failures; and from there on, programs: one for each writer, stored once, with two artifacts.
const FAILURES_AT: u64 = 1000;
const PROGRAMS_AT: u64 = 2000;

/// Failures here are as old as their versions.
fn config(path: &Path, max_bytes: Option<u64>) -> StoreConfig {
    StoreConfig { failure_ttl: Duration::MAX, max_bytes, ..support::config(path) }
}

fn failure(version: u64) -> FailureRecord {
    FailureRecord { reason: "COMPILE_ERROR".into(), message: format!("try {version}"), failed_unix_ms: version }
}

fn program(writer: u64) -> (ProgramName, [u64; 2]) {
    (format!("program-{writer}").parse().unwrap(), [PROGRAMS_AT + 2 * writer, PROGRAMS_AT + 2 * writer + 1])
}

/// Version 0 is absence. Neighbouring keys share artifacts now and then.
fn stored(n: u64, version: u64) -> Option<(Handle, Bytes)> {
    let artifact = artifact((n / 2) * 1_000_003 + version / 2);
    let handle = Handle { created_unix_ms: version, ..handle(key(n), &artifact) };
    (version > 0).then_some((handle, artifact))
}

/// In another process: works on the store until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_writes_until_it_is_killed() {
    let Some(path) = child_path() else { return };
    let seed: u64 = fs::read_to_string(path.join("seed")).unwrap().parse().unwrap();
    let mut journal = OpenOptions::new().append(true).open(path.join("journal")).unwrap();
    let max_bytes = seed.is_multiple_of(2).then_some(1 << 20);
    if max_bytes.is_some() {
        journal.write_all(b"evicting 0 0\n").unwrap();
    }
    let (store, _) = Store::open(config(&path.join("store"), max_bytes)).await.unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..N_WRITERS {
        writers.spawn(write(store.clone(), journal.try_clone().unwrap(), seed, writer));
    }
    while let Some(result) = writers.join_next().await {
        result.unwrap();
    }
}

async fn write(store: Store, mut journal: File, seed: u64, writer: u64) {
    let mut dice = Dice::new(seed * N_WRITERS + writer);
    let (name, artifacts) = program(writer);
    if store.get_manifest(&name).await.unwrap().is_none() {
        let n = PROGRAMS_AT + writer;
        journal.write_all(format!("begin {n} 1\n").as_bytes()).unwrap();
        // First, so that they are pinned when they come.
        store.put_manifest(evict::manifest(name.as_str(), &artifacts)).await.unwrap();
        for n in artifacts {
            evict::put(&store, n).await;
        }
        journal.write_all(format!("done {n} 1\n").as_bytes()).unwrap();
    }
    for step in 1.. {
        let n = writer * KEYS_PER_WRITER + dice.below(KEYS_PER_WRITER);
        let is_failure = dice.below(6) == 0;
        let n = if is_failure { FAILURES_AT + n } else { n };
        let version = if dice.below(5) == 0 { 0 } else { seed * 1_000_000 + step };
        journal.write_all(format!("begin {n} {version}\n").as_bytes()).unwrap();
        let result = match stored(n, version) {
            _ if is_failure && version == 0 => store.forget_failures(Some(key(n))).await.map(drop),
            _ if is_failure => store.put_failure(&key(n), failure(version)).await,
            Some((handle, artifact)) => store.put(handle, artifact).await.map(drop),
            None => store.remove(&key(n)).await.map(drop),
        };
        let end = if result.is_ok() { "done" } else { "failed" };
        journal.write_all(format!("{end} {n} {version}\n").as_bytes()).unwrap();
    }
}

/// What each key may be: the last version acknowledged, or one begun since. Nothing counts as acknowledged after a cut.
pub(crate) fn allowed(journal: &str) -> HashMap<u64, Vec<u64>> {
    let mut allowed: HashMap<u64, Vec<u64>> = HashMap::new();
    let (mut is_cut, mut is_evicting) = (false, false);
    // A line without its end was being written when the kill came; so was nothing else of that writer.
    for line in journal.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let words: Vec<_> = line.split(' ').collect();
        let (n, version) = (words[1].parse().unwrap(), words[2].parse().unwrap());
        if let "cut" | "evicting" = words[0] {
            is_cut |= words[0] == "cut";
            is_evicting |= words[0] == "evicting";
            continue;
        }
        let versions = allowed.entry(n).or_insert_with(|| vec![0]);
        match words[0] {
            "begin" => versions.push(version),
            "done" if !is_cut => *versions = vec![version],
            _ => {}
        }
    }
    if is_evicting {
        allowed.iter_mut().filter(|(n, _)| **n < FAILURES_AT).for_each(|(_, versions)| versions.push(0));
    }
    allowed
}

/// Compares the store with the journal; returns what the open found, and a journal that says what is there.
pub(crate) async fn check(store: &Path, journal: &str) -> (OpenReport, String) {
    let (opened, report) = Store::open(config(store, None)).await.unwrap();
    let mut found = String::new();
    let mut files = Vec::new();
    for (n, versions) in allowed(journal) {
        if n >= PROGRAMS_AT {
            let version = check_program(&opened, n - PROGRAMS_AT, versions == [1], &mut files).await;
            found += &format!("done {n} {version}\n");
            continue;
        }
        if n >= FAILURES_AT {
            let record = opened.get_failure(&key(n)).await.unwrap();
            let version = record.as_ref().map_or(0, |record| record.failed_unix_ms);
            assert!(versions.contains(&version), "failure {n} is at {version}, not any of {versions:?}; {report}");
            assert!(record.is_none_or(|record| record == failure(version)));
            found += &format!("done {n} {version}\n");
            continue;
        }
        let handle = opened.get(&key(n)).await.unwrap();
        let version = handle.as_ref().map_or(0, |handle| handle.created_unix_ms);
        assert!(versions.contains(&version), "key {n} is at {version}, not any of {versions:?}; {report}");
        let expect = stored(n, version);
        assert_eq!(handle, expect.as_ref().map(|(handle, _)| handle.clone()));
        if let Some((handle, artifact)) = expect {
            assert!(read(&opened, &handle.digest).await.is_some_and(|bytes| bytes == artifact), "key {n}; {report}");
            files.push(handle.digest.to_string());
        }
        found += &format!("done {n} {version}\n");
    }
    files.sort();
    files.dedup();
    assert_eq!(artifact_files(store), files, "no file is left over; {report}");
    opened.close().await.unwrap();
    (report, found)
}

/// That a program that was acknowledged is there with its artifacts; returns its version. One that was only begun may be there in part.
async fn check_program(store: &Store, writer: u64, is_acknowledged: bool, files: &mut Vec<String>) -> u64 {
    let (name, artifacts) = program(writer);
    let is_there = store.get_manifest(&name).await.unwrap().is_some();
    assert!(is_there || !is_acknowledged, "the manifest of {name} is lost");
    let mut is_whole = is_there;
    for n in artifacts {
        let artifact = support::bytes(n, 100_000);
        let found = read(store, &Digest::of(&artifact)).await;
        assert!(found.is_some() || !is_acknowledged, "artifact {n} of {name} is lost");
        assert!(found.as_ref().is_none_or(|found| *found == artifact));
        is_whole &= found.is_some();
        files.extend(found.map(|_| Digest::of(&artifact).to_string()));
    }
    if is_there && !is_whole {
        // The next child begins anew.
        store.remove_manifest(&name).await.unwrap();
    }
    u64::from(is_whole)
}

/// Starts a child that works on `dir/store`, and lets it work for a random while.
pub(crate) fn start_writer(dir: &Path, journal: &str, round: u64, dice: &mut Dice) -> Child {
    let path = dir.join("journal");
    fs::write(&path, journal).unwrap();
    fs::write(dir.join("seed"), format!("{round}")).unwrap();
    let child = start_child("crash::child_writes_until_it_is_killed", dir, File::create(dir.join("stderr")).unwrap());
    wait_for("the child's first word", || fs::metadata(&path).unwrap().len() > journal.len() as u64);
    std::thread::sleep(Duration::from_millis(dice.below(400)));
    child
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_by_kill_9() {
    let n_rounds = std::env::var("PIECEWISED_STORE_KILL_ROUNDS").map_or(10, |text| text.parse().unwrap());
    let dir = tempdir().unwrap();
    let mut dice = Dice::new(std::process::id().into());
    let mut journal = String::new();
    for round in 1..=n_rounds {
        let mut child = start_writer(dir.path(), &journal, round, &mut dice);
        child.kill().unwrap();
        child.wait().unwrap();
        journal = fs::read_to_string(dir.path().join("journal")).unwrap();
        let said = fs::read_to_string(dir.path().join("stderr")).unwrap();
        assert!(!journal.contains("failed") && !said.contains("panicked"), "{said}");
        let (report, found) = check(&dir.path().join("store"), &journal).await;
        assert_eq!((report.outcome, report.n_dropped), (OpenOutcome::Existing, 0), "{report}");
        journal = found;
    }
}
