//! A piece with all its ranges: finds the package for the sizes of a call, and calls it.
//!
//! What runs which size is client/core's dispatcher's to say, from the handles alone. It asks for the value of integer arguments; a Rust caller
//! gives tensors, so `places.rs` finds out which dimension of which tensor has the same value.

use std::{
    borrow::Borrow,
    collections::{HashMap, hash_map::Entry as Slot},
    fmt,
    path::PathBuf,
    sync::Arc,
};

use piecewised_client::{ClientError, Dispatcher};
use piecewised_graph::Handle;
use tch::{Device, Tensor};

use crate::{
    Error, LoadOptions, Package, Result,
    error::InputError,
    manifest::Manifest,
    package::described,
    places::{Compiled, Place, Places},
    shim::{Described, Tensors},
};

/// A compiled piece: packages for the ranges and single sizes of its plan. May be called by several threads at once.
pub struct Piece {
    dispatcher: Dispatcher,
    /// By the dispatcher's targets.
    packages: Vec<Arc<Package>>,
    /// Where the size is that decides; `None`: one package runs every call.
    size: Option<Place>,
    /// Where the other values are that guards name, in the dispatcher's order.
    values: Vec<Place>,
    device: Device,
}

impl Piece {
    /// Loads what `handles` name, one handle for each entry of the plan; `folders` are their materialised artifacts, in the same order.
    /// ([`crate::Worker`] fetches and loads; this is for artifacts that came another way.)
    ///
    /// # Errors
    /// [`Error::Client`] where the handles make no dispatch table; else as [`Package::load`].
    pub fn load(handles: &[Handle], folders: &[PathBuf], options: &LoadOptions) -> Result<Self> {
        Self::load_knowing(handles, folders, options, None)
    }

    /// As [`Self::load`]. `size`: argument and dimension of the size to dispatch on, from a caller that has the graph.
    pub(crate) fn load_knowing(
        handles: &[Handle],
        folders: &[PathBuf],
        options: &LoadOptions,
        size: Option<(u32, u32)>,
    ) -> Result<Self> {
        if handles.len() != folders.len() {
            let problem = format!("there are {} of them and {} folders", handles.len(), folders.len());
            return Err(ClientError::BadHandles { problem }.into());
        }
        let dispatcher = Dispatcher::new(handles)?;
        // Several handles may name one artifact, and several segments one entry of it.
        let mut manifests: HashMap<&PathBuf, Manifest> = HashMap::new();
        let mut loaded: HashMap<(&PathBuf, &str), Arc<Package>> = HashMap::new();
        let mut packages = Vec::new();
        for target in dispatcher.targets() {
            let folder = &folders[target.handle];
            let manifest = match manifests.entry(folder) {
                Slot::Occupied(known) => known.into_mut(),
                Slot::Vacant(slot) => slot.insert(Manifest::read(folder)?),
            };
            let package = match loaded.entry((folder, target.entry.as_str())) {
                Slot::Occupied(known) => known.into_mut(),
                Slot::Vacant(slot) => {
                    let entry = manifest.entry(folder, &target.entry)?;
                    slot.insert(Arc::new(Package::of(folder, manifest, entry, options)?))
                }
            };
            packages.push(package.clone());
        }
        let mut compiled = Vec::new();
        for (handle, folder) in handles.iter().zip(folders) {
            for segment in &handle.segments {
                if let Some(manifest) = manifests.get(folder) {
                    compiled.push(Compiled { entry: manifest.entry(folder, &segment.entry)?, range: segment.range });
                }
            }
        }
        let places = Places::new(&compiled);
        let bad = |problem: String| Error::Artifact { path: folders[0].clone(), problem };
        let size = dispatcher.argument().map(|argument| places.size(argument, size).map_err(bad)).transpose()?;
        let values = dispatcher.places().iter().map(|place| places.value(*place, handles).map_err(bad));
        let values = values.collect::<Result<_>>()?;
        Ok(Self { packages, size, values, device: options.device, dispatcher })
    }

    /// One call; as [`Package::forward`], with the package for these sizes.
    ///
    /// # Errors
    /// [`Error::Client`] with the reason `SIZE_NOT_COVERED` or `GUARD_FAILED` where nothing was compiled for them; else as
    /// [`Package::forward`].
    pub fn forward<T: Borrow<Tensor>>(&self, inputs: &[T]) -> Result<Vec<Tensor>> {
        let tensors = Tensors::of(inputs);
        let described = described(&tensors)?;
        let target = self.target(&described)?;
        self.packages[target].run(&tensors, &described)
    }

    /// What runs a call with these inputs.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn package_for<T: Borrow<Tensor>>(&self, inputs: &[T]) -> Result<&Package> {
        let tensors = Tensors::of(inputs);
        let described = described(&tensors)?;
        Ok(&self.packages[self.target(&described)?])
    }

    /// Where it is loaded.
    pub fn device(&self) -> Device {
        self.device
    }

    fn target(&self, described: &[Described<'_>]) -> Result<usize> {
        let Some(size) = self.size else { return Ok(self.dispatcher.lookup(1)?) };
        let size = value_at(size, described)?;
        if self.values.is_empty() {
            return Ok(self.dispatcher.lookup(size)?);
        }
        let values = self.values.iter().map(|place| value_at(*place, described)).collect::<Result<Vec<_>>>()?;
        Ok(self.dispatcher.lookup_with(size, &values)?)
    }
}

fn value_at(place: Place, described: &[Described<'_>]) -> Result<i64> {
    let Some(tensor) = described.get(place.tensor) else {
        return Err(InputError::Number { given: described.len(), expected: place.n_tensors }.into());
    };
    tensor.sizes().get(place.dimension).copied().ok_or_else(|| {
        let expected = format!("at least {}: its size tells what runs the call", place.dimension + 1);
        InputError::Dimensions { at: place.position(), given: tensor.sizes().len(), expected }.into()
    })
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Piece").field("packages", &self.packages).finish_non_exhaustive()
    }
}
