//! One package: an AOTInductor-compiled entry of an artifact, loaded for one device.

use std::{borrow::Borrow, fmt, fs, path::Path, thread};

use tch::{Device, Tensor};

use crate::{
    Error, Result, dtype,
    error::InputError,
    inputs::Inputs,
    libtorch::{base, initialise, libtorch_version},
    manifest::{Constant, Entry, Manifest},
    outputs::Outputs,
    shim::{Described, Descriptions, Loaded, Owned, Tensors, has_operator},
};

/// How packages are loaded.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Where their inputs are.
    pub device: Device,
    /// How many calls of one package run at once; further ones wait. `None`: on a CPU as many as it has cores, on a GPU one.
    ///
    /// AOTInductor keeps one runner a call, which share the package's constants. With one there is only a lock around the call, which on a GPU is
    /// held while kernels are launched and not while they run, so that calls of several threads queue up behind each other on the GPU without
    /// waiting for it. With several, a GPU's runner is taken again only when its last call has *finished*: a thread that is so many calls
    /// ahead of the GPU waits for it, and calls can't be captured into CUDA graphs.
    pub n_runners: Option<usize>,
}

impl LoadOptions {
    /// The defaults for a device.
    pub fn new(device: Device) -> Self {
        Self { device, n_runners: None }
    }

    fn n_runners(&self) -> usize {
        let default = || match self.device {
            Device::Cpu => thread::available_parallelism().map_or(1, usize::from),
            _ => 1,
        };
        self.n_runners.unwrap_or_else(default).max(1)
    }
}

/// A compiled entry that can be called, from any thread.
///
/// It runs what it was compiled for and checks that inputs are that; which sizes it is valid for is [`crate::Piece`]'s to know, which
/// chooses one of several.
pub struct Package {
    name: String,
    device: Device,
    loaded: Loaded,
    inputs: Inputs,
    /// The tensors of a call that the package takes, by position.
    taken: Vec<usize>,
    constants: Owned,
    outputs: Outputs,
}

impl Package {
    /// Loads entry `name` of the artifact in `folder`. Takes some milliseconds and starts no compiler.
    ///
    /// # Errors
    /// [`Error::Artifact`] where the folder does not hold it, or it is for another torch or device, or calls operators that nobody registered
    /// ([`crate::load_operators`]); [`Error::Libtorch`] where the process lacks the device.
    pub fn load(folder: &Path, name: &str, options: &LoadOptions) -> Result<Self> {
        let manifest = Manifest::read(folder)?;
        Self::of(folder, &manifest, manifest.entry(folder, name)?, options)
    }

    pub(crate) fn of(folder: &Path, manifest: &Manifest, entry: &Entry, options: &LoadOptions) -> Result<Self> {
        let path = folder.join(&entry.program);
        let bad = |problem: String| Error::Artifact { path: path.clone(), problem };
        check_maker(manifest, options.device).map_err(bad)?;
        initialise(options.device)?;
        let index = match options.device {
            Device::Cuda(index) => Some(i32::try_from(index).unwrap_or(i32::MAX)),
            _ => None,
        };
        for operator in &entry.operators {
            if !has_operator(operator).map_err(bad)? {
                return Err(bad(format!(
                    "it calls the operator {operator}, which nothing in this process registers; load the library that does first \
                     (piecewised_tch::load_operators)"
                )));
            }
        }
        let inputs = Inputs::new(entry, options.device).map_err(bad)?;
        let outputs = Outputs::new(entry.n_outputs, &entry.output).map_err(bad)?;
        let constants = entry.constants.iter().map(|constant| read(folder, constant, options.device));
        let constants = constants.collect::<Result<_>>()?;
        let loaded = Loaded::load(&path, options.n_runners(), index).map_err(bad)?;
        Ok(Self {
            name: entry.name.clone(),
            device: options.device,
            loaded,
            inputs,
            taken: entry.arguments.iter().filter_map(|&argument| entry.tensor(argument)).collect(),
            constants: Owned::new(constants),
            outputs,
        })
    }

    /// The entry's name in its artifact.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is loaded.
    pub fn device(&self) -> Device {
        self.device
    }

    /// One call. `inputs`: the graph's tensor arguments, in order; integer arguments are left out, since sizes tell them. Inputs that the graph changes
    /// in place are changed. What is returned is the graph's tensors, in order (nested structures in a row).
    ///
    /// On a GPU the call returns when its kernels are launched, on the calling thread's current stream of the package's device.
    ///
    /// # Errors
    /// [`Error::Input`] where the inputs are not what the package was compiled for; then nothing ran. [`Error::Call`] where the
    /// compiled code failed.
    pub fn forward<T: Borrow<Tensor>>(&self, inputs: &[T]) -> Result<Vec<Tensor>> {
        let tensors = Tensors::of(inputs);
        let described = described(&tensors)?;
        self.run(&tensors, &described)
    }

    /// As [`Self::forward`], but what the package itself returns: `n_outputs` of its manifest, before the structure is made of them that the
    /// graph returns (where one value may stand twice, and constants between them).
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_flat<T: Borrow<Tensor>>(&self, inputs: &[T]) -> Result<Vec<Tensor>> {
        let tensors = Tensors::of(inputs);
        let described = described(&tensors)?;
        self.run_flat(&tensors, &described)
    }

    /// As [`Self::forward`], of tensors that were looked at already.
    pub(crate) fn run(&self, tensors: &Tensors<'_>, described: &[Described<'_>]) -> Result<Vec<Tensor>> {
        Ok(self.outputs.of(self.run_flat(tensors, described)?))
    }

    fn run_flat(&self, tensors: &Tensors<'_>, described: &[Described<'_>]) -> Result<Vec<Tensor>> {
        self.inputs.check(described)?;
        let chosen = tensors.chosen(&self.taken, &self.constants);
        let returned = self.loaded.run(&chosen, self.outputs.n_returned());
        returned.map_err(|problem| Error::Call { entry: self.name.clone(), problem })
    }
}

impl fmt::Debug for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Package").field("name", &self.name).field("device", &self.device).finish_non_exhaustive()
    }
}

pub(crate) fn described<'a>(tensors: &'a Tensors<'_>) -> Result<Descriptions<'a>> {
    Ok(tensors.describe().map_err(|problem| InputError::Unreadable { problem })?)
}

/// Whether code that was made so can run here at all.
fn check_maker(manifest: &Manifest, device: Device) -> std::result::Result<(), String> {
    let (made_with, here) = (base(&manifest.toolchain.torch_version), libtorch_version());
    if made_with != here {
        return Err(format!(
            "it was compiled by torch {made_with}, and this program has libtorch {here}; point the daemon at a Python with torch {here}"
        ));
    }
    let kind = match device {
        Device::Cuda(_) => "cuda",
        _ => "cpu",
    };
    let made_for = &manifest.device;
    if made_for.r#type != kind {
        return Err(format!(
            "it was compiled for {} ({}), and is to be loaded for {device:?}",
            made_for.r#type, made_for.name
        ));
    }
    Ok(())
}

fn read(folder: &Path, constant: &Constant, device: Device) -> Result<Tensor> {
    let path = folder.join(&constant.path);
    let bad = |problem: String| Error::Artifact { path: path.clone(), problem };
    let kind = dtype::kind(&constant.dtype).ok_or_else(|| bad(format!("tch has no {}", constant.dtype)))?;
    let bytes = fs::read(&path).map_err(|error| bad(error.to_string()))?;
    let tensor = Tensor::f_from_data_size(&bytes, &constant.sizes, kind).map_err(|error| bad(error.to_string()))?;
    let on = if constant.device.r#type() == "cuda" { device } else { Device::Cpu };
    tensor.f_to_device(on).map_err(|error| bad(error.to_string()))
}
