//! The cache folder for Python: artifacts that are here, and entries as bytes that need no daemon.

use std::path::{Path, PathBuf};

use piecewised_client::{Cache as CoreCache, ClientError, Keyring, cache_folder, from_bundle, to_bundle};
use piecewised_graph::{Handle, Manifest, ProgramName};
use pyo3::{prelude::*, types::PyBytes};

use crate::{
    client::parse,
    errors::{raise, raise_json},
};

/// The cache folder to use where none is named.
pub(crate) fn default_folder() -> PathBuf {
    cache_folder(|name: &str| std::env::var(name).ok(), rustix::process::getuid().as_raw())
}

/// Whose code is loaded: the keys that were given, by option or by the environment, or those that this cache folder remembers.
pub(crate) fn keyring(py: Python<'_>, trusted_keys: Option<&str>, folder: &Path) -> PyResult<Keyring> {
    Keyring::resolve(trusted_keys, |name| std::env::var(name).ok(), folder).map_err(|error| raise(py, &error))
}

/// The folder of materialised artifacts.
#[pyclass(module = "piecewised._core", frozen)]
pub(crate) struct Cache {
    cache: CoreCache,
    folder: PathBuf,
    keyring: Keyring,
}

#[pymethods]
impl Cache {
    #[new]
    #[pyo3(signature = (cache_dir = None, *, trusted_keys = None))]
    fn new(py: Python<'_>, cache_dir: Option<PathBuf>, trusted_keys: Option<&str>) -> PyResult<Self> {
        let folder = cache_dir.unwrap_or_else(default_folder);
        let cache = CoreCache::open(&folder).map_err(|error| raise(py, &error))?;
        let keyring = keyring(py, trusted_keys, &folder)?;
        Ok(Self { cache, folder, keyring })
    }

    #[getter]
    fn folder(&self) -> PathBuf {
        self.folder.clone()
    }

    /// The folder of the artifact that a handle names, if it is here. Raises where no trusted daemon has signed the handle.
    fn find(&self, py: Python<'_>, handle: &str) -> PyResult<Option<PathBuf>> {
        let handle: Handle = parse(py, "handle", handle)?;
        let found = py.detach(|| self.keyring.check_handle(&handle).map(|()| self.cache.find(&handle.digest)));
        found.map_err(|error| raise(py, &error))
    }

    /// The artifact that a handle names as bytes that need nothing else; None: it isn't here.
    fn to_bundle<'py>(&self, py: Python<'py>, handle: &str) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let handle: Handle = parse(py, "handle", handle)?;
        let bundle = py.detach(|| self.cache.container(&handle.digest).map(|container| to_bundle(&handle, &container)));
        Ok(bundle.map(|bundle| PyBytes::new(py, &bundle)))
    }

    /// Takes in what `to_bundle` gave: the handle, as JSON, and the folder of its artifact. Raises where no trusted daemon has signed it.
    fn take_bundle(&self, py: Python<'_>, bundle: &[u8]) -> PyResult<(String, PathBuf)> {
        let taken = py.detach(|| -> Result<_, ClientError> {
            let (handle, container) = from_bundle(bundle)?;
            self.keyring.check_handle(&handle)?;
            let folder = self.cache.install(&handle.digest, container)?;
            Ok((handle, folder))
        });
        let (handle, folder) = taken.map_err(|error| raise(py, &error))?;
        let text = serde_json::to_string(&handle).map_err(|error| raise_json(py, "handle", &error))?;
        Ok((text, folder))
    }
}

/// Raises unless a text is a program's manifest whose parts fit together, signed by a daemon that is trusted with this cache folder.
#[pyfunction]
#[pyo3(signature = (manifest, cache_dir = None, *, trusted_keys = None))]
pub(crate) fn check_manifest(
    py: Python<'_>,
    manifest: &str,
    cache_dir: Option<PathBuf>,
    trusted_keys: Option<&str>,
) -> PyResult<()> {
    let manifest: Manifest = parse(py, "manifest", manifest)?;
    let keyring = keyring(py, trusted_keys, &cache_dir.unwrap_or_else(default_folder))?;
    piecewised_client::check_manifest(&manifest, &keyring).map_err(|error| raise(py, &error))
}

/// Raises unless a text can be the name of a program or of a run.
#[pyfunction]
pub(crate) fn check_program_name(py: Python<'_>, name: &str) -> PyResult<()> {
    let name: Result<ProgramName, _> = name.parse();
    name.map(drop).map_err(|error| raise(py, &ClientError::ProgramName(error)))
}
