//! The process's libtorch: that it is the one that this was compiled for, and its GPUs.

use std::{fs, path::Path, sync::OnceLock};

use tch::Device;

use crate::{Error, Result, shim};

/// The version of libtorch that this crate was compiled for, "2.11.0".
pub fn libtorch_version() -> &'static str {
    base(shim::header_version())
}

/// Gets the process ready for a device: checks libtorch's version and, for a GPU, loads libtorch's CUDA part.
///
/// Loading a package does this by itself. A program that uses tch on a GPU *before* it loads its first package calls this first: libtorch
/// looks for CUDA once, and a process that has asked it before (by `tch::Cuda::is_available`, say) stays without.
///
/// # Errors
/// [`Error::Libtorch`] where the version is another one, or there is no such device.
pub fn initialise(device: Device) -> Result<()> {
    check_version()?;
    let index = match device {
        Device::Cpu => return Ok(()),
        Device::Cuda(index) => index,
        other => {
            return Err(Error::Libtorch {
                problem: format!("packages run on Device::Cpu and Device::Cuda, not on {other:?}"),
            });
        }
    };
    let n_devices = n_gpus()?;
    if i32::try_from(index).is_ok_and(|index| index < n_devices) {
        return Ok(());
    }
    let problem =
        format!("there is no cuda:{index}: libtorch finds {n_devices} GPUs here (CUDA_VISIBLE_DEVICES narrows them)");
    Err(Error::Libtorch { problem })
}

/// Waits until a GPU has done what was launched on its current stream; nothing on a CPU.
///
/// # Errors
/// [`Error::Libtorch`] with what CUDA says: also about work that failed since the last time.
pub fn synchronise(device: Device) -> Result<()> {
    match device {
        Device::Cuda(index) => {
            shim::synchronise(i32::try_from(index).unwrap_or(-1)).map_err(|problem| Error::Libtorch { problem })
        }
        _ => Ok(()),
    }
}

/// Loads a shared library that registers custom operators (`TORCH_LIBRARY`), as `torch.ops.load_library` does. Packages that call them
/// are loaded after that.
///
/// # Errors
/// [`Error::Libtorch`] with what the dynamic linker says.
pub fn load_operators(library: &Path) -> Result<()> {
    shim::load_library(library)
        .map_err(|problem| Error::Libtorch { problem: format!("{} can't be loaded: {problem}", library.display()) })
}

fn n_gpus() -> Result<i32> {
    static FOUND: OnceLock<std::result::Result<i32, String>> = OnceLock::new();
    let found = FOUND.get_or_init(shim::load_cuda);
    found.clone().map_err(|problem| Error::Libtorch {
        problem: format!("this process's libtorch can't use GPUs: {problem}; a libtorch with CUDA has libtorch_cuda.so beside libtorch_cpu.so"),
    })
}

/// libtorch's C++ interface has no stability from one version to the next. Where the folder does not say which version it is, nothing is refused.
fn check_version() -> Result<()> {
    static FOUND: OnceLock<Option<String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| version_beside(&shim::library_folder()?));
    let expected = libtorch_version();
    match found {
        Some(found) if base(found) != expected => {
            let folder = shim::library_folder().unwrap_or_default();
            Err(Error::Libtorch {
                problem: format!(
                    "this program was built for libtorch {expected}, and runs with {found} from {}; name a torch {expected} in \
                     PIECEWISED_LIBTORCH and start it with piecewised-with-torch",
                    folder.display()
                ),
            })
        }
        _ => Ok(()),
    }
}

/// The version of the libtorch in `folder`, as the Python package (`version.py`) or the C++ archive (`build-version`) says it.
fn version_beside(folder: &Path) -> Option<String> {
    let root = folder.parent()?;
    if let Ok(text) = fs::read_to_string(root.join("version.py")) {
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        return Some(line.trim_matches(|quote| quote == '\'' || quote == '"').to_owned());
    }
    Some(fs::read_to_string(root.join("build-version")).ok()?.trim().to_owned())
}

/// "2.11.0" of "2.11.0+cu130".
pub(crate) fn base(version: &str) -> &str {
    version.split_once('+').map_or(version, |(base, _)| base)
}
