//! Entries as bytes: what was packed is what came, and what was damaged is found before it is used.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{FILES, as_file, good, handle, manifest};
use piecewised_client::{Cache, from_bundle, to_bundle};
use piecewised_graph::{Digest, Handle};
use proptest::prelude::*;

fn handle_of(container: &[u8]) -> Handle {
    Handle { digest: Digest::of(container), ..handle(Some((1, 4)), &[Some((1, 4))]) }
}

fn bundle() -> Vec<u8> {
    to_bundle(&handle_of(&good()), &good())
}

fn reason(bytes: &[u8]) -> String {
    let error = from_bundle(bytes).unwrap_err();
    assert_eq!(error.reason(), "BAD_BUNDLE");
    assert!(error.falls_back(), "nothing that the plan or the options could put right");
    error.to_string()
}

#[test]
fn a_bundle_holds_its_handle_and_its_container() {
    let bytes = bundle();
    let (handle, container) = from_bundle(&bytes).unwrap();
    assert_eq!(handle, handle_of(&good()));
    assert!(container == good());
}

#[test]
fn what_is_no_bundle_is_refused_with_the_reason() {
    let check = |change: fn(&mut Vec<u8>), words: &str| {
        let mut bytes = bundle();
        change(&mut bytes);
        let found = reason(&bytes);
        assert!(found.contains(words), "{found}");
    };
    check(Vec::clear, "0 bytes");
    check(|bytes| bytes.truncate(20), "20 bytes");
    check(|bytes| bytes.truncate(bytes.len() - 1), "cut off");
    check(|bytes| bytes.push(0), "more was added");
    check(|bytes| bytes[0] = b'P', "does not begin");
    check(|bytes| bytes[16] = 2, "version is 2");
    check(|bytes| bytes[20] ^= 1, "cut off");
    check(|bytes| bytes[24] = 0xff, "cut off");
    check(|bytes| bytes[27..36].fill(0xff), "cut off");
    check(|bytes| *bytes.last_mut().unwrap() ^= 1, "checksum");
    let other = to_bundle(&handle_of(b"another"), &good());
    assert!(reason(&other).contains("not the one that its handle names"));
}

proptest! {
    /// No single altered byte goes unnoticed, and nothing makes the reader panic.
    #[test]
    fn an_altered_byte_is_found(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = bundle();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(from_bundle(&bytes).is_err());
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), keeps_magic in any::<bool>()) {
        let bytes = if keeps_magic { [&bundle()[..20], &bytes].concat() } else { bytes };
        prop_assert!(from_bundle(&bytes).is_err());
    }
}

/// As Python's tarfile writes them, in both of its ways, with a path that needs the header's prefix.
fn containers() -> Vec<Vec<u8>> {
    let long = format!("cache/{}/{}.so", "a".repeat(90), "b".repeat(80));
    let mut files = FILES.to_vec();
    files.push((&long, &[7; 1000]));
    files.sort_unstable();
    let text = serde_json::to_vec(&manifest(&files)).unwrap();
    [&[0u8; 8], b"0000000\0"]
        .map(|device| {
            let mut container = Vec::new();
            for (path, content) in [("manifest.json", text.as_slice())].into_iter().chain(files.iter().copied()) {
                let mut header = tar::Header::new_ustar();
                header.set_path(path).unwrap();
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(0o644);
                header.set_size(content.len() as u64);
                let bytes = header.as_mut_bytes();
                for field in [108, 116] {
                    bytes[field..field + 8].copy_from_slice(b"0000000\0");
                }
                bytes[136..148].copy_from_slice(b"00000000000\0");
                for field in [329, 337] {
                    bytes[field..field + 8].copy_from_slice(device);
                }
                header.set_cksum();
                // Python's checksum: six digits, NUL, space.
                let sum = header.cksum().unwrap();
                header.as_mut_bytes()[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                container.extend(header.as_bytes());
                container.extend(content);
                container.resize(container.len().next_multiple_of(512), 0);
            }
            container.resize((container.len() + 1024).next_multiple_of(10240), 0);
            container
        })
        .into()
}

#[test]
fn a_container_comes_back_byte_for_byte_unless_a_file_was_changed() {
    for container in containers() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let digest = Digest::of(&container);
        assert!(cache.container(&digest).is_none(), "not here");
        let folder = cache.materialise(&digest, as_file(&container)).unwrap();
        assert!(cache.container(&digest).is_some_and(|found| found == container));
        let file = folder.join(FILES[0].0);
        let size = fs::read(&file).unwrap().len();
        fs::write(&file, vec![b'x'; size]).unwrap();
        assert!(cache.container(&digest).is_none());
        assert_eq!(cache.find(&digest), None, "it is out of the way, to be fetched again");
    }
}

#[test]
fn a_container_is_installed_once_and_only_under_its_own_digest() {
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let digest = Digest::of(&good());
    let error = cache.install(&Digest::of(b"another"), &good()).unwrap_err();
    assert_eq!(error.reason(), "DIGEST_MISMATCH");
    let folder = cache.install(&digest, &good()).unwrap();
    assert_eq!(cache.install(&digest, &good()).unwrap(), folder);
    assert_eq!(fs::read(folder.join(FILES[0].0)).unwrap(), FILES[0].1);
}
