//! A disk without room, or one that fails: old artifacts go for new ones, and what cannot be written is held and served.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use piecewised_graph::Handle;
use piecewised_store::{Store, StoreConfig, StoreError, Stored};

use crate::support::{Mount, assert_stored, bytes, handle, key, skipped};

/// A small file system of its own.
struct Disk {
    mount: Mount,
}

impl Disk {
    fn mount(megabytes: u32) -> Option<Self> {
        let size = format!("size={megabytes}m");
        let mount = Mount::new(&["-t", "tmpfs", "-o", &size, "tmpfs"]);
        mount.map(|mount| Self { mount }).map_err(|why| skipped("a full disk", &why)).ok()
    }

    fn store(&self) -> PathBuf {
        self.mount.path().join("store")
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let path = self.mount.path().join("filler");
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.mount.path().join("filler")).unwrap();
    }
}

fn config(path: &Path, reserve_bytes: u64) -> StoreConfig {
    StoreConfig { reserve_bytes, ..StoreConfig::new(path) }
}

/// Nothing is evicted, so that a full disk stays full.
fn keeping(path: &Path, reserve_bytes: u64) -> StoreConfig {
    StoreConfig { may_evict: false, ..config(path, reserve_bytes) }
}

/// Puts artifacts of `len` bytes until one cannot be written; returns the durable ones, and the one that is held.
async fn put_until_held(store: &Store, first: u64, len: usize) -> (Vec<Handle>, Handle) {
    let mut handles = Vec::new();
    for n in first.. {
        let artifact = bytes(n, len);
        let handle = handle(key(n), &artifact);
        match store.put(handle.clone(), artifact).await.unwrap() {
            Stored::Durable => handles.push(handle),
            Stored::Held => return (handles, handle),
        }
    }
    unreachable!("the disk does not end")
}

async fn assert_all(store: &Store, handles: &[Handle], first: u64, len: usize) {
    for (handle, n) in handles.iter().zip(first..) {
        assert_stored(store, handle, &bytes(n, len)).await;
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} does not come");
}

#[tokio::test]
async fn what_does_not_fit_is_held_and_served_and_written_when_there_is_room() {
    let Some(disk) = Disk::mount(24) else { return };
    let (store, _) = Store::open(keeping(&disk.store(), 4 << 20)).await.unwrap();
    let (handles, held) = put_until_held(&store, 0, 500_000).await;
    let n = handles.len() as u64;
    assert!(n > 20);
    assert_all(&store, &handles, 0, 500_000).await;
    assert_stored(&store, &held, &bytes(n, 500_000)).await;
    let stats = store.stats();
    assert_eq!((stats.is_full, stats.n_held, stats.n_handles, stats.n_evicted), (true, 1, n, 0));
    assert!(stats.held_bytes >= 500_000);

    disk.fill();
    let small = bytes(1000, 10);
    let outcome = store.put(handle(key(1000), &small), small.clone()).await.unwrap();
    assert_eq!(outcome, Stored::Held);
    assert_stored(&store, &handle(key(1000), &small), &small).await;
    assert_all(&store, &handles, 0, 500_000).await;

    // Another one under a key that is held, and one that is removed before it could be written.
    let newer = bytes(1001, 20);
    store.put(handle(key(1000), &newer), newer.clone()).await.unwrap();
    assert_stored(&store, &handle(key(1000), &newer), &newer).await;
    assert!(store.open_artifact(&handle(key(1000), &small).digest).await.unwrap().is_none());
    assert_eq!(store.put(handle(key(1002), &small), small.clone()).await.unwrap(), Stored::Held);
    assert!(store.remove(&key(1002)).await.unwrap());

    disk.free();
    for handle in &handles[..2] {
        assert!(store.remove(&handle.key).await.unwrap());
    }
    until("room for what is held", || store.stats().n_held == 0).await;
    let stats = store.stats();
    assert_eq!((stats.is_full, stats.held_bytes, stats.n_held_dropped), (false, 0, 0));
    store.close().await.unwrap();

    let (store, report) = Store::open(keeping(&disk.store(), 4 << 20)).await.unwrap();
    assert_eq!((report.n_handles, report.n_dropped), (handles.len(), 0));
    assert_all(&store, &handles[2..], 2, 500_000).await;
    assert_stored(&store, &held, &bytes(n, 500_000)).await;
    assert_stored(&store, &handle(key(1000), &newer), &newer).await;
    assert_eq!(store.get(&key(1002)).await.unwrap(), None);
}

#[tokio::test]
async fn what_is_held_is_bounded_and_ends_with_the_store_if_it_must() {
    let Some(disk) = Disk::mount(16) else { return };
    let config = StoreConfig { max_held_bytes: 1 << 20, ..keeping(&disk.store(), 4 << 20) };
    let (store, _) = Store::open(config).await.unwrap();
    let (handles, _) = put_until_held(&store, 0, 300_000).await;
    let n = handles.len() as u64;
    for n in n + 1..n + 8 {
        let artifact = bytes(n, 300_000);
        assert_eq!(store.put(handle(key(n), &artifact), artifact).await.unwrap(), Stored::Held);
    }
    let stats = store.stats();
    assert_eq!((stats.n_held, stats.n_held_dropped), (3, 5));
    assert!(stats.held_bytes <= 1 << 20);
    for n in n + 5..n + 8 {
        assert_stored(&store, &handle(key(n), &bytes(n, 300_000)), &bytes(n, 300_000)).await;
    }
    assert_eq!(store.get(&key(n)).await.unwrap(), None, "the one used least recently went");
    // Larger than all that may be held: the caller hears why.
    let large = bytes(1, 2 << 20);
    disk.fill();
    let error = store.put(handle(key(5000), &large), large).await.unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    // A close that cannot write does not wait for a disk.
    disk.free();
    disk.fill();
    let _ = store.close().await;
    disk.free();
    let (store, _) = Store::open(keeping(&disk.store(), 4 << 20)).await.unwrap();
    assert_all(&store, &handles, 0, 300_000).await;
    assert_eq!(store.get(&key(n + 7)).await.unwrap(), None);
}

#[tokio::test]
async fn old_artifacts_go_for_new_ones_where_the_disk_has_no_more_room() {
    let Some(disk) = Disk::mount(24) else { return };
    let (store, _) = Store::open(config(&disk.store(), 4 << 20)).await.unwrap();
    for n in 0..200 {
        let artifact = bytes(n, 400_000);
        let outcome = store.put(handle(key(n), &artifact), artifact.clone()).await.unwrap();
        assert_eq!(outcome, Stored::Durable);
        // One is used all the time.
        assert_stored(&store, &handle(key(0), &bytes(0, 400_000)), &bytes(0, 400_000)).await;
        assert_stored(&store, &handle(key(n), &artifact), &artifact).await;
    }
    let stats = store.stats();
    assert_eq!((stats.n_evicted + stats.n_artifacts, stats.is_full, stats.n_held), (200, false, 0));
    assert!(stats.n_artifacts > 30, "no more than needed: {stats:?}");
    // What the reserve is for.
    let room = rustix::fs::statvfs(disk.mount.path()).unwrap();
    assert!(room.f_bavail * room.f_frsize >= 3 << 20);
}

/// Space that others take is not made up for by giving up everything in vain.
#[tokio::test]
async fn nothing_is_evicted_where_that_would_not_do() {
    let Some(disk) = Disk::mount(24) else { return };
    let (store, _) = Store::open(config(&disk.store(), 4 << 20)).await.unwrap();
    for n in 0..5 {
        let artifact = bytes(n, 100_000);
        store.put(handle(key(n), &artifact), artifact).await.unwrap();
    }
    disk.fill();
    let large = bytes(100, 6 << 20);
    assert_eq!(store.put(handle(key(100), &large), large.clone()).await.unwrap(), Stored::Held);
    assert_eq!((store.stats().n_evicted, store.stats().n_handles), (0, 5));
    assert_stored(&store, &handle(key(100), &large), &large).await;
}

/// A start on a disk without one free byte: what is new is served from memory, and what was there is there again afterwards.
#[tokio::test]
async fn a_store_on_a_full_disk_opens_and_holds() {
    let Some(disk) = Disk::mount(24) else { return };
    let (store, _) = Store::open(keeping(&disk.store(), 0)).await.unwrap();
    for n in 0..5 {
        let artifact = bytes(n, 50_000);
        store.put(handle(key(n), &artifact), artifact).await.unwrap();
    }
    store.close().await.unwrap();
    // As if it had not been closed in order, so that there is something to be brought into line.
    fs::remove_file(disk.store().join("clean")).unwrap();
    disk.fill();
    let (store, report) = Store::open(keeping(&disk.store(), 0)).await.unwrap();
    assert_eq!(report.set_aside, None, "{report}");
    let artifact = bytes(100, 50_000);
    let new = handle(key(100), &artifact);
    assert_eq!(store.get(&new.key).await.unwrap(), None);
    assert_eq!(store.get_failure(&new.key).await.unwrap(), None);
    assert_eq!(store.put(new.clone(), artifact.clone()).await.unwrap(), Stored::Held);
    assert_stored(&store, &new, &artifact).await;

    disk.free();
    until("room for what is held", || store.stats().n_held == 0).await;
    for n in 0..5 {
        assert_stored(&store, &handle(key(n), &bytes(n, 50_000)), &bytes(n, 50_000)).await;
    }
    assert_eq!(store.stats().n_puts, 6, "counters go on");
    store.close().await.unwrap();
    let (store, report) = Store::open(keeping(&disk.store(), 0)).await.unwrap();
    assert_eq!((report.n_handles, report.n_dropped), (6, 0));
    assert_stored(&store, &new, &artifact).await;
}

#[tokio::test]
async fn a_disk_that_fails_holds_and_comes_back() {
    let Some(disk) = Disk::mount(24) else { return };
    let (store, _) = Store::open(config(&disk.store(), 0)).await.unwrap();
    let (first, second) = (bytes(1, 50_000), bytes(2, 50_000));
    store.put(handle(key(1), &first), first.clone()).await.unwrap();
    // No root is refused by rights, and a mount with open files cannot be made read-only: the folders are blocked instead.
    let artifacts = disk.store().join("artifacts");
    let aside = disk.store().join("artifacts-away");
    let tmp = disk.store().join("tmp");
    fs::rename(&artifacts, &aside).unwrap();
    fs::write(&artifacts, "in the way").unwrap();
    fs::remove_dir_all(&tmp).unwrap();
    fs::write(&tmp, "in the way").unwrap();
    assert_eq!(store.put(handle(key(2), &second), second.clone()).await.unwrap(), Stored::Held);
    assert_stored(&store, &handle(key(2), &second), &second).await;
    let stats = store.stats();
    assert_eq!((stats.is_full, stats.is_failing, stats.n_held), (false, true, 1));

    fs::remove_file(&artifacts).unwrap();
    fs::remove_file(&tmp).unwrap();
    fs::rename(&aside, &artifacts).unwrap();
    until("the write of what is held", || store.stats().n_held == 0).await;
    assert!(!store.stats().is_failing);
    assert_stored(&store, &handle(key(1), &first), &first).await;
    assert_stored(&store, &handle(key(2), &second), &second).await;
    store.close().await.unwrap();
    let (store, _) = Store::open(config(&disk.store(), 0)).await.unwrap();
    assert_stored(&store, &handle(key(2), &second), &second).await;
}

/// With nothing kept back, the index itself runs out of room.
#[tokio::test]
async fn an_index_without_room_comes_back_when_there_is_some() {
    let Some(disk) = Disk::mount(16) else { return };
    let (mut store, _) = Store::open(keeping(&disk.store(), 0)).await.unwrap();
    let mut handles = Vec::new();
    for n in 0..400 {
        let artifact = bytes(n, 3000);
        handles.push(handle(key(n), &artifact));
        store.put(handles[handles.len() - 1].clone(), artifact).await.unwrap();
    }

    // Removals write to the index, and the room that they give back is taken at once.
    disk.fill();
    let mut n_removed = 0_u64;
    for handle in &handles[..300] {
        disk.fill();
        match store.remove(&handle.key).await {
            Ok(was_there) => assert!(was_there),
            Err(_) => break,
        }
        n_removed += 1;
    }
    disk.free();

    // The index is reopened at most once a second.
    let artifact = bytes(3000, 3000);
    let again = handle(key(3000), &artifact);
    for _ in 0..100 {
        if store.put(again.clone(), artifact.clone()).await.is_ok_and(|outcome| outcome == Stored::Durable) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(n_removed == 300 || store.stats().n_index_reopens > 0);
    for _ in 0..2 {
        for (handle, n) in handles.iter().zip(0..) {
            match n {
                n if n < n_removed => assert_eq!(store.get(&handle.key).await.unwrap(), None),
                n if n > n_removed => assert_stored(&store, handle, &bytes(n, 3000)).await,
                // The removal that failed.
                _ => {}
            }
        }
        assert_stored(&store, &again, &artifact).await;
        store.close().await.unwrap();
        store = Store::open(keeping(&disk.store(), 0)).await.unwrap().0;
    }
}
