//! Finding an interpreter that can compile.
//!
//! The only proof is to start an executor: a candidate is taken when it becomes ready. The executor that proved it is handed
//! over, since its import of torch took seconds. Each one that is turned down is kept with the reason, for the person who has
//! to do something about it.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fmt,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{Executor, ExecutorConfig, ExecutorError, Launcher};

/// How often an interpreter is tried whose processes are killed before they can say anything.
const MAX_TRIES: u32 = 3;

/// An interpreter that works.
#[derive(Debug)]
pub struct Found {
    /// The path that further executors are to be started with.
    pub python: PathBuf,
    /// Starts further executors of it.
    pub launcher: Launcher,
    /// The executor that proved it, ready for a job. It is placed nowhere: see [`Placement::default`].
    pub executor: Executor,
    /// What was tried before it.
    pub rejected: Vec<Rejected>,
}

/// An interpreter that was tried, and why it was turned down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The interpreter.
    pub python: PathBuf,
    /// Why, as a sentence.
    pub why: String,
}

/// No interpreter works. The message says what was tried and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoToolchain {
    /// The interpreter that was asked for, where one was.
    pub explicit: Option<PathBuf>,
    /// What was tried.
    pub rejected: Vec<Rejected>,
}

/// Finds an interpreter that can import torch: `explicit` and no other where it is given (a path, or a name to look up on
/// `PATH`), otherwise every `python3` and then every `python` on `PATH`. `PATH` is that of `config.environment`, and
/// `config.python` does not count.
///
/// # Errors
/// [`NoToolchain`] where none works.
pub async fn find_python(explicit: Option<&Path>, config: &ExecutorConfig) -> Result<Found, NoToolchain> {
    let mut rejected = Vec::new();
    for python in candidates(explicit, config) {
        tracing::debug!(python = %python.display(), "trying an interpreter");
        let launcher = Launcher::new(Arc::new(config.with_python(&python)));
        match prove(&launcher).await {
            Ok(executor) => return Ok(Found { python, launcher, executor, rejected }),
            Err(error) => rejected.push(Rejected { why: why(error), python }),
        }
    }
    Err(NoToolchain { explicit: explicit.map(Path::to_owned), rejected })
}

/// The interpreters to try, in this order.
pub(crate) fn candidates(explicit: Option<&Path>, config: &ExecutorConfig) -> Vec<PathBuf> {
    let path = config.environment.get(OsStr::new("PATH")).map(|path| path.as_os_str());
    match explicit {
        // A bare name that is nowhere on PATH is tried all the same: the failure says so.
        Some(python) => vec![look_up(python, path).unwrap_or_else(|| python.to_owned())],
        None => on_path(path),
    }
}

/// Starts an executor, which proves the interpreter. One that is killed meanwhile (by the kernel for want of memory, by an operator's
/// mistake) proves nothing, and a daemon must not end for it.
///
/// # Errors
/// As [`Launcher::prove`].
pub async fn prove(launcher: &Launcher) -> Result<Executor, ExecutorError> {
    for _ in 1..MAX_TRIES {
        match launcher.prove().await {
            Err(error @ ExecutorError::NotReady { was_killed: true, .. }) => {
                tracing::warn!("trying the interpreter again: {error}");
            }
            result => return result,
        }
    }
    launcher.prove().await
}

/// The reason without the interpreter's name, which stands before it.
fn why(error: ExecutorError) -> String {
    match error {
        ExecutorError::Spawn { source, .. } => format!("it cannot be started: {source}"),
        ExecutorError::NotReady { problem, tail, .. } => match tail.lines().last() {
            Some(line) => format!("{problem}; the last it printed was: {line}"),
            None => problem,
        },
        ExecutorError::Unusable { reason, .. } => reason,
        other => other.to_string(),
    }
}

fn folders(path: Option<&OsStr>) -> Vec<PathBuf> {
    // A relative or empty entry means the working directory: nothing to take an interpreter from.
    path.map(|path| std::env::split_paths(path).filter(|folder| folder.is_absolute()).collect()).unwrap_or_default()
}

fn look_up(python: &Path, path: Option<&OsStr>) -> Option<PathBuf> {
    if python.components().count() > 1 {
        return None;
    }
    folders(path).into_iter().map(|folder| folder.join(python)).find(|candidate| is_executable(candidate))
}

/// Every interpreter on `PATH` in the order to try. The same file under two names in one folder is tried once; the same file in
/// two folders is not the same, since a virtual environment is known by where it is called from.
fn on_path(path: Option<&OsStr>) -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    ["python3", "python"]
        .iter()
        .flat_map(|name| folders(path).into_iter().map(move |folder| folder.join(name)))
        .filter(|candidate| is_executable(candidate))
        .filter(|candidate| {
            let folder = candidate.parent().and_then(|folder| folder.canonicalize().ok());
            seen.insert((folder, candidate.canonicalize().ok()))
        })
        .collect()
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

impl fmt::Display for NoToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.explicit {
            Some(python) => write!(f, "{} cannot be used to compile", python.display())?,
            None if self.rejected.is_empty() => write!(f, "there is no python3 on PATH")?,
            None => write!(f, "none of the Python interpreters on PATH can be used to compile")?,
        }
        for Rejected { python, why } in &self.rejected {
            let python = python.display().to_string();
            // Its own words may name it already.
            if why.starts_with(&python) { write!(f, "\n  {why}")? } else { write!(f, "\n  {python}: {why}")? }
        }
        match &self.explicit {
            Some(_) => write!(
                f,
                "\nName an interpreter that can `import torch`, or leave --python away to have one looked for."
            ),
            None => write!(
                f,
                "\nInstall torch for one of them, or name an interpreter that can `import torch` with --python \
                 (PIECEWISED_PYTHON, `python` in the configuration file)."
            ),
        }
    }
}

impl std::error::Error for NoToolchain {}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn program(folder: &Path, name: &str, mode: u32) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(name), "#!/bin/sh\n").unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn candidates_come_in_order_and_once() {
        let root = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| root.path().join(name));
        program(&a, "python", 0o755);
        program(&b, "python3", 0o755);
        symlink("python3", b.join("python")).unwrap();
        fs::create_dir(&c).unwrap();
        symlink(b.join("python3"), c.join("python3")).unwrap(); // A virtual environment looks like this.
        program(&root.path().join("d"), "python3", 0o644); // Not a program.
        let path = format!("{0}/a:relative:{0}/b:{0}/c:{0}/d:{0}/b:{0}/missing", root.path().display());

        let found = on_path(Some(OsStr::new(&path)));
        assert_eq!(found, [b.join("python3"), c.join("python3"), a.join("python")]);
        assert_eq!(on_path(None), Vec::<PathBuf>::new());
        assert_eq!(look_up(Path::new("python3"), Some(OsStr::new(&path))), Some(b.join("python3")));
        assert_eq!(look_up(Path::new("./python3"), Some(OsStr::new(&path))), None);
    }

    #[test]
    fn the_message_says_what_was_tried_and_what_to_do() {
        let mut rejected = vec![Rejected { python: "/usr/bin/python3".into(), why: "it cannot import torch".into() }];
        let text = NoToolchain { explicit: None, rejected: rejected.clone() }.to_string();
        assert!(text.contains("\n  /usr/bin/python3: it cannot import torch\n") && text.contains("--python"), "{text}");
        rejected[0].why = "/usr/bin/python3 cannot import torch".into();
        let text = NoToolchain { explicit: Some("/usr/bin/python3".into()), rejected }.to_string();
        assert_eq!(text.matches("/usr/bin/python3").count(), 2, "{text}");
        assert!(text.starts_with("/usr/bin/python3 cannot be used to compile\n"), "{text}");
        assert!(
            NoToolchain { explicit: None, rejected: vec![] }.to_string().starts_with("there is no python3 on PATH")
        );
    }
}
