//! `piecewised doctor`: what `serve` would find on this machine, and what to do where that is not enough.
//!
//! It takes the flags of `serve`, changes nothing, and does not need a daemon.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use clap::Args;
use piecewised_executor::{Confinement, Diagnosis, Found, GpuFound, RuntimeFolder, diagnose, find_python};
use rustix::fs::{Access, StatVfsMountFlags, access, statvfs};
use serde::Serialize;

use crate::{cli::ServeArguments, config::Config, confinement, exit::Exit, toolchain};

/// For `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0  `piecewised serve` with these flags would work; warnings are about what it would go without
  1  it would not; what to do is said
  2  the command line or the configuration is wrong";

#[derive(Debug, Clone, Args)]
pub(crate) struct DoctorArguments {
    #[command(flatten)]
    pub(crate) serve: ServeArguments,
    /// Write JSON instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Ok,
    Warning,
    Failure,
}

#[derive(Debug, Serialize)]
struct Checked {
    what: &'static str,
    outcome: Outcome,
    found: String,
    /// What to do; empty: nothing.
    remedy: String,
}

fn checked(what: &'static str, outcome: Outcome, found: impl Into<String>, remedy: impl Into<String>) -> Checked {
    Checked { what, outcome, found: found.into(), remedy: remedy.into() }
}

/// Looks at everything and writes what it found.
///
/// # Errors
/// Where nothing can be written.
pub(crate) async fn run(arguments: &DoctorArguments, config: &Config) -> anyhow::Result<Exit> {
    let mut all = vec![socket(&config.socket), store(config), temporary(&config.temp_dir)];
    let (confinement, line) = confined(config);
    all.push(line);
    all.extend(toolchain(config, confinement).await);
    let mut out = io::stdout().lock();
    let written = if arguments.json {
        let text = serde_json::to_string(&all).context("the findings have no JSON form")?;
        writeln!(out, "{text}")
    } else {
        say(&mut out, &all)
    };
    written.and_then(|()| out.flush()).context("cannot write to stdout")?;
    let fails = all.iter().any(|one| one.outcome == Outcome::Failure);
    Ok(if fails { Exit::Failure } else { Exit::Success })
}

fn say(out: &mut dyn Write, all: &[Checked]) -> io::Result<()> {
    for Checked { what, outcome, found, remedy } in all {
        let mark = match outcome {
            Outcome::Ok => "ok  ",
            Outcome::Warning => "WARN",
            Outcome::Failure => "FAIL",
        };
        writeln!(out, "{mark}  {what}: {found}")?;
        if !remedy.is_empty() {
            writeln!(out, "      {remedy}")?;
        }
    }
    Ok(())
}

fn socket(path: &Path) -> Checked {
    const WHAT: &str = "socket";
    let shown = path.display();
    if UnixStream::connect(path).is_ok() {
        return checked(WHAT, Outcome::Ok, format!("a daemon listens at {shown}"), "");
    }
    match unwritable(path.parent().unwrap_or(Path::new("/"))) {
        None => checked(WHAT, Outcome::Ok, format!("nobody listens at {shown}, and it can be made"), ""),
        Some(folder) => checked(
            WHAT,
            Outcome::Failure,
            format!("{shown} cannot be made: {} cannot be written to", folder.display()),
            "name another place with --socket, or make the folder for this user",
        ),
    }
}

fn store(config: &Config) -> Checked {
    const WHAT: &str = "store";
    let shown = config.store_dir.display();
    if let Some(folder) = unwritable(&config.store_dir) {
        return checked(
            WHAT,
            Outcome::Failure,
            format!("{shown} cannot be used: {} cannot be written to", folder.display()),
            "name another place with --store-dir, or make the folder for this user",
        );
    }
    let Some(free_bytes) = free_bytes(&config.store_dir) else {
        return checked(WHAT, Outcome::Warning, format!("how much room {shown} has cannot be found out"), "");
    };
    let found = format!("{shown}, {:.1} GB free", free_bytes as f64 / 1e9);
    if free_bytes < config.store_reserve_bytes + (256 << 20) {
        let remedy =
            "make room, or name a folder on another disk with --store-dir: new artifacts would be held in memory";
        return checked(WHAT, Outcome::Warning, found, remedy);
    }
    checked(WHAT, Outcome::Ok, found, "")
}

fn temporary(path: &Path) -> Checked {
    const WHAT: &str = "temporary folder";
    let shown = path.display();
    if let Some(folder) = unwritable(path) {
        let found = format!("{shown} cannot be used: {} cannot be written to", folder.display());
        return checked(WHAT, Outcome::Failure, found, "name another one with --temp-dir");
    }
    if statvfs(path).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::NOEXEC)) {
        let found = format!("{shown} is mounted noexec: what is compiled there cannot be loaded");
        return checked(WHAT, Outcome::Failure, found, "name another one with --temp-dir");
    }
    checked(WHAT, Outcome::Ok, shown.to_string(), "")
}

/// The folder, or the first one above it that is there.
fn nearest(folder: &Path) -> Option<&Path> {
    folder.ancestors().find(|folder| folder.exists())
}

/// That folder, where it cannot be written to.
fn unwritable(folder: &Path) -> Option<PathBuf> {
    let there = nearest(folder)?;
    access(there, Access::WRITE_OK | Access::EXEC_OK).is_err().then(|| there.to_owned())
}

fn free_bytes(folder: &Path) -> Option<u64> {
    let found = statvfs(nearest(folder)?).ok()?;
    Some(found.f_bavail * found.f_frsize)
}

/// What executors are kept from, and what is said of it.
fn confined(config: &Config) -> (Confinement, Checked) {
    const WHAT: &str = "confinement of executors";
    let found = match confinement::of(config) {
        Ok(found) => found,
        Err(error) => {
            let line = checked(WHAT, Outcome::Failure, error.to_string(), "");
            return (Confinement::off(), line);
        }
    };
    let line = match (found.in_force(), found.missing()) {
        ([], []) => checked(
            WHAT,
            Outcome::Warning,
            "off: executors may what the daemon's user may",
            "leave --confine-executors away, where nothing else keeps them from the network and from files",
        ),
        (_, []) => checked(WHAT, Outcome::Ok, confinement::in_force(&found), ""),
        (in_force, missing) => {
            let missing: Vec<String> = missing.iter().map(confinement::words).collect();
            let has = if in_force.is_empty() { "nothing".to_owned() } else { confinement::in_force(&found) };
            checked(
                WHAT,
                Outcome::Warning,
                format!("{has}; missing: {}", missing.join("; ")),
                "a newer kernel, or a container whose filter of system calls lets landlock_* and seccomp through; else let the unit or the pod keep executors from it",
            )
        }
    };
    (found, line)
}

async fn toolchain(config: &Config, confinement: Confinement) -> Vec<Checked> {
    const WHAT: &str = "interpreter";
    let folder = match RuntimeFolder::create(&config.temp_dir) {
        Ok(folder) => folder,
        Err(error) => return vec![checked(WHAT, Outcome::Failure, format!("not looked at: {error}"), "")],
    };
    let private = folder.subfolder("precompiled_headers");
    let executors =
        match private.and_then(|headers| toolchain::executor_config(config, &folder, headers, Arc::new(confinement))) {
            Ok(executors) => executors,
            Err(error) => return vec![checked(WHAT, Outcome::Failure, format!("not looked at: {error}"), "")],
        };
    let Found { python, launcher, executor, rejected } = match find_python(config.python.as_deref(), &executors).await {
        Ok(found) => found,
        Err(none) => {
            let text = none.to_string();
            let (found, remedy) = text.rsplit_once('\n').unwrap_or((&text, ""));
            return vec![checked(WHAT, Outcome::Failure, found.replace('\n', "; "), remedy)];
        }
    };
    let toolchain = &executor.hello().toolchain;
    let triton = if toolchain.triton_version.is_empty() { "none" } else { &toolchain.triton_version };
    let passed_over = if rejected.is_empty() { String::new() } else { format!(", {} passed over", rejected.len()) };
    let found = format!(
        "{}: Python {}, torch {}, triton {triton}, imported in {:.1} s{passed_over}",
        python.display(),
        toolchain.python_version,
        toolchain.torch_version,
        executor.hello().import_s
    );
    let mut all = vec![checked(WHAT, Outcome::Ok, found, "")];
    let diagnosed = diagnose(&executors.with_python(&python)).await;
    executor.shutdown().await;
    launcher.shutdown().await;
    match diagnosed {
        Ok(diagnosis) => all.extend(surroundings(&diagnosis)),
        Err(error) => all.push(checked("compilers and GPUs", Outcome::Failure, error.to_string(), "")),
    }
    all
}

fn surroundings(diagnosis: &Diagnosis) -> Vec<Checked> {
    let Diagnosis { compiler, packages, gpus, runner, vllm } = diagnosis;
    let part = |what, found: &Option<String>, problem: &str, outcome, remedy: &str| match found {
        Some(found) if problem.is_empty() => checked(what, Outcome::Ok, found, ""),
        _ => checked(what, outcome, problem, remedy),
    };
    // Pieces on GPUs need none but for parts that run on the CPU.
    let on_gpu = gpus.found.as_ref().is_some_and(|gpus| !gpus.is_empty());
    let without = if on_gpu { Outcome::Warning } else { Outcome::Failure };
    let mut all = vec![
        part("C++ compiler", &compiler.found, &compiler.problem, without, "install g++, or name a compiler with CXX="),
        part("compiler for AOTInductor packages", &packages.found, &packages.problem, Outcome::Warning, ""),
    ];
    match &gpus.found {
        Some(found) if gpus.problem.is_empty() && found.is_empty() => {
            all.push(checked("GPUs", Outcome::Ok, "none; pieces on the CPU are compiled", ""));
        }
        Some(found) if gpus.problem.is_empty() => all.extend(found.iter().map(gpu)),
        _ => all.push(checked(
            "GPUs",
            Outcome::Failure,
            &gpus.problem,
            "a driver that is older than torch's CUDA, or a container without the driver's libraries: `nvidia-smi` says which CUDA the driver knows",
        )),
    }
    all.push(match &runner.found {
        None => checked("runner", Outcome::Ok, "none; executors try AOTInductor packages themselves", ""),
        Some(path) if runner.problem.is_empty() => checked("runner", Outcome::Ok, path, ""),
        Some(_) => checked(
            "runner",
            Outcome::Warning,
            &runner.problem,
            "executors try AOTInductor packages themselves then; name another with --runner, or none",
        ),
    });
    let found =
        vllm.found.as_ref().map_or("not installed; its plugin is not needed".to_owned(), |version| version.clone());
    all.push(checked("vLLM", Outcome::Ok, found, ""));
    all
}

fn gpu(gpu: &GpuFound) -> Checked {
    let GpuFound { index, name, free_bytes, total_bytes, driver_cuda } = gpu;
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let found = format!(
        "{index}: {name}, {:.1} of {:.1} GiB free, driver for CUDA {driver_cuda}",
        gib(*free_bytes),
        gib(*total_bytes)
    );
    if *free_bytes < 1 << 30 {
        let remedy = "give the inference engine less memory: artifacts are tried on the GPU, and autotuning runs there";
        return checked("GPU", Outcome::Warning, found, remedy);
    }
    checked("GPU", Outcome::Ok, found, "")
}
