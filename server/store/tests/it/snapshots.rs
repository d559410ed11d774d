//! Snapshots: durable, verified, replaced, evicted and exported as artifacts are.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use piecewised_graph::{Digest, SnapshotName};
use piecewised_store::{Store, StoreConfig, check};
use tempfile::tempdir;

use crate::{
    crash,
    support::{self, Dice, artifact, assert_stored, child_path, config, handle, key, open, start_child, wait_for},
};

fn name(name: &str) -> SnapshotName {
    SnapshotName::new("vllm".into(), name.into(), "ab12".into()).unwrap()
}

async fn put(store: &Store, called: &str, bytes: &Bytes) {
    let snapshot = store.put_snapshot(name(called), bytes.clone()).await.unwrap();
    assert_eq!((snapshot.digest, snapshot.size_bytes), (Digest::of(bytes), bytes.len() as u64));
}

/// The bytes of a snapshot, in pieces.
async fn found(store: &Store, called: &str) -> Option<Vec<u8>> {
    let (snapshot, reader) = store.open_snapshot(&name(called)).await.unwrap()?;
    assert_eq!(snapshot.snapshot, name(called));
    let mut bytes = Vec::new();
    while bytes.len() as u64 != reader.total_bytes() {
        bytes.extend_from_slice(&reader.read_at(bytes.len() as u64, 64 << 10).await.unwrap());
    }
    Some(bytes)
}

fn file_of(store: &Path, bytes: &[u8]) -> std::path::PathBuf {
    let digest = Digest::of(bytes).to_string();
    store.join("artifacts").join(&digest[..2]).join(digest)
}

#[tokio::test]
async fn a_snapshot_comes_back_by_its_whole_name_and_is_replaced() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let [one, two] = [1, 2].map(|seed| support::bytes(seed, 100_000));
    assert_eq!(found(&store, "aot").await, None);
    put(&store, "aot", &one).await;
    put(&store, "other", &one).await;
    for (frontend, called, toolchain) in [("vllm", "aot", "ab13"), ("vllm2", "aot", "ab12"), ("vllm", "ao", "tab12")] {
        let other = SnapshotName::new(frontend.into(), called.into(), toolchain.into()).unwrap();
        assert!(store.open_snapshot(&other).await.unwrap().is_none());
    }
    put(&store, "aot", &two).await;
    store.close().await.unwrap();
    let (store, report) = open(dir.path()).await;
    assert_eq!(report.set_aside, None);
    assert_eq!(found(&store, "aot").await.as_deref(), Some(&two[..]));
    assert_eq!(found(&store, "other").await.as_deref(), Some(&one[..]));
    put(&store, "other", &two).await;
    assert!(!file_of(dir.path(), &one).exists(), "nothing names it any more");
    // A snapshot is no artifact of a key, and an artifact of a key is no snapshot.
    assert_eq!(store.get(&name("aot").key()).await.unwrap(), None);
    assert_eq!(found(&store, "aot").await.as_deref(), Some(&two[..]));
}

#[tokio::test]
async fn a_flipped_bit_drops_it() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let bytes = support::bytes(1, 50_000);
    put(&store, "aot", &bytes).await;
    let path = file_of(dir.path(), &bytes);
    let mut damaged = fs::read(&path).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&path, damaged).unwrap();
    assert_eq!(found(&store, "aot").await, None);
    assert_eq!(store.stats().n_damaged_dropped, 1);
    assert!(!path.exists());
    put(&store, "aot", &bytes).await;
    assert_eq!(found(&store, "aot").await.as_deref(), Some(&bytes[..]));
}

#[tokio::test]
async fn the_least_recently_used_goes_first_whatever_it_is() {
    let dir = tempdir().unwrap();
    let config = StoreConfig { max_bytes: Some(1 << 20), ..config(dir.path()) };
    let (store, _) = Store::open(config).await.unwrap();
    let artifact = support::bytes(100, 200_000);
    let kept = handle(key(1), &artifact);
    store.put(kept.clone(), artifact.clone()).await.unwrap();
    put(&store, "old", &support::bytes(1, 200_000)).await;
    put(&store, "used", &support::bytes(2, 200_000)).await;
    for seed in 3..8 {
        assert!(found(&store, "used").await.is_some());
        assert_stored(&store, &kept, &artifact).await;
        put(&store, &format!("next {seed}"), &support::bytes(seed, 200_000)).await;
    }
    assert_eq!(found(&store, "old").await, None);
    assert!(found(&store, "used").await.is_some() && found(&store, "next 7").await.is_some());
    assert!(store.stats().n_evicted > 0 && store.stats().disk_bytes <= 1 << 20);
}

#[tokio::test]
async fn it_is_exported_and_checked_like_an_artifact() {
    let dir = tempdir().unwrap();
    let (from, to, file) = (dir.path().join("from"), dir.path().join("to"), dir.path().join("export.tar"));
    let (store, _) = open(&from).await;
    let bytes = support::bytes(1, 10_000);
    put(&store, "aot", &bytes).await;
    store.put(handle(key(1), &artifact(7)), artifact(7)).await.unwrap();
    assert_eq!(store.export(&file, vec![]).await.unwrap().n_artifacts, 2);
    store.close().await.unwrap();
    let (store, _) = open(&to).await;
    let report = store.import(&file).await.unwrap();
    assert!(report.is_complete() && report.n_handles == 2, "{report:?}");
    assert_eq!(found(&store, "aot").await.as_deref(), Some(&bytes[..]));
    store.close().await.unwrap();

    assert_eq!(check(&config(&to), false).await.unwrap().problems, []);
    // A repair for another's sake leaves it alone.
    fs::write(file_of(&to, &artifact(7)), b"damaged").unwrap();
    assert_eq!(check(&config(&to), true).await.unwrap().problems, []);
    let (store, _) = open(&to).await;
    assert_eq!(found(&store, "aot").await.as_deref(), Some(&bytes[..]));
    assert_eq!(store.get(&key(1)).await.unwrap(), None);
}

const N_NAMES: u64 = 5;

/// What version of a name holds; neighbours share bytes.
fn content(n: u64, version: u64) -> Bytes {
    support::bytes(n / 2 * 1_000_003 + version, 30_000)
}

/// In another process: puts snapshots until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_puts_snapshots_until_it_is_killed() {
    let Some(path) = child_path() else { return };
    let mut journal = OpenOptions::new().append(true).open(path.join("journal")).unwrap();
    let round: u64 = fs::read_to_string(path.join("round")).unwrap().parse().unwrap();
    let (store, _) = open(&path.join("store")).await;
    for step in 0.. {
        let (n, version) = (step % N_NAMES, round * 1_000_000 + step);
        // A line in one write, where `writeln!` writes it in pieces.
        let mut note = |word: &str| journal.write_all(format!("{word} {n} {version}\n").as_bytes()).unwrap();
        note("begin");
        store.put_snapshot(name(&n.to_string()), content(n, version)).await.unwrap();
        note("done");
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = tempdir().unwrap();
    let journal = dir.path().join("journal");
    fs::write(&journal, "").unwrap();
    let mut dice = Dice::new(std::process::id().into());
    let n_rounds = std::env::var("PIECEWISED_STORE_KILL_ROUNDS").map_or(5, |text| text.parse().unwrap());
    for round in 1..=n_rounds {
        fs::write(dir.path().join("round"), round.to_string()).unwrap();
        let before = fs::metadata(&journal).unwrap().len();
        let stderr = fs::File::create(dir.path().join("stderr")).unwrap();
        let mut child = start_child("snapshots::child_puts_snapshots_until_it_is_killed", dir.path(), stderr);
        wait_for("the child's first word", || fs::metadata(&journal).unwrap().len() > before);
        std::thread::sleep(Duration::from_millis(dice.below(300)));
        child.kill().unwrap();
        child.wait().unwrap();
        let said = fs::read_to_string(dir.path().join("stderr")).unwrap();
        assert!(!said.contains("panicked"), "{said}");

        // What the kill left of a line is no word; the next child's starts a line.
        let mut text = fs::read_to_string(&journal).unwrap();
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        fs::write(&journal, &text).unwrap();

        let (store, report) = open(&dir.path().join("store")).await;
        assert_eq!(report.n_dropped, 0, "{report}");
        let allowed = crash::allowed(&text);
        for n in 0..N_NAMES {
            let versions = allowed.get(&n).map_or(&[0][..], Vec::as_slice);
            let contents = versions.iter().map(|&version| (version > 0).then(|| content(n, version).to_vec()));
            let now = found(&store, &n.to_string()).await;
            assert!(contents.into_iter().any(|content| content == now), "{n} in round {round}: {versions:?}");
        }
        store.close().await.unwrap();
    }
}
