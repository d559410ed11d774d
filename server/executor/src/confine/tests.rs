//! The rules on files, tried by shells that were started under them.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};

use super::*;

/// Runs a line of shell under the measures; whether it succeeds.
fn does(config: &ExecutorConfig, own: &Path, line: &str) -> bool {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    run(config, own, || command.status()).unwrap().success()
}

fn write(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "content").unwrap();
}

#[test]
#[allow(clippy::print_stderr, reason = "says that it was skipped, and why")]
fn what_is_hidden_is_not_read_by_any_name_and_what_lies_beside_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let at = |name: &str| root.join(name);
    let own = at("temp/executor-1");
    fs::create_dir_all(&own).unwrap();
    for name in [
        "store/signing.pem",
        "store/deep/file",
        "store/headers/h",
        "beside/file",
        "keys/key",
        "keys/public",
        "source/a.py",
        "cache/file",
    ] {
        write(&at(name));
    }
    symlink(at("store"), at("link")).unwrap();
    symlink(at("keys/key"), at("keys/linked")).unwrap();
    fs::hard_link(at("keys/key"), at("keys/another-name")).unwrap();
    // By a link too, in a folder that is hidden itself, and one that is not there yet.
    let hidden = ["link", "keys/linked", "store/signing.pem", "later/store"].map(at).to_vec();
    let mut config = ExecutorConfig::new("python3", at("source"), at("temp"));
    config.headers_dir = Some(at("link/headers"));
    config.writable_dirs = vec![at("cache")];
    config.confinement = Confinement::strongest(hidden).unwrap().into();
    if !config.confinement.has(Measure::Files) {
        assert!(config.confinement.missing().iter().any(|missing| missing.measure == Measure::Files));
        eprintln!("skipped: {:?}", config.confinement.missing());
        return;
    }

    let reads = |name: &str| does(&config, &own, &format!("exec cat {}", at(name).display()));
    for name in ["beside/file", "keys/public", "store/headers/h", "link/headers/h", "source/a.py"] {
        assert!(reads(name), "{name}");
    }
    for name in
        ["store/signing.pem", "store/deep/file", "link/deep/file", "keys/key", "keys/linked", "keys/another-name"]
    {
        assert!(!reads(name), "{name}");
    }
    write(&at("later/store/file"));
    assert!(!reads("later/store/file"));

    let writes = |name: &str| does(&config, &own, &format!("echo x > {}", at(name).display()));
    for name in ["temp/executor-1/new", "store/headers/new", "cache/new"] {
        assert!(writes(name), "{name}");
    }
    for name in ["beside/new", "beside/file", "source/a.py", "temp/new", "keys/public"] {
        assert!(!writes(name), "{name}");
    }
    assert!(does(&config, &own, "echo x > /dev/null && ls / && cat /proc/self/status"));
    assert_eq!(fs::read_to_string(at("beside/file")).unwrap(), "content");

    // This process, whose thread it was, is as it was.
    write(&at("beside/own"));
    fs::read(at("keys/key")).unwrap();
}

#[test]
fn what_is_started_gains_no_privileges_and_what_is_off_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = ExecutorConfig::new("python3", folder.path(), folder.path());
    let bound = "grep -q 'NoNewPrivs:.1' /proc/self/status";
    assert!(!does(&config, folder.path(), bound) || own_bounds());
    config.confinement = Confinement::strongest(Vec::new()).unwrap().into();
    let has_any = !config.confinement.in_force().is_empty();
    assert_eq!(does(&config, folder.path(), bound), has_any || own_bounds());
    assert_eq!(config.confinement.in_force().len() + config.confinement.missing().len(), Measure::ALL.len());
}

/// Whether the tests themselves run so.
fn own_bounds() -> bool {
    rustix::thread::no_new_privs().unwrap()
}

/// CUDA opens a file of its own process to write it anew, which a shell's `>` does too.
#[test]
#[allow(clippy::print_stderr, reason = "says that it was skipped, and why")]
fn where_there_is_a_gpu_processes_write_what_is_theirs_in_proc_and_not_the_kernels_settings() {
    let folder = tempfile::tempdir().unwrap();
    let mut confinement = Confinement::strongest(Vec::new()).unwrap();
    if !confinement.has(Measure::Truncation) {
        eprintln!("skipped: {:?}", confinement.missing());
        return;
    }
    let writes_its_own = "echo other > /proc/self/comm && grep -q other /proc/$$/comm";
    let mut does = |procfs, line: &str| {
        confinement.procfs = procfs;
        let mut config = ExecutorConfig::new("python3", folder.path(), folder.path());
        config.confinement = confinement.clone().into();
        does(&config, folder.path(), line)
    };
    assert!(!does(Procfs::Closed, writes_its_own));

    // Tried where it is tried when the daemon starts: by a thread that ends.
    let open = apart(|| Ok(Procfs::for_cuda())).unwrap().unwrap();
    assert!(does(open, writes_its_own));
    // By what it starts too, whose number nobody knew when the rules were made.
    assert!(does(open, &format!("(sh -c '{writes_its_own}')")));
    let setting = "/proc/sys/kernel/core_pattern";
    let before = fs::read_to_string(setting).unwrap();
    // What is in it already: a shield that does not hold changes nothing here.
    assert!(!does(
        open,
        &format!(
            "cat {setting} > {}/before && cat {}/before > {setting}",
            folder.path().display(),
            folder.path().display()
        )
    ));
    assert!(!does(open, "mount -o remount,bind,rw /proc/sys || umount /proc/sys || mount -t proc proc /mnt"));
    assert_eq!(fs::read_to_string(setting).unwrap(), before);
}
