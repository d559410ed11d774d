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
    path::Path,
};

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
fn is_allowed<'a>(name: &OsStr, patterns: impl IntoIterator<Item = &'a str>) -> bool {
    let Some(name) = name.to_str() else { return false };
    patterns.into_iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    })
}

/// The environment of an executor: what is allowed of `from`, and on top what makes `folder` the only place it writes to.
pub(crate) fn compose(
    from: &BTreeMap<OsString, OsString>,
    extra: &[String],
    source_dir: &Path,
    folder: &Path,
    headers_dir: Option<&Path>,
    n_compile_threads: Option<usize>,
) -> BTreeMap<OsString, OsString> {
    let patterns = || ALLOWED.iter().copied().chain(extra.iter().map(String::as_str));
    let mut environment: BTreeMap<OsString, OsString> = from
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
    if let Some(headers) = headers_dir {
        set("PIECEWISED_PRECOMPILED_HEADERS", headers.as_os_str());
    }
    if let Some(n) = n_compile_threads {
        set("TORCHINDUCTOR_COMPILE_THREADS", n.to_string().as_ref());
    }
    environment
}

/// The folders that [`compose`] points to, and the working directory, all within an executor's own folder.
pub(crate) const FOLDERS: &[&str] = &["tmp", "cache", "inductor", "triton", WORK];

/// The working directory: empty, because `python -m` looks there for modules first.
pub(crate) const WORK: &str = "work";

#[cfg(test)]
mod tests {
    use super::*;

    fn composed(from: &[(&str, &str)], extra: &[&str]) -> BTreeMap<OsString, OsString> {
        let from = from.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let extra: Vec<_> = extra.iter().map(ToString::to_string).collect();
        compose(&from, &extra, Path::new("/source"), Path::new("/private"), None, Some(3))
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
