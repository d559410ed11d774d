//! Manifests: durable, replaced whole, absent rather than wrong.

use std::{fs, path::Path};

use piecewised_graph::{Manifest, ManifestPiece, ProgramName};
use tempfile::tempdir;

use crate::support::{artifact, handle, key, open};

fn manifest(program: &str, n_pieces: u32) -> Manifest {
    let handle = handle(key(1), &artifact(1));
    let piece = |index| ManifestPiece { index, entries: vec![], handles: vec![handle.clone()] };
    Manifest {
        program: program.parse().unwrap(),
        toolchain: handle.toolchain.clone(),
        devices: vec![handle.device.clone()],
        pieces: (0..n_pieces).map(piece).collect(),
        n_distinct_pieces: 1,
        signature: None,
        created_unix_ms: 5,
    }
}

fn name(program: &str) -> ProgramName {
    program.parse().unwrap()
}

fn files(path: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(path.join("manifests")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test]
async fn a_manifest_comes_back_after_a_reopen_and_is_replaced_whole() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    assert_eq!(store.get_manifest(&name("llama")).await.unwrap(), None);
    assert!(store.put_manifest(manifest("llama", 3)).await.unwrap());
    assert!(
        !store.put_manifest(Manifest { created_unix_ms: 9, ..manifest("llama", 3) }).await.unwrap(),
        "only the date"
    );
    assert!(store.put_manifest(manifest("llama", 4)).await.unwrap());
    assert!(store.put_manifest(manifest("Llama", 2)).await.unwrap(), "another name");
    store.close().await.unwrap();

    let (store, report) = open(dir.path()).await;
    assert_eq!(report.set_aside, None);
    assert_eq!(store.get_manifest(&name("llama")).await.unwrap(), Some(manifest("llama", 4)));
    assert_eq!(store.get_manifest(&name("Llama")).await.unwrap(), Some(manifest("Llama", 2)));
    // A store that is not closed loses none either: each was synced when it was put.
    drop(store);
    let (store, _) = open(dir.path()).await;
    assert_eq!(store.get_manifest(&name("llama")).await.unwrap(), Some(manifest("llama", 4)));
}

#[tokio::test]
async fn a_damaged_manifest_is_dropped_and_counted() {
    let dir = tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    // 33 pieces: larger than any record of the index may be.
    store.put_manifest(manifest("model", 33)).await.unwrap();
    let [path] = files(dir.path()).try_into().unwrap();
    let whole = fs::read(&path).unwrap();
    let damaged: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes[200] ^= 1,
        |bytes| bytes[3] ^= 1,
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes.clear(),
    ];
    for (n, damage) in (1..).zip(damaged) {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(store.get_manifest(&name("model")).await.unwrap(), None);
        assert_eq!(store.stats().n_damaged_dropped, n);
        assert!(files(dir.path()).is_empty());
    }
    // One that is whole but lies under another's name is none of that name.
    store.put_manifest(manifest("other", 1)).await.unwrap();
    let [other] = files(dir.path()).try_into().unwrap();
    fs::rename(other, &path).unwrap();
    assert_eq!(store.get_manifest(&name("model")).await.unwrap(), None);
    assert!(store.put_manifest(manifest("model", 33)).await.unwrap());
}

#[test]
fn a_name_is_never_a_path() {
    for text in ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a b", "ä", "a\0b", &"n".repeat(129)] {
        assert!(text.parse::<ProgramName>().is_err(), "{text:?}");
    }
    for text in ["a", "Llama-3.1-8B_tp2.rank0", &"n".repeat(128)] {
        assert!(text.parse::<ProgramName>().is_ok(), "{text:?}");
    }
}
