//! The cache folder: whole or absent, whoever else works in it.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::Barrier,
};

use common::{FILES, as_file, good};
use piecewised_client::{Cache, cache_folder};
use piecewised_graph::Digest;

fn names(cache: &Path) -> Vec<String> {
    fs::read_dir(cache.join("artifacts")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn what_was_materialised_is_found_again() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("new/cache");
    let cache = Cache::open(&folder).unwrap();
    let digest = Digest::of(&good());
    assert_eq!(cache.find(&digest), None);
    let made = cache.materialise(&digest, as_file(&good())).unwrap();
    assert_eq!(made, folder.join("artifacts").join(digest.to_string()));
    assert_eq!(fs::read(made.join(FILES[0].0)).unwrap(), FILES[0].1);
    assert_eq!(Cache::open(&folder).unwrap().find(&digest), Some(made));
    for path in [&folder, &folder.join("artifacts")] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
    }
}

#[test]
fn a_folder_that_lost_something_is_removed_and_made_again() {
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let digest = Digest::of(&good());
    let damages: [fn(&Path); 4] = [
        |folder| fs::remove_file(folder.join(FILES[0].0)).unwrap(),
        |folder| fs::write(folder.join(FILES[2].0), "").unwrap(),
        |folder| fs::remove_file(folder.join("manifest.json")).unwrap(),
        |folder| {
            fs::remove_file(folder.join(FILES[2].0)).unwrap();
            symlink("/etc/passwd", folder.join(FILES[2].0)).unwrap();
        },
    ];
    for damage in damages {
        let folder = cache.materialise(&digest, as_file(&good())).unwrap();
        damage(&folder);
        assert_eq!(cache.find(&digest), None);
        assert_eq!(names(root.path()), [""; 0], "nothing is left of it");
    }
}

#[test]
fn a_bad_container_leaves_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let bytes = &good()[..3000];
    let error = cache.materialise(&Digest::of(bytes), as_file(bytes)).unwrap_err();
    assert_eq!(error.reason(), "BAD_CONTAINER");
    assert!(error.falls_back());
    assert_eq!(names(root.path()), [""; 0]);
}

#[test]
fn of_many_at_once_one_wins_and_the_others_clean_up() {
    let root = tempfile::tempdir().unwrap();
    let digest = Digest::of(&good());
    let barrier = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let cache = Cache::open(root.path()).unwrap();
                let file = as_file(&good());
                barrier.wait();
                let folder = cache.materialise(&digest, file).unwrap();
                assert_eq!(cache.find(&digest), Some(folder));
            });
        }
    });
    assert_eq!(names(root.path()), [digest.to_string()]);
}

#[test]
fn a_folder_that_others_can_write_to_is_refused() {
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let error = Cache::open(root.path()).unwrap_err();
    assert_eq!(error.reason(), "CACHE_NOT_PRIVATE");
    assert!(error.to_string().contains("PIECEWISED_CACHE_DIR"));
}

#[test]
fn leftovers_of_killed_processes_go_when_they_are_old() {
    let root = tempfile::tempdir().unwrap();
    Cache::open(root.path()).unwrap();
    let stale = root.path().join("artifacts/.unpacking-old");
    let fresh = root.path().join("artifacts/.unpacking-new");
    fs::create_dir(&stale).unwrap();
    fs::create_dir(&fresh).unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    fs::File::open(&stale).unwrap().set_modified(long_ago).unwrap();
    Cache::open(root.path()).unwrap();
    assert_eq!(names(root.path()), [".unpacking-new"]);
}

#[test]
fn the_default_folder_is_where_caches_are() {
    let check = |variables: &[(&str, &str)], expected: &str| {
        let environment = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        assert_eq!(cache_folder(environment, 7), PathBuf::from(expected));
    };
    check(&[("PIECEWISED_CACHE_DIR", "/c"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], "/c");
    check(&[("PIECEWISED_CACHE_DIR", ""), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], "/x/piecewised");
    check(&[("XDG_CACHE_HOME", "relative"), ("HOME", "/h")], "/h/.cache/piecewised");
    check(&[], "/tmp/piecewised-cache-7");
}
