//! The rules on files, by Landlock: written is below a process's own folder, the precompiled headers' and a few devices only; what holds secrets
//! is not read.
//!
//! Landlock has no rule that takes something away. "Everything but X" is therefore a rule for each neighbour of X, and for each neighbour of the folders
//! above it. Two things follow. What is put beside X, or beside a folder above it, after a process was started is not read by it (nor by what is forked
//! from it) either. And names are told where contents are not: folders can be listed everywhere, since what looks for a module or a library lists
//! those above X too.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use serde::Serialize;

use super::Measure;
use crate::{Confinement, ExecutorConfig, environment::is_allowed};

/// The newest version whose rights are used; on older kernels those that they have.
const NEWEST: ABI = ABI::V6;

/// What is opened for writing in /dev, where it is there: a name, or how names begin. Memory that processes share and terminals are folders. The others are GPUs.
const DEVICES: &[&str] =
    &["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "nvidia*", "dxg", "dri", "kfd"];

/// Where CUDA's MPS is reached, unless the environment says.
const MPS: (&str, &str) = ("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps");

/// Which version the kernel has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Version(u32);

impl Version {
    /// Why it is too old, as a clause.
    pub(crate) fn has(self, needed: u32, linux: &str) -> Result<(), String> {
        if self.0 >= needed {
            return Ok(());
        }
        Err(format!("the kernel's Landlock is of version {}, and this needs {needed} (Linux {linux})", self.0))
    }
}

/// Restricts the calling thread for good, to see what the kernel has.
pub(crate) fn probe() -> Result<Version, String> {
    let status = ruleset().and_then(|ruleset| ruleset.create()?.restrict_self()).map_err(|error| error.to_string())?;
    match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => Ok(Version(effective_abi as u32)),
        LandlockStatus::NotEnabled => {
            Err("Landlock is not enabled; add landlock to the kernel's parameter lsm=".into())
        }
        LandlockStatus::NotImplemented => {
            Err("the kernel has no Landlock, or a filter of system calls around the daemon forbids it".into())
        }
    }
}

fn ruleset() -> Result<Ruleset, RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        // No rule follows: the second lock on the network.
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))
}

fn reading() -> BitFlags<AccessFs> {
    AccessFs::from_read(NEWEST)
}

/// All but making devices, which needs a capability anyhow.
fn writing() -> BitFlags<AccessFs> {
    AccessFs::from_all(NEWEST) & !(AccessFs::MakeChar | AccessFs::MakeBlock)
}

/// What a process may read and write.
pub(crate) struct Rules(Vec<Rule>);

struct Rule {
    path: PathBuf,
    access: BitFlags<AccessFs>,
    /// What is needed has to be there, and may be named by a link. What was only found may neither be missing nor be followed elsewhere.
    is_needed: bool,
}

impl Rules {
    /// For a process that writes below `own`.
    pub(crate) fn of(config: &ExecutorConfig, own: &Path) -> io::Result<Self> {
        let mut rules = Self(Vec::new());
        rules.all_but(&config.confinement.hidden)?;
        // These wherever they lie.
        rules.need(Path::new("/"), AccessFs::ReadDir.into());
        rules.need(&config.source_dir, reading());
        rules.need(own, writing());
        for path in config.runner.iter().filter_map(|path| path.canonicalize().ok()) {
            rules.found(path, reading());
        }
        if let Some(proc) = config.confinement.procfs.written() {
            rules.need(&proc, AccessFs::WriteFile | AccessFs::Truncate);
        }
        for path in beside(config).iter().filter_map(|path| path.canonicalize().ok()) {
            rules.found(path, writing());
        }
        Ok(rules)
    }

    /// Binds the calling thread, and what it starts.
    pub(crate) fn restrict(&self) -> Result<RestrictionStatus, String> {
        let words = |error: RulesetError| error.to_string();
        let mut ruleset = ruleset().and_then(Ruleset::create).map_err(words)?;
        for rule in &self.0 {
            // One at a time: there may be more of them than this process may have files open.
            let Some((file, access)) = rule.open().map_err(|error| format!("{}: {error}", rule.path.display()))? else {
                continue;
            };
            ruleset = ruleset.add_rule(PathBeneath::new(file, access)).map_err(words)?;
        }
        ruleset.restrict_self().map_err(words)
    }

    /// Reading of everything but `hidden`, and what lies in it; of /dev what is listed.
    fn all_but(&mut self, hidden: &[PathBuf]) -> io::Result<()> {
        let hidden: BTreeSet<PathBuf> =
            hidden.iter().map(|path| real(path)).chain([Ok("/dev".into())]).collect::<io::Result<_>>()?;
        // By identity too: another mount of the same folder is the same to Landlock, and so is another name of a file.
        let identities =
            hidden.iter().filter_map(|path| fs::metadata(path).ok()).map(|found| (found.dev(), found.ino()));
        let identities: BTreeSet<(u64, u64)> = identities.collect();
        let is_hidden = |path: &Path| path.ancestors().any(|folder| hidden.contains(folder));
        let above = hidden.iter().flat_map(|path| path.ancestors().skip(1)).filter(|path| !is_hidden(path));
        let above: BTreeSet<&Path> = above.collect();
        for folder in &above {
            // One that cannot be listed has nothing that could be named here; what leads to what is hidden is a folder of its own in `above`.
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let Ok(found) = entry.metadata() else { continue };
                let leads_there = above.contains(path.as_path()) || identities.contains(&(found.dev(), found.ino()));
                if !leads_there && !is_hidden(&path) {
                    self.found(path, reading());
                }
            }
        }
        Ok(())
    }

    fn need(&mut self, path: &Path, access: BitFlags<AccessFs>) {
        self.0.push(Rule { path: path.to_owned(), access, is_needed: true });
    }

    fn found(&mut self, path: PathBuf, access: BitFlags<AccessFs>) {
        self.0.push(Rule { path, access, is_needed: false });
    }
}

impl Rule {
    /// None: it says nothing, since it is about a link, whose end has rules of its own, or about what is not there any more.
    fn open(&self) -> io::Result<Option<(OwnedFd, BitFlags<AccessFs>)>> {
        let follow = if self.is_needed { OFlags::empty() } else { OFlags::NOFOLLOW };
        let file = match rustix::fs::openat(CWD, &self.path, OFlags::PATH | OFlags::CLOEXEC | follow, Mode::empty()) {
            Ok(file) => file,
            Err(error) if self.is_needed => return Err(error.into()),
            Err(_) => return Ok(None),
        };
        Ok(match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
            FileType::Symlink => None,
            FileType::Directory => Some((file, self.access)),
            _ => Some((file, self.access & AccessFs::from_file(NEWEST))),
        })
    }
}

impl Confinement {
    /// What is to be hidden and is not, since it lies in one of `writable`, folders that executors write to.
    ///
    /// # Errors
    /// Where the working directory is gone and a path is relative.
    pub fn exposed(&self, writable: &[PathBuf]) -> io::Result<Vec<&Path>> {
        let folders = writable.iter().map(|folder| real(folder)).collect::<io::Result<Vec<_>>>()?;
        let mut found = Vec::new();
        for path in &self.hidden {
            let place = real(path)?;
            if folders.iter().any(|folder| place.starts_with(folder)) {
                found.push(path.as_path());
            }
        }
        Ok(found)
    }
}

/// Where it really lies, also where it is not there yet.
fn real(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let there = path.ancestors().find_map(|folder| Some((folder, folder.canonicalize().ok()?)));
    Ok(match there {
        // Joined with nothing, a file's name would end in a slash, and name nothing.
        Some((folder, real)) => match path.strip_prefix(folder) {
            Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
            _ => real,
        },
        None => path,
    })
}

/// What is written beside a process's own folder.
fn beside(config: &ExecutorConfig) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = config.headers_dir.iter().chain(&config.writable_dirs).cloned().collect();
    paths.extend(
        fs::read_dir("/dev")
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| is_allowed(&entry.file_name(), DEVICES.iter().copied()))
            .map(|entry| entry.path()),
    );
    let mps = config.environment.get(&OsString::from(MPS.0)).map_or_else(|| MPS.1.into(), PathBuf::from);
    paths.push(mps);
    paths
}

/// What an executor that was forked binds itself to (`confine.py`), since its zygote may write into the folders of all: writing below its own folder.
#[derive(Debug, Serialize)]
pub(crate) struct Inner {
    /// Of files, as the kernel numbers rights.
    handled: u64,
    /// Of signals and abstract sockets.
    scoped: u64,
    writable: Vec<PathBuf>,
}

impl Inner {
    /// None: there is nothing to bind to.
    pub(crate) fn of(config: &ExecutorConfig, own: &Path) -> Option<Self> {
        let has = |measure| config.confinement.has(measure);
        if !has(Measure::Files) {
            return None;
        }
        // Without that of version 5, which is about devices alone and which the zygote has.
        let version = if has(Measure::Truncation) { ABI::V3 } else { ABI::V2 };
        let scoped = if has(Measure::Signals) { Scope::from_all(ABI::V6).bits() } else { 0 };
        let handled = (AccessFs::from_write(version) & !(AccessFs::MakeChar | AccessFs::MakeBlock)).bits();
        let proc = config.confinement.procfs.written();
        let writable = [own.to_owned()].into_iter().chain(beside(config)).chain(proc).collect();
        Some(Self { handled, scoped, writable })
    }
}
