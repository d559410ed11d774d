//! The runner as a process: what it says where it can't do what it is asked, and how it and other programs find libtorch.
//!
//! That it loads, runs and measures packages is tested where there are some: `client/tch/tests/worker`.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps nothing")]

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

const RUNNER: &str = env!("CARGO_BIN_EXE_piecewised-runner");

/// torch's folder, as the build had it.
fn libtorch() -> PathBuf {
    env::var_os("LIBTORCH").map(PathBuf::from).expect(".cargo/config.toml sets it").canonicalize().unwrap()
}

fn launcher() -> PathBuf {
    let launcher = Path::new(RUNNER).with_file_name("piecewised-with-torch");
    assert!(launcher.exists(), "{} is not built; `make build-tch` does", launcher.display());
    launcher
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn run(library: &Path, arguments: &[&str]) -> Output {
    Command::new(RUNNER).args(arguments).env("LD_LIBRARY_PATH", library).output().unwrap()
}

/// A folder of packages whose torch has all of libtorch, and says another version.
fn other_version() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("torch/lib")).unwrap();
    let link_all = |from: &Path, to: &Path| {
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            symlink(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    };
    link_all(&libtorch().join("lib"), &folder.path().join("torch/lib"));
    // libtorch finds what it needs itself beside its own folder.
    let beside = libtorch().parent().unwrap().join("nvidia");
    if beside.exists() {
        symlink(beside, folder.path().join("nvidia")).unwrap();
    }
    fs::write(folder.path().join("torch/version.py"), "__version__ = '2.10.0+cpu'\n").unwrap();
    folder
}

#[test]
fn what_it_cannot_do_is_an_error_in_the_result_and_on_stderr() {
    let check = |request: Option<&str>, expected: &str| {
        let folder = tempfile::tempdir().unwrap();
        if let Some(request) = request {
            fs::write(folder.path().join("request.json"), request).unwrap();
        }
        let output = run(&libtorch().join("lib"), &["try", folder.path().to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(expected), "{}", text(&output));
        let result = fs::read_to_string(folder.path().join("result.json")).unwrap();
        let result: serde_json::Value = serde_json::from_str(&result).unwrap();
        assert!(result["error"].as_str().unwrap().contains(expected), "{result}");
    };
    check(None, "request.json: No such file");
    check(Some("{"), "request.json: EOF while parsing");
    check(Some(r#"{"artifact": "/nowhere", "measure_s": 0.1, "cases": []}"#), "/nowhere/manifest.json: No such file");
    check(Some(r#"{"artefact": "/nowhere"}"#), "unknown field `artefact`");
}

#[test]
fn it_says_how_it_is_called() {
    for arguments in [&[][..], &["try"], &["run", "x"]] {
        let output = run(&libtorch().join("lib"), arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output).contains("usage: piecewised-runner try FOLDER"), "{}", text(&output));
    }
}

#[test]
fn a_program_that_was_moved_finds_libtorch_and_none_is_written_into_it() {
    let elsewhere = tempfile::tempdir().unwrap();
    let (program, launcher_there) = (elsewhere.path().join("program"), elsewhere.path().join("launcher"));
    fs::copy(RUNNER, &program).unwrap();
    fs::copy(launcher(), &launcher_there).unwrap();
    let start = |command: &mut Command| command.current_dir("/").env_remove("LD_LIBRARY_PATH").output().unwrap();
    // By itself it finds none: nothing of the build folder is in it.
    let alone = start(Command::new(&program).arg("version").env_remove("LIBTORCH"));
    assert!(!alone.status.success() && text(&alone).contains("libtorch_cpu.so"), "{}", text(&alone));
    let named =
        start(Command::new(&launcher_there).arg(&program).arg("version").env("PIECEWISED_LIBTORCH", libtorch()));
    assert!(text(&named).starts_with(r#"{"cuda":"#) && text(&named).contains("2.11.0"), "{}", text(&named));
    // The environment that `LIBTORCH` is the torch of, as if it were active.
    let environment = libtorch().ancestors().nth(4).unwrap().to_owned();
    let mut command = Command::new(&launcher_there);
    let active = start(command.arg(&program).arg("version").env("VIRTUAL_ENV", environment).env_remove("LIBTORCH"));
    assert_eq!(text(&active), text(&named));
}

#[test]
fn a_missing_libtorch_and_one_of_another_version_are_told_before_anything_runs() {
    let launch = |change: &dyn Fn(&mut Command)| {
        let mut command = Command::new(launcher());
        command.arg(RUNNER).arg("version").env_clear();
        change(&mut command);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        text(&output)
    };
    let none = launch(&|command| {
        command.env("PATH", "/nowhere");
    });
    for part in [
        "no libtorch 2.11.0 was found",
        "python3: it can't be started",
        "pip install torch==2.11.0",
        "PIECEWISED_LIBTORCH",
    ] {
        assert!(none.contains(part), "{none}");
    }
    let empty = tempfile::tempdir().unwrap();
    let missing = launch(&|command| {
        command.env("PIECEWISED_LIBTORCH", empty.path());
    });
    assert!(
        missing.contains("PIECEWISED_LIBTORCH=") && missing.contains("there is no libtorch_cpu.so in"),
        "{missing}"
    );
    let other = other_version();
    let refused = launch(&|command| {
        command.env("PIECEWISED_LIBTORCH", other.path().join("torch"));
    });
    assert!(refused.contains("its version is 2.10.0+cpu, and this was built for 2.11.0"), "{refused}");
    // Started past the launcher, the program notices by itself.
    let output = run(&other.path().join("torch/lib"), &["version"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("built for libtorch 2.11.0, and runs with 2.10.0+cpu"), "{}", text(&output));
}
