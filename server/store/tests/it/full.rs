//! A disk without room: only the write that does not fit fails.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use piecewised_graph::Handle;
use piecewised_store::{Store, StoreConfig, StoreError};

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

/// Puts artifacts of `len` bytes until one fails; returns those that were acknowledged, and the error.
async fn put_until_full(store: &Store, first: u64, len: usize) -> (Vec<Handle>, StoreError) {
    let mut handles = Vec::new();
    for n in first.. {
        let artifact = bytes(n, len);
        let handle = handle(key(n), &artifact);
        match store.put(handle.clone(), artifact).await {
            Ok(_) => handles.push(handle),
            Err(error) => return (handles, error),
        }
    }
    unreachable!("the disk does not end")
}

async fn assert_all(store: &Store, handles: &[Handle], first: u64, len: usize) {
    for (handle, n) in handles.iter().zip(first..) {
        assert_stored(store, handle, &bytes(n, len)).await;
    }
}

#[tokio::test]
async fn a_full_disk_refuses_puts_and_nothing_else() {
    let Some(disk) = Disk::mount(24) else { return };
    let (store, _) = Store::open(config(&disk.store(), 4 << 20)).await.unwrap();
    let (handles, error) = put_until_full(&store, 0, 500_000).await;
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(handles.len() > 20);
    assert_all(&store, &handles, 0, 500_000).await;

    disk.fill();
    let artifact = bytes(1000, 10);
    let error = store.put(handle(key(1000), &artifact), artifact.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert_all(&store, &handles, 0, 500_000).await;
    disk.free();

    assert!(store.remove(&handles[0].key).await.unwrap());
    assert!(store.remove(&handles[1].key).await.unwrap());
    store.put(handle(key(1000), &artifact), artifact.clone()).await.unwrap();
    assert_all(&store, &handles[2..], 2, 500_000).await;
    store.close().await.unwrap();
    let (store, report) = Store::open(config(&disk.store(), 4 << 20)).await.unwrap();
    assert_eq!((report.n_handles, report.n_dropped), (handles.len() - 1, 0));
    assert_all(&store, &handles[2..], 2, 500_000).await;
    assert_stored(&store, &handle(key(1000), &artifact), &artifact).await;
}

/// With nothing kept back, the index itself runs out of room.
#[tokio::test]
async fn an_index_without_room_comes_back_when_there_is_some() {
    let Some(disk) = Disk::mount(16) else { return };
    let (mut store, _) = Store::open(config(&disk.store(), 0)).await.unwrap();
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
        if store.put(again.clone(), artifact.clone()).await.is_ok() {
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
        store = Store::open(config(&disk.store(), 0)).await.unwrap().0;
    }
}
