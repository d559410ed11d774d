//! Starts a program that links libtorch: `piecewised-with-torch PROGRAM [ARGUMENT...]`.
//!
//! The dynamic linker looks for libtorch before the program's first line runs, so a program can't find it for itself, and one that has a
//! path written into it does not survive being moved. This one finds libtorch, checks that it is the version that `client/tch` is built for,
//! puts its folder in front of `LD_LIBRARY_PATH`, and becomes the program. It links nothing but the C library.
//!
//! Where it looks: [`Source`], in that order. What somebody named is taken or refused; what is merely there is passed over with a reason.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// What `client/tch` is built for; a test of that crate holds the two together.
const LIBTORCH: &str = "2.11.0";
const USAGE: &str = "usage: piecewised-with-torch PROGRAM [ARGUMENT...]    (starts PROGRAM)\n       \
                     piecewised-with-torch --find                 (prints libtorch's folder)";
/// Prints the folder of torch without importing it, which would take seconds.
const WHERE: &str =
    "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')";

/// A place where libtorch may be.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// A variable that names its folder.
    Named(&'static str, PathBuf),
    /// An interpreter that may have torch: the active virtual environment's, or the first `python3` of `PATH`.
    Python(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(variable, folder) => write!(f, "{variable}={}", folder.display()),
            Self::Python(python) => write!(f, "{}", python.display()),
        }
    }
}

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let Some(program) = arguments.next() else { return failed(USAGE) };
    if ["-h", "--help"].iter().any(|help| program == *help) {
        return said(USAGE);
    }
    let found = match find(&sources(|name| env::var_os(name))) {
        Ok(found) => found,
        Err(problem) => return failed(&problem),
    };
    if program == "--find" {
        return said(&found.display().to_string());
    }
    let path = library_path(&found, env::var_os("LD_LIBRARY_PATH"));
    let error = Command::new(&program).args(arguments).env("LD_LIBRARY_PATH", path).exec();
    failed(&format!("{} can't be started: {error}", Path::new(&program).display()))
}

#[expect(clippy::print_stdout, reason = "a command's output")]
fn said(text: &str) -> ExitCode {
    println!("{text}");
    ExitCode::SUCCESS
}

#[expect(clippy::print_stderr, reason = "a command's message")]
fn failed(problem: &str) -> ExitCode {
    eprintln!("piecewised-with-torch: {problem}");
    ExitCode::from(2)
}

fn sources(variable: impl Fn(&str) -> Option<OsString>) -> Vec<Source> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let named =
        ["PIECEWISED_LIBTORCH", "LIBTORCH"].into_iter().filter_map(|name| Some(Source::Named(name, set(name)?)));
    let environment = set("VIRTUAL_ENV").map(|folder| Source::Python(folder.join("bin/python")));
    named.chain(environment).chain([Source::Python("python3".into())]).collect()
}

/// The folder of the first libtorch that will do.
fn find(sources: &[Source]) -> Result<PathBuf, String> {
    let mut passed_over = Vec::new();
    for source in sources {
        let found = match source {
            Source::Named(_, folder) => check(folder),
            Source::Python(python) => of_python(python).and_then(|folder| check(&folder)),
        };
        match (found, source) {
            (Ok(folder), _) => return Ok(folder),
            (Err(problem), Source::Named(..)) => {
                return Err(format!(
                    "{source}: {problem}; name the folder of a torch {LIBTORCH}, which has lib/ in it"
                ));
            }
            (Err(problem), Source::Python(_)) => passed_over.push(format!("  {source}: {problem}")),
        }
    }
    Err(format!(
        "no libtorch {LIBTORCH} was found:\n{}\nInstall it (pip install torch=={LIBTORCH}) into one of these, activate an environment that has it, or \
         name its folder in PIECEWISED_LIBTORCH.",
        passed_over.join("\n")
    ))
}

fn of_python(python: &Path) -> Result<PathBuf, String> {
    let output =
        Command::new(python).args(["-c", WHERE]).output().map_err(|error| format!("it can't be started: {error}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!("it fails: {}", text.lines().last().unwrap_or("without a word")));
    }
    match String::from_utf8_lossy(&output.stdout).trim() {
        "" => Err("it has no torch".into()),
        folder => Ok(folder.into()),
    }
}

/// The folder with the libraries in it, of torch's folder or that folder itself, if it is the right version.
fn check(torch: &Path) -> Result<PathBuf, String> {
    let has_library = |folder: &Path| folder.join("libtorch_cpu.so").is_file();
    let library = if has_library(torch) { torch.to_owned() } else { torch.join("lib") };
    if !has_library(&library) {
        return Err(format!("there is no libtorch_cpu.so in {}", library.display()));
    }
    let library = library.canonicalize().map_err(|error| error.to_string())?;
    match version(&library) {
        Some(found) if base(&found) == LIBTORCH => Ok(library),
        Some(found) => Err(format!(
            "its version is {found}, and this was built for {LIBTORCH}: libtorch's C++ interface changes between versions"
        )),
        None => Err("it does not say its version (version.py or build-version beside lib/)".into()),
    }
}

fn version(library: &Path) -> Option<String> {
    let root = library.parent()?;
    if let Ok(text) = fs::read_to_string(root.join("version.py")) {
        let value = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        return Some(value.trim_matches(['\'', '"']).to_owned());
    }
    Some(fs::read_to_string(root.join("build-version")).ok()?.trim().to_owned())
}

fn base(version: &str) -> &str {
    version.split_once('+').map_or(version, |(base, _)| base)
}

fn library_path(folder: &Path, before: Option<OsString>) -> OsString {
    let mut path = folder.as_os_str().to_owned();
    if let Some(before) = before.filter(|before| !before.is_empty()) {
        path.push(OsStr::new(":"));
        path.push(before);
    }
    path
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails where it unwraps nothing")]
mod tests {
    use super::*;

    /// A folder that looks like torch's.
    fn torch(version_file: &str, text: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("lib")).unwrap();
        fs::write(folder.path().join("lib/libtorch_cpu.so"), "").unwrap();
        fs::write(folder.path().join(version_file), text).unwrap();
        folder
    }

    #[test]
    fn the_named_come_first_and_empty_ones_are_unset() {
        let variable = |name: &str| match name {
            "LIBTORCH" => Some("/opt/torch".into()),
            "VIRTUAL_ENV" => Some("/venv".into()),
            "PIECEWISED_LIBTORCH" => Some("".into()),
            _ => None,
        };
        let expected = [
            Source::Named("LIBTORCH", "/opt/torch".into()),
            Source::Python("/venv/bin/python".into()),
            Source::Python("python3".into()),
        ];
        assert_eq!(sources(variable), expected);
    }

    #[test]
    fn torchs_folder_and_its_lib_are_both_taken() {
        for torch in [
            torch("version.py", "from typing import Optional\n__version__ = '2.11.0+cu130'\n"),
            torch("build-version", "2.11.0\n"),
        ] {
            let lib = torch.path().join("lib").canonicalize().unwrap();
            assert_eq!(check(torch.path()), Ok(lib.clone()));
            assert_eq!(check(&lib), Ok(lib));
        }
    }

    #[test]
    fn another_version_is_refused_by_both_numbers() {
        let torch = torch("version.py", "__version__ = '2.9.1'\n");
        let problem = check(torch.path()).unwrap_err();
        assert!(problem.contains("2.9.1") && problem.contains(LIBTORCH), "{problem}");
        let named = Source::Named("PIECEWISED_LIBTORCH", torch.path().into());
        let problem = find(&[named, Source::Python("python3".into())]).unwrap_err();
        assert!(problem.starts_with("PIECEWISED_LIBTORCH="), "what was named is not passed over: {problem}");
    }

    #[test]
    fn where_there_is_none_every_place_is_told() {
        let problem = find(&[Source::Python("/nowhere/python".into()), Source::Python("false".into())]).unwrap_err();
        for part in ["/nowhere/python: it can't be started", "false: it fails", "PIECEWISED_LIBTORCH"] {
            assert!(problem.contains(part), "{problem}");
        }
    }

    #[test]
    fn what_was_on_the_library_path_stays_there() {
        assert_eq!(library_path(Path::new("/t/lib"), Some("/a:/b".into())), "/t/lib:/a:/b");
        assert_eq!(library_path(Path::new("/t/lib"), None), "/t/lib");
    }
}
