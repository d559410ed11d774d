//! What an interpreter said of itself to an earlier daemon, and whether that still holds.
//!
//! Importing torch takes seconds, and a daemon that was started again could answer from its store before. So what the interpreter said is
//! written down together with everything that it follows from, as far as a look at the file system shows it: the executor's own source, the
//! candidates on `PATH`, the environment, the CPU, the GPUs with their driver, and the files that [`Hello::witnesses`] names, by length and
//! time. While all of that is unchanged it is believed at once, and checked as soon as an executor has started.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use piecewised_graph::Digest;
use serde::{Deserialize, Serialize};

use crate::{ExecutorConfig, ExecutorSource, Hello, Placement, discover, environment, placement};

/// Raised when what is written changes its meaning.
const VERSION: u32 = 1;

const CPU_INFO: &str = "/proc/cpuinfo";
const NVIDIA: &str = "/proc/driver/nvidia";

/// The lines of [`CPU_INFO`] that say what code may use, as x86 and Arm name them.
const CPU_LINES: [&str; 6] = ["model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant"];

/// A toolchain as an earlier daemon found it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    version: u32,
    /// The path that its executors are started with.
    pub python: PathBuf,
    /// What it said.
    pub hello: Hello,
    premises: Premises,
}

/// What the answer follows from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Premises {
    source: String,
    candidates: Vec<PathBuf>,
    environment: String,
    cpu: String,
    gpus: String,
    witnesses: Vec<Witness>,
}

/// A file or folder as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Witness {
    path: PathBuf,
    /// Length in bytes and time of the last change since 1970; `None`: it is not there.
    state: Option<(u64, Duration)>,
}

impl Remembered {
    /// What to write down of an interpreter that was found; reads files. `None` where a change of the GPUs could go unseen.
    pub fn new(explicit: Option<&Path>, config: &ExecutorConfig, python: PathBuf, hello: Hello) -> Option<Self> {
        // Slices come and go without a trace in what is looked at here.
        if hello.gpus.iter().any(|gpu| gpu.uuid.starts_with("MIG-")) {
            return None;
        }
        let witnesses = hello.witnesses.iter().map(PathBuf::as_path).chain([python.as_path()]);
        let premises = premises(explicit, config, witnesses)?;
        Some(Self { version: VERSION, python, hello, premises })
    }

    /// Whether everything is as it was; reads files.
    pub fn still_holds(&self, explicit: Option<&Path>, config: &ExecutorConfig) -> bool {
        let witnesses = self.premises.witnesses.iter().map(|witness| witness.path.as_path());
        self.version == VERSION && premises(explicit, config, witnesses).is_some_and(|now| now == self.premises)
    }

    /// To be kept.
    ///
    /// # Panics
    /// Never: there are string keys only.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("string keys and no fallible serializer")
    }

    /// From [`Self::to_json`]; `None` for what is none, or of another version.
    pub fn from_json(json: &str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }
}

fn premises<'a>(
    explicit: Option<&Path>,
    config: &ExecutorConfig,
    witnesses: impl Iterator<Item = &'a Path>,
) -> Option<Premises> {
    Some(Premises {
        source: ExecutorSource.digest().to_string(),
        candidates: discover::candidates(explicit, config),
        environment: environment_digest(config)?,
        cpu: Digest::of(cpu(&fs::read_to_string(CPU_INFO).ok()?).as_bytes()).to_string(),
        gpus: gpus()?,
        witnesses: witnesses.map(witness).collect(),
    })
}

/// Of the variables that executors get, but for the folders that each daemon makes anew.
fn environment_digest(config: &ExecutorConfig) -> Option<String> {
    let root = Path::new("/");
    let config = ExecutorConfig { source_dir: root.into(), headers_dir: None, ..config.clone() };
    let variables = environment::compose(&config, &Placement::default(), root).ok()?;
    let mut text = Vec::new();
    for part in variables.iter().flat_map(|(name, value)| [name, value]) {
        let part = part.as_encoded_bytes();
        text.extend_from_slice(&(part.len() as u64).to_be_bytes());
        text.extend_from_slice(part);
    }
    Some(Digest::of(&text).to_string())
}

/// What the processors are able to do; each of them once.
fn cpu(info: &str) -> String {
    let of_interest = |line: &&str| CPU_LINES.iter().any(|name| line.starts_with(name));
    let mut lines: Vec<_> = info.lines().filter(of_interest).collect();
    lines.sort_unstable();
    lines.dedup();
    lines.join("\n")
}

/// The driver and each GPU; empty where there is none, `None` where there are some that can't be seen from here.
fn gpus() -> Option<String> {
    let folder = Path::new(NVIDIA);
    if !folder.exists() {
        return (!placement::is_for_cuda()).then(String::new);
    }
    let mut text = fs::read_to_string(folder.join("version")).ok()?;
    let mut names: Vec<_> =
        fs::read_dir(folder.join("gpus")).ok()?.map(|entry| Some(entry.ok()?.path())).collect::<Option<_>>()?;
    names.sort_unstable();
    for name in names {
        text += &fs::read_to_string(name.join("information")).ok()?;
    }
    Some(Digest::of(text.as_bytes()).to_string())
}

fn witness(path: &Path) -> Witness {
    let state = fs::metadata(path).ok().map(|found| {
        // A time before 1970 is as good as any other that does not change.
        let modified = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        (found.len(), modified.unwrap_or_default())
    });
    Witness { path: path.to_owned(), state }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_changed_premise_shows() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("version.py");
        fs::write(&file, "1").unwrap();
        let variables = |value: &str| [("CUDA_HOME".into(), value.into())].into_iter().collect();
        let config = ExecutorConfig { environment: variables("/a"), ..ExecutorConfig::new("python3", "/s", "/t") };
        let look = |config: &ExecutorConfig, explicit: &str| {
            premises(Some(Path::new(explicit)), config, [file.as_path()].into_iter()).unwrap()
        };
        let before = look(&config, "python3");

        assert_eq!(look(&ExecutorConfig { source_dir: "/elsewhere".into(), ..config.clone() }, "python3"), before);
        assert_ne!(look(&config, "/usr/bin/python3"), before, "another interpreter");
        assert_ne!(look(&ExecutorConfig { environment: variables("/b"), ..config.clone() }, "python3"), before);
        assert_ne!(look(&ExecutorConfig { n_compile_threads: Some(3), ..config.clone() }, "python3"), before);
        let later = UNIX_EPOCH + Duration::from_secs(4_000_000_000);
        File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
        assert_ne!(look(&config, "python3"), before, "touched");
        fs::remove_file(&file).unwrap();
        assert_ne!(look(&config, "python3"), before, "gone");
    }

    #[test]
    fn of_a_processor_only_what_it_is_counts() {
        let info = |mhz: &str, flags: &str| {
            let one = |n: u32| format!("processor\t: {n}\nmodel name\t: X\ncpu MHz\t: {mhz}\nflags\t: {flags}\n\n");
            one(0) + &one(1)
        };
        assert_eq!(cpu(&info("2000", "avx2")), cpu(&info("3000", "avx2")));
        assert_ne!(cpu(&info("2000", "avx2")), cpu(&info("2000", "avx2 avx512f")));
        assert_eq!(cpu(&info("2000", "avx2")).lines().count(), 2);
    }
}
