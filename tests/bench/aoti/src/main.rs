//! What calls of a package cost through Rust: load time, one thread, several threads. One JSON object on stdout; `tests/bench/aoti.py` has the other
//! side, the same package and the same piece through Python, measured in the same way.
//!
//! Two times of a call: `host_us`, until it returns, in rounds that begin with an idle GPU and are short enough that no launch waits for room in its
//! queue; and `call_us`, with what it launched, in rounds that end when the GPU is idle. On a CPU they are the same.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Barrier,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use piecewised_graph::{Value, evaluate, model::SymExpr};
use piecewised_tch::{LoadOptions, Package, initialise, kind, synchronise};
use serde_json::{Value as Json, json};
use tch::{Device, Kind, Tensor};

/// Rounds of which the median is taken.
const N_ROUNDS: usize = 31;
/// Calls of a round that measures the host: few kernels in all.
const N_HOST_CALLS: usize = 20;

#[derive(Debug, Parser)]
struct Arguments {
    /// A materialised artifact.
    folder: PathBuf,
    /// Its entry.
    #[arg(long, default_value = "e0")]
    entry: String,
    /// Values of its one symbol.
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<i64>,
    /// On the GPU of that index.
    #[arg(long)]
    cuda: Option<usize>,
    /// Threads that call at once, after the one.
    #[arg(long, default_value_t = 8)]
    threads: usize,
    /// Runners of the package; as the client chooses by default.
    #[arg(long)]
    runners: Option<usize>,
    /// About how long each measurement takes.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
}

#[expect(clippy::print_stdout, reason = "its output")]
fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = arguments.cuda.map_or(Device::Cpu, Device::Cuda);
    initialise(device)?;
    let options = LoadOptions { n_runners: arguments.runners, ..LoadOptions::new(device) };
    let load = || -> Result<(Package, f64)> {
        let started = Instant::now();
        let package = Package::load(&arguments.folder, &arguments.entry, &options)?;
        Ok((package, started.elapsed().as_secs_f64() * 1e3))
    };
    // The first load brings libtorch's own first time along.
    let (package, first_load_ms) = load()?;
    let loads = (0..5).map(|_| load().map(|(_, ms)| ms)).collect::<Result<Vec<_>>>()?;
    let mut by_size = BTreeMap::new();
    for &size in &arguments.sizes {
        let inputs = inputs(&arguments.folder, &arguments.entry, size, device)?;
        let one = one_thread(&package, &inputs, arguments.seconds)?;
        let many = many_threads(&package, &arguments, size)?;
        by_size.insert(size.to_string(), json!({"host_us": one.0, "call_us": one.1, "threads_calls_per_s": many}));
    }
    let report = json!({"first_load_ms": first_load_ms, "load_ms": median(loads), "sizes": by_size});
    println!("{report}");
    Ok(())
}

/// `host_us` and `call_us`.
fn one_thread(package: &Package, inputs: &[Tensor], seconds: f64) -> Result<(f64, f64)> {
    let device = package.device();
    let round = |n: usize| -> Result<(f64, f64)> {
        synchronise(device)?;
        let started = Instant::now();
        for _ in 0..n {
            package.forward(inputs)?;
        }
        let host = started.elapsed().as_secs_f64();
        synchronise(device)?;
        Ok((host / n as f64 * 1e6, started.elapsed().as_secs_f64() / n as f64 * 1e6))
    };
    for _ in 0..3 {
        round(N_HOST_CALLS)?;
    }
    let host = (0..N_ROUNDS).map(|_| Ok(round(N_HOST_CALLS)?.0)).collect::<Result<Vec<_>>>()?;
    let one_s = round(N_HOST_CALLS)?.1 / 1e6;
    let n = (seconds / N_ROUNDS as f64 / one_s).clamp(1.0, 10_000.0) as usize;
    let call = (0..N_ROUNDS).map(|_| Ok(round(n)?.1)).collect::<Result<Vec<_>>>()?;
    Ok((median(host), median(call)))
}

/// Calls a second of all threads together, each with inputs of its own.
fn many_threads(package: &Package, arguments: &Arguments, size: i64) -> Result<f64> {
    let barrier = Barrier::new(arguments.threads);
    let counts: Vec<Result<f64>> = thread::scope(|scope| {
        let start = || {
            scope.spawn(|| {
                let inputs = inputs(&arguments.folder, &arguments.entry, size, package.device());
                barrier.wait();
                let (inputs, started) = (inputs?, Instant::now());
                let mut n_calls = 0u32;
                while started.elapsed().as_secs_f64() < arguments.seconds {
                    for _ in 0..N_HOST_CALLS {
                        package.forward(&inputs)?;
                        n_calls += 1;
                    }
                    synchronise(package.device())?;
                }
                Ok(f64::from(n_calls) / started.elapsed().as_secs_f64())
            })
        };
        let threads: Vec<_> = (0..arguments.threads).map(|_| start()).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|result| result.unwrap_or_else(|_| bail!("a thread panicked"))).collect()
    });
    counts.into_iter().sum()
}

/// Random tensors for a call.
fn inputs(folder: &Path, entry: &str, size: i64, device: Device) -> Result<Vec<Tensor>> {
    let manifest: Json = serde_json::from_slice(&fs::read(folder.join("manifest.json"))?)?;
    let entries = manifest["entries"].as_array().context("a manifest without entries")?;
    let entry = entries.iter().find(|one| one["name"] == entry).context("no such entry")?;
    let inputs = entry["inputs"].as_array().context("the entry is no package")?;
    inputs.iter().map(|input| random(input, size, device)).collect()
}

fn random(input: &Json, size: i64, device: Device) -> Result<Tensor> {
    let sizes: Vec<SymExpr> = serde_json::from_value(input["sizes"].clone())?;
    let sizes = sizes.iter().map(|expr| match evaluate(expr, &|_| Some(size))? {
        Value::Int(value) => Ok(value),
        other => bail!("a size is {other:?}"),
    });
    let sizes = sizes.collect::<Result<Vec<_>>>()?;
    let on = if input["device"] == "cuda" { device } else { Device::Cpu };
    let dtype = input["dtype"].as_str().context("an input without a dtype")?;
    match kind(dtype).with_context(|| format!("no tch dtype for {dtype}"))? {
        // Indices: 0 is in every table.
        Kind::Int64 => Ok(Tensor::f_zeros(&sizes, (Kind::Int64, on))?),
        kind => Ok(Tensor::f_randn(&sizes, (Kind::Float, on))?.f_to_kind(kind)?),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
