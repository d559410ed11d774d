//! Which of the daemon's environment variables an executor gets.
//!
//! An allow-list, for two reasons. A variable that changes generated code without being part of the key would put one code
//! under another's name in the store; and secrets of the daemon's surroundings are none of a compiler's business.
//!
//! What a compiler needs is found through: the search paths of programs, headers and libraries; the choice of compiler; the
//! GPU driver's and the container runtime's own variables; where Triton's tools are; version managers that put a script in
//! front of `python3`; and locale, home and user name.
//!
//! Deliberately left out: `PYTHON*` (the module path is ours only), `TORCH*`, `TORCHINDUCTOR_*` and other `TRITON_*` (they
//! change code: what may be chosen comes with the job and is in its key), `OMP_NUM_THREADS` and its like (the number of
//! threads is written into CPU kernels), `PIECEWISED_*` (the daemon's and the client's), proxies (a compile needs no network).

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{ExecutorConfig, Placement};

/// Names that are handed on; a `*` at the end stands for any ending.
pub const ALLOWED: &[&str] = &[
    // Programs, users, language.
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TZ",
    // Libraries, and the C++ compiler with what it looks up.
    "LD_LIBRARY_PATH",
    "CC",
    "CXX",
    "CPATH",
    "C_INCLUDE_PATH",
    "CPLUS_INCLUDE_PATH",
    "LIBRARY_PATH",
    "COMPILER_PATH",
    "GCC_EXEC_PREFIX",
    // The GPU: toolkit, driver, visible devices, container runtime.
    "CUDA_*",
    "NVIDIA_*",
    // Where Triton's tools are; not what it does with them.
    "TRITON_PTXAS_PATH",
    "TRITON_PTXAS_BLACKWELL_PATH",
    "TRITON_CUOBJDUMP_PATH",
    "TRITON_NVDISASM_PATH",
    "TRITON_CUDACRT_PATH",
    "TRITON_CUDART_PATH",
    "TRITON_CUPTI_INCLUDE_PATH",
    "TRITON_CUPTI_LIB_PATH",
    "TRITON_LIBDEVICE_PATH",
    "TRITON_LIBCUDA_PATH",
    // Virtual environments and version managers.
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "CONDA_DEFAULT_ENV",
    "PYENV_ROOT",
    "PYENV_VERSION",
    "ASDF_DATA_DIR",
    "ASDF_DIR",
];

/// Whether `name` matches one of `patterns`.
pub(crate) fn is_allowed<'a>(name: &OsStr, patterns: impl IntoIterator<Item = &'a str>) -> bool {
    let Some(name) = name.to_str() else { return false };
    patterns.into_iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    })
}

/// The environment of an executor: what is allowed of the config's, and on top its placement, and what makes `folder` (absolute) the only
/// place it writes to.
pub(crate) fn compose(
    config: &ExecutorConfig,
    placement: &Placement,
    folder: &Path,
) -> io::Result<BTreeMap<OsString, OsString>> {
    let source_dir = std::path::absolute(&config.source_dir)?;
    let headers_dir = config.headers_dir.as_deref().map(std::path::absolute).transpose()?;
    let patterns = || ALLOWED.iter().copied().chain(config.extra_environment.iter().map(String::as_str));
    let mut environment: BTreeMap<OsString, OsString> = config
        .environment
        .iter()
        .filter(|(name, _)| is_allowed(name, patterns()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut set = |name: &str, value: &OsStr| {
        environment.insert(name.into(), value.into());
    };
    set("PYTHONPATH", source_dir.as_os_str());
    // Sets of strings must not be walked in another order in every process: the same graph should give the same bytes.
    set("PYTHONHASHSEED", "0".as_ref());
    for name in ["TMPDIR", "TMP", "TEMP"] {
        set(name, folder.join("tmp").as_os_str());
    }
    set("XDG_CACHE_HOME", folder.join("cache").as_os_str());
    set("TORCHINDUCTOR_CACHE_DIR", folder.join("inductor").as_os_str());
    set("TRITON_CACHE_DIR", folder.join("triton").as_os_str());
    // What the driver compiles for its GPU; it would be ~/.nv.
    set("CUDA_CACHE_PATH", folder.join("cuda").as_os_str());
    // Libraries of engines that make a folder in the home folder as soon as they are imported, where executors do not write.
    set("FLASHINFER_WORKSPACE_BASE", folder.join("cache").as_os_str());
    set("TILELANG_CACHE_DIR", folder.join("cache/tilelang").as_os_str());
    if let Some(headers) = headers_dir {
        set("PIECEWISED_PRECOMPILED_HEADERS", headers.as_os_str());
    }
    if !config.frontends.is_empty() {
        set("PIECEWISED_FRONTENDS", config.frontends.join(",").as_ref());
    }
    // What a forked executor changes to, since it begins where its zygote is.
    set("PWD", folder.join(WORK).as_os_str());
    if let Some(n) = placement.n_compile_threads.or(config.n_compile_threads) {
        set("TORCHINDUCTOR_COMPILE_THREADS", n.to_string().as_ref());
    }
    if let Some(gpu) = &placement.gpu {
        // By name: positions would be counted among what the daemon's own variable, which this one replaces, lets through.
        set("CUDA_VISIBLE_DEVICES", gpu.uuid.as_ref());
    }
    Ok(environment)
}

/// Makes the private folder of a process; it, and its absolute path.
pub(crate) fn private_folder(config: &ExecutorConfig, prefix: &str) -> io::Result<(TempDir, PathBuf)> {
    let folder = tempfile::Builder::new()
        .prefix(prefix)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(&config.temp_root)?;
    for name in FOLDERS {
        fs::create_dir(folder.path().join(name))?;
    }
    let root = std::path::absolute(folder.path())?;
    Ok((folder, root))
}

/// The folders that [`compose`] points to, and the working directory, all within an executor's own folder.
const FOLDERS: &[&str] = &["tmp", "cache", "inductor", "triton", "cuda", WORK];

/// The working directory: empty, because `python -m` looks there for modules first.
pub(crate) const WORK: &str = "work";

#[cfg(test)]
mod tests {
    use piecewised_graph::request::DeviceKind;

    use super::*;
    use crate::Gpu;

    fn composed(from: &[(&str, &str)], extra: &[&str]) -> BTreeMap<OsString, OsString> {
        let config = ExecutorConfig {
            environment: from.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            extra_environment: extra.iter().map(ToString::to_string).collect(),
            n_compile_threads: Some(3),
            ..ExecutorConfig::new("python3", "/source", "/temp")
        };
        compose(&config, &Placement::default(), Path::new("/private")).unwrap()
    }

    #[test]
    fn the_placement_wins_over_what_the_daemon_has() {
        let config = ExecutorConfig {
            environment: BTreeMap::from([("CUDA_VISIBLE_DEVICES".into(), "2,3".into())]),
            n_compile_threads: Some(8),
            ..ExecutorConfig::new("python3", "/source", "/temp")
        };
        let kind = DeviceKind { r#type: "cuda".into(), name: "A GPU".into(), capability: "9.0".into() };
        let gpu = Gpu { index: 1, uuid: "GPU-8f3a".into(), kind, memory_bytes: 1 << 36 };
        let placement =
            Placement { gpu: Some(gpu), n_compile_threads: Some(2), max_memory_bytes: None, frontend: None };
        let environment = compose(&config, &placement, Path::new("/private")).unwrap();
        assert_eq!(environment[OsStr::new("CUDA_VISIBLE_DEVICES")], "GPU-8f3a");
        assert_eq!(environment[OsStr::new("TORCHINDUCTOR_COMPILE_THREADS")], "2");
        let unplaced = compose(&config, &Placement::default(), Path::new("/private")).unwrap();
        assert_eq!(unplaced[OsStr::new("CUDA_VISIBLE_DEVICES")], "2,3");
    }

    #[test]
    fn what_changes_code_or_is_secret_stays_behind() {
        for name in [
            "AWS_SECRET_ACCESS_KEY",
            "OMP_NUM_THREADS",
            "TORCHINDUCTOR_MAX_AUTOTUNE",
            "TORCH_LOGS",
            "TRITON_DEBUG",
            "PYTHONSTARTUP",
            "PIECEWISED_SOCKET",
            "LC", // A prefix alone is another name.
        ] {
            assert!(!composed(&[(name, "x")], &[]).contains_key(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn what_a_compiler_needs_is_handed_on() {
        for name in
            ["PATH", "HOME", "LC_ALL", "CXX", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"]
        {
            assert_eq!(composed(&[(name, "x")], &[])[OsStr::new(name)], "x", "{name}");
        }
    }

    #[test]
    fn the_operator_can_add_names() {
        let environment =
            composed(&[("NIX_LD", "1"), ("OMP_NUM_THREADS", "4"), ("OTHER", "5")], &["NIX_*", "OMP_NUM_THREADS"]);
        assert_eq!(environment[OsStr::new("NIX_LD")], "1");
        assert_eq!(environment[OsStr::new("OMP_NUM_THREADS")], "4");
        assert!(!environment.contains_key(OsStr::new("OTHER")));
    }

    #[test]
    fn our_own_settings_win_over_the_daemons_and_over_extra_names() {
        let environment = composed(&[("PYTHONPATH", "/theirs"), ("TMPDIR", "/tmp")], &["PYTHONPATH", "TMPDIR"]);
        assert_eq!(environment[OsStr::new("PYTHONPATH")], "/source");
        assert_eq!(environment[OsStr::new("TMPDIR")], "/private/tmp");
        assert_eq!(environment[OsStr::new("TORCHINDUCTOR_COMPILE_THREADS")], "3");
    }
}
