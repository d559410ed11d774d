//! One request: load, call, record, measure.

use std::{collections::BTreeMap, fs, path::Path, time::Instant};

use anyhow::{Context as _, Result};
use piecewised_tch::{LoadOptions, Package, libtorch_version, synchronise};
use tch::{Device, Tensor};

use crate::{
    exchange::{read, write},
    request::{Answer, Case, CaseResult, Request},
    timing::median_us,
};

/// Does what the folder's `request.json` asks, and leaves `result.json` there.
pub(crate) fn run(folder: &Path) -> Result<()> {
    let answer = tried(folder);
    let written = match &answer {
        Ok(answer) => serde_json::to_vec(answer)?,
        Err(error) => serde_json::to_vec(&Answer::Failed { error: format!("{error:#}") })?,
    };
    let path = folder.join("result.json");
    fs::write(&path, written).with_context(|| format!("writing {}", path.display()))?;
    answer.map(|_| ())
}

fn tried(folder: &Path) -> Result<Answer> {
    let path = folder.join("request.json");
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let request: Request = serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
    let device = device(&request)?;
    let started = Instant::now();
    let mut packages: BTreeMap<&str, Package> = BTreeMap::new();
    for case in &request.cases {
        if !packages.contains_key(case.entry.as_str()) {
            // One call at a time is all that happens here.
            let options = LoadOptions { n_runners: Some(1), ..LoadOptions::new(device) };
            packages.insert(&case.entry, Package::load(&request.artifact, &case.entry, &options)?);
        }
    }
    let load_s = started.elapsed().as_secs_f64();
    let mut cases = Vec::new();
    for (n, case) in request.cases.iter().enumerate() {
        let package = &packages[case.entry.as_str()];
        let done =
            call(folder, &request, n, case, package).with_context(|| format!("case {n}, entry {}", case.entry))?;
        cases.push(done);
    }
    Ok(Answer::Done { cases, libtorch: libtorch_version().into(), load_s })
}

fn call(folder: &Path, request: &Request, n: usize, case: &Case, package: &Package) -> Result<CaseResult> {
    let inputs = case.inputs.iter().map(|given| read(folder, given, package.device())).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<&Tensor> = inputs.iter().map(|input| &input.tensor).collect();
    let returned = package.forward_flat(&tensors)?;
    // What failed on a GPU is known only now.
    synchronise(package.device())?;
    let outputs = returned.iter().enumerate();
    let outputs = outputs.map(|(i, tensor)| write(folder, &format!("case{n}.out{i}.bin"), tensor));
    let outputs = outputs.collect::<Result<_>>()?;
    let after = inputs.iter().zip(&case.inputs).enumerate();
    let after = after.map(|(i, (input, given))| input.after(folder, &format!("case{n}.in{i}.bin"), given));
    let after = after.collect::<Result<_>>()?;
    let median_us = case.measure.then(|| median_us(package, &tensors, request.measure_s)).transpose()?;
    Ok(CaseResult { outputs, inputs: after, median_us })
}

/// The device that the artifact says it is for.
fn device(request: &Request) -> Result<Device> {
    let path = request.artifact.join("manifest.json");
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let manifest: serde_json::Value =
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
    Ok(if manifest["device"]["type"] == "cuda" { Device::Cuda(request.device_index) } else { Device::Cpu })
}
