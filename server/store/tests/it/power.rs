//! Power cuts, simulated: an ext4 on a loop device is shut down under the store without writing its journal out, so that
//! only what was synced is there afterwards.
//!
//! `PIECEWISED_STORE_POWER_ROUNDS` sets how often (3 by default). Needs root, loop devices, `mkfs.ext4` and `python3`;
//! elsewhere the test says that it was skipped.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
};

use piecewised_store::Stored;
use tempfile::tempdir;

use crate::{
    crash::{check, start_writer},
    support::{Dice, Mount, assert_stored, bytes, handle, key, open, run, skipped},
};

/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`. A line in the journal says when: an fsync that is under way at
/// that moment can report success although nothing was written, which no real power cut lives to see.
const CUT: &str = "import fcntl, os, struct, sys
disk = os.open(sys.argv[1], os.O_RDONLY)
os.write(os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT), b'cut 0 0\\n')
fcntl.ioctl(disk, 0x8004587D, struct.pack('I', 2))";

fn cut(disk: &Path, journal: &Path) -> Result<(), String> {
    run("python3", [OsStr::new("-c"), OsStr::new(CUT), disk.as_os_str(), journal.as_os_str()])
}

fn mount(image: &Path) -> Result<Mount, String> {
    Mount::new(&["-o", "loop", image.to_str().unwrap()])
}

fn prepare(image: &Path) -> Result<(), String> {
    File::create(image).and_then(|file| file.set_len(256 << 20)).map_err(|error| error.to_string())?;
    run("mkfs.ext4", ["-q", image.to_str().unwrap()])?;
    let disk = mount(image)?;
    fs::create_dir(disk.path().join("store")).map_err(|error| error.to_string())?;
    // Tried once on an idle file system, to know whether it can be done here at all.
    cut(disk.path(), &image.with_file_name("journal"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_by_a_power_cut() {
    let n_rounds = std::env::var("PIECEWISED_STORE_POWER_ROUNDS").map_or(3, |text| text.parse().unwrap());
    let dir = tempdir().unwrap();
    let image = dir.path().join("image");
    if let Err(why) = prepare(&image) {
        return skipped("power cuts", &why);
    }
    let mut dice = Dice::new(u64::from(std::process::id()) << 32);
    let mut journal = String::new();
    for round in 1..=n_rounds {
        let disk = mount(&image).unwrap();
        let store = dir.path().join("store");
        let _ = fs::remove_file(&store);
        fs::create_dir_all(disk.path().join("store")).unwrap();
        symlink(disk.path().join("store"), &store).unwrap();

        let mut child = start_writer(dir.path(), &journal, round, &mut dice);
        cut(disk.path(), &dir.path().join("journal")).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        run("umount", [disk.path()]).unwrap();

        let disk = mount(&image).unwrap();
        journal = fs::read_to_string(dir.path().join("journal")).unwrap();
        let (report, found) = check(&disk.path().join("store"), &journal).await;
        assert!(report.failures.is_empty(), "{report}");
        journal = found;
        run("umount", [disk.path()]).unwrap();
    }
}

/// The disk goes away under an open store: what is compiled from then on is served from memory, and what was durable is
/// there when the disk is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_goes_away_does_not_cost_a_compile() {
    let dir = tempdir().unwrap();
    let image = dir.path().join("image");
    if let Err(why) = prepare(&image) {
        return skipped("a disk that goes away", &why);
    }
    let disk = mount(&image).unwrap();
    let path = disk.path().join("store");
    let (store, _) = open(&path).await;
    let (old, new) = (bytes(1, 50_000), bytes(2, 50_000));
    store.put(handle(key(1), &old), old.clone()).await.unwrap();
    cut(disk.path(), &dir.path().join("journal")).unwrap();

    assert_eq!(store.put(handle(key(2), &new), new.clone()).await.unwrap(), Stored::Held);
    for _ in 0..3 {
        assert_stored(&store, &handle(key(2), &new), &new).await;
        // Found or not, but answered.
        let found = store.get(&key(1)).await.unwrap();
        assert!(found.is_none_or(|found| found == handle(key(1), &old)));
        assert_eq!(store.get(&key(3)).await.unwrap(), None);
        assert_eq!(store.get_failure(&key(3)).await.unwrap(), None);
    }
    let stats = store.stats();
    assert_eq!((stats.is_full, stats.is_failing, stats.n_held), (false, true, 1));
    // It cannot be closed well any more; it ends all the same.
    let _ = store.close().await;
    let unmounted = run("umount", [disk.path()]).or_else(|_| run("umount", ["-l".as_ref(), disk.path().as_os_str()]));
    unmounted.unwrap();

    let disk = mount(&image).unwrap();
    let (store, report) = open(&disk.path().join("store")).await;
    assert_eq!(report.n_dropped, 0, "{report}");
    assert_stored(&store, &handle(key(1), &old), &old).await;
    store.close().await.unwrap();
}
