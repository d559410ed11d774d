//! Tensors from and to files.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use piecewised_tch::{dtype, kind};
use tch::{Device, Kind, Tensor};

use crate::request;

/// An input, and what it was made from, to see whether it changed.
pub(crate) struct Input {
    pub(crate) tensor: Tensor,
    /// The memory that the tensor looks into, as one row.
    memory: Tensor,
    before: Tensor,
}

/// Reads a tensor of the request, onto its device.
pub(crate) fn read(folder: &Path, given: &request::Tensor, device: Device) -> Result<Input> {
    let kind = kind(&given.dtype).with_context(|| format!("tch has no dtype {}", given.dtype))?;
    ensure!(given.sizes.len() == given.strides.len(), "{} has other sizes than strides", given.file);
    let n_elements = extent(&given.sizes, &given.strides);
    let bytes = fs::read(folder.join(&given.file)).with_context(|| format!("reading {}", given.file))?;
    let expected = n_elements as usize * kind.elt_size_in_bytes();
    ensure!(bytes.len() == expected, "{} has {} bytes, and its tensor takes {expected}", given.file, bytes.len());
    let before = Tensor::f_from_data_size(&bytes, &[n_elements], kind)?;
    let on = if given.device == "cuda" { device } else { Device::Cpu };
    // A copy of its own: what is called may change it.
    let memory = Tensor::f_from_data_size(&bytes, &[n_elements], kind)?.f_to_device(on)?;
    let tensor = memory.f_as_strided(&given.sizes, &given.strides, 0)?;
    Ok(Input { tensor, memory, before })
}

impl Input {
    /// The input after a call.
    pub(crate) fn after(&self, folder: &Path, file: &str, given: &request::Tensor) -> Result<request::Tensor> {
        let now = self.memory.f_to_device(Device::Cpu)?;
        // By bits, so that NaNs are equal to themselves.
        let is_same = now.f_view_dtype(Kind::Uint8)?.f_equal(&self.before.f_view_dtype(Kind::Uint8)?)?;
        if is_same && self.tensor.is_contiguous() {
            return Ok(given.clone());
        }
        write(folder, file, &self.tensor)
    }
}

/// Writes a tensor, contiguous.
pub(crate) fn write(folder: &Path, file: &str, tensor: &Tensor) -> Result<request::Tensor> {
    let device = if tensor.device() == Device::Cpu { "cpu" } else { "cuda" };
    let here = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let kind = here.f_kind()?;
    let mut bytes = vec![0; here.numel() * kind.elt_size_in_bytes()];
    here.f_copy_data_u8(&mut bytes, here.numel())?;
    fs::write(folder.join(file), bytes).with_context(|| format!("writing {file}"))?;
    Ok(request::Tensor {
        file: file.into(),
        dtype: dtype(kind).with_context(|| format!("{kind:?} has no name"))?.into(),
        sizes: here.size(),
        strides: here.stride(),
        device: device.into(),
    })
}

/// How many elements lie between the first and the last that a strided tensor reaches, both included.
fn extent(sizes: &[i64], strides: &[i64]) -> i64 {
    if sizes.contains(&0) {
        return 0;
    }
    1 + sizes.iter().zip(strides).map(|(size, stride)| (size - 1) * stride).sum::<i64>()
}
