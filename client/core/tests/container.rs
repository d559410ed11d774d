//! What a hostile or damaged container can do: nothing.
#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::{Container, FILES, good, header, manifest, with_files};
use piecewised_client::{ContainerError, Manifest, unpack};
use proptest::prelude::*;
use tar::EntryType;

/// Unpacks into a folder of its own, and says what is there afterwards.
fn try_unpack(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, ContainerError> {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("inner");
    fs::create_dir(&folder).unwrap();
    let result = unpack(bytes, bytes.len() as u64, &folder);
    let beside: Vec<_> = fs::read_dir(outer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside, ["inner"], "nothing was written outside");
    let mut found = BTreeMap::new();
    collect(&folder, &folder, &mut found);
    result.map(|_| found)
}

fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        assert!(kind.is_dir() || kind.is_file(), "{} is a link or a device", path.display());
        if kind.is_dir() {
            collect(root, &path, found);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.insert(name, fs::read(&path).unwrap());
        }
    }
}

fn check_refused(bytes: &[u8], expected: &str) {
    let message = try_unpack(bytes).unwrap_err().to_string();
    assert!(message.contains(expected), "{message:?} does not say {expected:?}");
}

/// The good container with its manifest changed.
fn with_manifest(change: impl FnOnce(&mut Manifest)) -> Vec<u8> {
    let mut manifest = manifest(&FILES);
    change(&mut manifest);
    with_files(&manifest, &FILES)
}

#[test]
fn a_good_container_comes_out_as_it_went_in() {
    let found = try_unpack(&good()).unwrap();
    assert_eq!(found.len(), FILES.len() + 1);
    for (path, data) in FILES {
        assert_eq!(found[path], data);
    }
}

#[test]
fn a_container_that_ends_too_early_is_refused_wherever_it_ends() {
    let bytes = good();
    // The last 1,024 bytes are the end mark; everything else is needed.
    let needed = bytes.len() - 1024 - (512 - FILES[2].1.len());
    for length in (0..needed).step_by(97).chain([needed - 1]) {
        assert!(try_unpack(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
}

#[test]
fn paths_that_lead_outside_are_refused_in_the_manifest() {
    for path in ["../x", "a/../../x", "/etc/x", "a//b", "./a", "a/.", "", "a b", "a\\b", "c:x", "ä", &"x".repeat(201)]
    {
        let bytes = with_manifest(|manifest| manifest.files[0].path = path.into());
        assert!(matches!(try_unpack(&bytes), Err(ContainerError::BadPath { .. })), "{path:?}");
    }
}

#[test]
fn paths_that_lead_outside_are_refused_in_the_members() {
    for path in ["../x", "/tmp/piecewised-x", "programs/../../x", "./programs/r0"] {
        let manifest = manifest(&FILES);
        let bytes = Container::new(&manifest).file(path, FILES[1].1).bytes();
        check_refused(&bytes, "the manifest says \"cache/ab/kernel.py\"");
    }
}

#[test]
fn only_regular_files_are_members() {
    let kinds = [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Directory,
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::GNUSparse,
        EntryType::XHeader,
        EntryType::XGlobalHeader,
        EntryType::Continuous,
    ];
    for kind in kinds {
        let mut link = header("cache/ab/kernel.py", kind, 0);
        link.set_link_name("/etc/passwd").unwrap();
        link.set_cksum();
        let bytes = Container::new(&manifest(&FILES)).member(&link, b"").bytes();
        check_refused(&bytes, "is not a regular file");
        let bytes = Container::empty().member(&header("manifest.json", kind, 0), b"").bytes();
        check_refused(&bytes, "is not a regular file");
    }
}

#[test]
fn members_must_be_those_of_the_manifest() {
    let with = |files: &[(&str, &[u8])]| with_files(&manifest(&FILES), files);
    check_refused(&with(&FILES[..2]), "missing");
    check_refused(&with(&[FILES[0], FILES[1], FILES[2], ("zz", b"x")]), "\"zz\", the manifest says the end");
    check_refused(&with(&[FILES[0], FILES[0], FILES[1], FILES[2]]), "the manifest says");
    check_refused(&with(&[FILES[0], FILES[1], ("programs/r0", b"programme")]), "has 9 bytes, the manifest says 7");
    check_refused(&with(&[FILES[0], FILES[1], ("programs/r0", b"PROGRAM")]), "is damaged");
    check_refused(&Container::empty().file("programs/r0", b"program").bytes(), "the first member is");
    check_refused(&Container::empty().bytes(), "it is missing");
}

#[test]
fn a_manifest_must_make_sense() {
    check_refused(&with_manifest(|m| m.container_version = 3), "its version is 3, this client reads version 2");
    check_refused(&with_manifest(|m| m.files.swap(0, 1)), "sorted and unique");
    check_refused(&with_manifest(|m| m.files.insert(0, m.files[0].clone())), "sorted and unique");
    check_refused(&with_manifest(|m| m.entries.clear()), "no entries");
    check_refused(&with_manifest(|m| m.entries.push(m.entries[0].clone())), "listed twice");
    check_refused(&with_manifest(|m| m.entries[0].program = "nowhere".into()), "not among the files");
    check_refused(&with_manifest(|m| m.files[0].size_bytes = 1 << 60), "in a container of");
    check_refused(&with_manifest(|m| m.files.iter_mut().for_each(|f| f.size_bytes = u64::MAX)), "in a container of");
    check_refused(&with_manifest(|m| m.files[0].path = "manifest.json".into()), "the manifest's own");
    check_refused(&with_manifest(|m| m.files[0].path = "cache".into()), "both a file and a folder");
    check_refused(&Container::empty().file("manifest.json", b"{}").bytes(), "manifest.json is not right");
    check_refused(&Container::empty().file("manifest.json", &[b'['; 100_000]).bytes(), "manifest.json is not right");
}

#[test]
fn declared_sizes_reserve_nothing() {
    let huge = header("manifest.json", EntryType::Regular, 7 << 30);
    check_refused(&Container::empty().member(&huge, b"{}").bytes(), "has 7516192768 bytes");
    let manifest = manifest(&FILES);
    let member = header("cache/ab/kernel.py", EntryType::Regular, 7 << 30);
    check_refused(&Container::new(&manifest).member(&member, FILES[1].1).bytes(), "has 7516192768 bytes");
}

/// A zstd frame of a few KB that unpacks to 512 MiB of zeros: containers are not compressed, and nothing tries to find out.
#[test]
fn a_compression_bomb_is_not_a_container() {
    const BLOCK: u32 = 128 << 10;
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58];
    for i in 0..4096u32 {
        let is_last = u32::from(i == 4095);
        // A block that repeats one byte.
        bomb.extend_from_slice(&((BLOCK << 3) | (1 << 1) | is_last).to_le_bytes()[..3]);
        bomb.push(0);
    }
    check_refused(&bomb, "");
    // Nor does one hide in a member: what is declared is what is read.
    let manifest = manifest(&FILES);
    let bytes = Container::new(&manifest).file("cache/ab/kernel.py", &bomb).bytes();
    check_refused(&bytes, "the manifest says");
}

proptest! {
    /// Whatever bits flip, the result is an error or exactly the same files.
    #[test]
    fn flipped_bits_are_found_or_meaningless(at in 0usize..8192, bit in 0u8..8) {
        let mut bytes = good();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Ok(mut found) = try_unpack(&bytes) {
            found.remove("manifest.json");
            let expected: BTreeMap<String, Vec<u8>> = FILES.iter().map(|(path, data)| ((*path).to_owned(), data.to_vec())).collect();
            prop_assert_eq!(found, expected);
        }
    }

    /// Arbitrary bytes don't panic and write nothing outside.
    #[test]
    fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        prop_assert!(try_unpack(&bytes).is_err());
    }
}
