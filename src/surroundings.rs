//! What the configuration depends on beside files and flags, as plain values, so that tests make their own and never touch the
//! process's environment.

use std::{collections::BTreeMap, ffi::OsString, fs, io::IsTerminal, path::Path, path::PathBuf};

use rustix::fs::{Access, access};

/// The process's surroundings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// The environment.
    pub(crate) variables: BTreeMap<OsString, OsString>,
    /// The effective user.
    pub(crate) uid: u32,
    /// Cores that this process may use.
    pub(crate) n_cores: usize,
    /// Memory that it and its children may use, in bytes.
    pub(crate) memory_bytes: u64,
    /// Whether `/run` can be written to.
    pub(crate) run_is_writable: bool,
    /// Whether `/etc/piecewised/piecewised.toml` and its like are looked for.
    pub(crate) looks_for_files: bool,
    /// Whether stderr is a terminal.
    pub(crate) stderr_is_terminal: bool,
    /// What the machine, or the pod, is called.
    pub(crate) node_name: Option<String>,
    /// The folder that this program lies in.
    pub(crate) program_folder: Option<PathBuf>,
}

impl Surroundings {
    /// Those of this process.
    pub(crate) fn of_this_process() -> Self {
        Self {
            variables: std::env::vars_os().collect(),
            uid: rustix::process::geteuid().as_raw(),
            n_cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_bytes(),
            run_is_writable: ["/run/piecewised", "/run"]
                .iter()
                .find(|folder| Path::new(folder).is_dir())
                .is_some_and(|folder| access(*folder, Access::WRITE_OK | Access::EXEC_OK).is_ok()),
            looks_for_files: true,
            stderr_is_terminal: std::io::stderr().is_terminal(),
            node_name: rustix::system::uname().nodename().to_str().ok().map(ToOwned::to_owned),
            program_folder: std::env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned())),
        }
    }

    /// A variable that is set and not empty.
    pub(crate) fn variable(&self, name: &str) -> Option<&OsString> {
        self.variables.get(std::ffi::OsStr::new(name)).filter(|value| !value.is_empty())
    }

    /// A folder that a variable names. Relative ones do not count, as the XDG specification has it.
    fn folder(&self, name: &str) -> Option<PathBuf> {
        self.variable(name).map(PathBuf::from).filter(|folder| folder.is_absolute())
    }

    /// A file in this program's own folder, where there is one of that name.
    pub(crate) fn beside(&self, name: &str) -> Option<PathBuf> {
        self.program_folder.as_ref().map(|folder| folder.join(name)).filter(|path| path.is_file())
    }

    /// Where the socket is by default. Clients look in the same places, in the same order.
    pub(crate) fn default_socket(&self) -> PathBuf {
        let folder = match self.folder("XDG_RUNTIME_DIR") {
            Some(runtime) => runtime.join("piecewised"),
            None if self.run_is_writable => "/run/piecewised".into(),
            None => format!("/tmp/piecewised-{}", self.uid).into(),
        };
        folder.join("piecewised.sock")
    }

    /// Where the store is by default.
    pub(crate) fn default_store_dir(&self) -> PathBuf {
        self.folder("XDG_CACHE_HOME")
            .or_else(|| self.folder("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(|| "/var/cache".into())
            .join("piecewised")
    }

    /// Where temporary folders are made by default.
    pub(crate) fn default_temp_dir(&self) -> PathBuf {
        self.folder("TMPDIR").unwrap_or_else(|| "/tmp".into())
    }

    /// Where a configuration file may be when none was named, in the order in which they are looked for.
    pub(crate) fn config_files(&self) -> Vec<PathBuf> {
        if !self.looks_for_files {
            return Vec::new();
        }
        let of_the_user = self
            .folder("XDG_CONFIG_HOME")
            .or_else(|| self.folder("HOME").map(|home| home.join(".config")))
            .map(|folder| folder.join("piecewised/piecewised.toml"));
        of_the_user.into_iter().chain([PathBuf::from("/etc/piecewised/piecewised.toml")]).collect()
    }
}

/// The machine's memory, or what the tightest of our control groups allows. Where neither can be read: 8 GiB, since something has to be
/// assumed.
fn memory_bytes() -> u64 {
    let mut limits = Vec::new();
    let kib = |line: &str| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok();
    let machine = fs::read_to_string("/proc/meminfo").ok();
    limits.extend(machine.and_then(|text| text.lines().find_map(kib)).map(|kib| kib * 1024));
    // Version 2 only: "0::/system.slice/piecewised.service". In a container the group is the root of what is mounted.
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    for folder in
        Path::new("/sys/fs/cgroup").join(group).ancestors().take_while(|path| path.starts_with("/sys/fs/cgroup"))
    {
        let limit = fs::read_to_string(folder.join("memory.max")).ok();
        limits.extend(limit.and_then(|text| text.trim().parse::<u64>().ok()));
    }
    limits.into_iter().min().unwrap_or(8 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Surroundings {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Surroundings { variables, uid: 1000, n_cores: 8, memory_bytes: 16 << 30, ..Surroundings::default() }
    }

    #[test]
    fn the_socket_is_in_the_first_private_place() {
        let socket = |surroundings: Surroundings| surroundings.default_socket();
        assert_eq!(
            socket(with(&[("XDG_RUNTIME_DIR", "/run/user/7")])),
            Path::new("/run/user/7/piecewised/piecewised.sock")
        );
        assert_eq!(socket(with(&[("XDG_RUNTIME_DIR", "relative")])), Path::new("/tmp/piecewised-1000/piecewised.sock"));
        let root = Surroundings { run_is_writable: true, ..with(&[]) };
        assert_eq!(socket(root), Path::new("/run/piecewised/piecewised.sock"));
    }

    #[test]
    fn the_store_is_in_the_first_cache_folder() {
        let store = |variables: &[_]| with(variables).default_store_dir();
        assert_eq!(store(&[("XDG_CACHE_HOME", "/c"), ("HOME", "/h")]), Path::new("/c/piecewised"));
        assert_eq!(store(&[("HOME", "/h")]), Path::new("/h/.cache/piecewised"));
        assert_eq!(store(&[("HOME", "")]), Path::new("/var/cache/piecewised"));
    }
}
