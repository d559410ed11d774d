//! A small inference worker without Python: serves what `capture.py` beside this file has captured, and prints its throughput.
//!
//! The daemon compiles the pieces, all at once; this process loads and calls them, and runs attention between them with tch's own kernels, as an
//! engine would with its own. `make example-tch` runs all of it.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use piecewised_client::{ClientOptions, Endpoint};
use piecewised_tch::{Piece, Worker, WorkerOptions, synchronise};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

/// Serves a captured Llama.
#[derive(Debug, Parser)]
struct Arguments {
    /// What capture.py wrote.
    folder: PathBuf,
    /// Where the daemon listens [default: as the client finds it].
    #[arg(long)]
    endpoint: Option<String>,
    /// Where artifacts are kept [default: ~/.cache/piecewised].
    #[arg(long)]
    cache_dir: Option<PathBuf>,
    /// How many tokens a prompt has, for each measurement.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64,256")]
    sizes: Vec<i64>,
    /// How long each measurement takes, in seconds.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

/// `sequence.json`: values have names, and each step makes some of others.
#[derive(Debug, Deserialize)]
struct Sequence {
    tokens: String,
    steps: Vec<Step>,
    outputs: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Step {
    /// The graph file of a compiled piece; absent: attention.
    piece: Option<PathBuf>,
    /// Attention's scale.
    attention: Option<f64>,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

struct Model {
    sequence: Sequence,
    /// By the steps; `None`: attention.
    pieces: Vec<Option<Piece>>,
    weights: HashMap<String, Tensor>,
}

impl Model {
    /// Asks the daemon for all pieces at once, and loads the weights.
    async fn load(worker: &Worker, folder: &Path) -> Result<Self> {
        let text = fs::read(folder.join("sequence.json")).context("sequence.json: run capture.py first")?;
        let sequence: Sequence = serde_json::from_slice(&text)?;
        let pieces = sequence.steps.iter().map(|step| async {
            let Some(file) = &step.piece else { return anyhow::Ok(None) };
            Ok(Some(worker.compile_file(folder.join(file), |_| ()).await?))
        });
        let n_steps = sequence.steps.len();
        let pieces = stream::iter(pieces).buffered(n_steps.max(1)).try_collect().await?;
        let weights = Tensor::read_safetensors(folder.join("weights.safetensors"))?.into_iter().collect();
        Ok(Self { sequence, pieces, weights })
    }

    /// Token ids `[1, n]` to logits `[1, n, vocabulary]`.
    fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let mut values: HashMap<&str, Tensor> = HashMap::new();
        values.insert(&self.sequence.tokens, tokens.shallow_clone());
        for (step, piece) in self.sequence.steps.iter().zip(&self.pieces) {
            let value = |name: &String| values.get(name.as_str()).or_else(|| self.weights.get(name));
            let inputs: Option<Vec<&Tensor>> = step.inputs.iter().map(value).collect();
            let inputs = inputs.context("sequence.json names a value that no step makes")?;
            let outputs = match (piece, step.attention) {
                (Some(piece), _) => piece.forward(&inputs)?,
                (None, scale) => vec![attention(&inputs, scale)?],
            };
            ensure!(outputs.len() == step.outputs.len(), "a piece returned {} values", outputs.len());
            values.extend(step.outputs.iter().map(String::as_str).zip(outputs));
        }
        let logits = self.sequence.outputs.first().and_then(|name| values.remove(name.as_str()));
        logits.context("sequence.json names no output")
    }
}

fn attention(inputs: &[&Tensor], scale: Option<f64>) -> Result<Tensor> {
    let [q, k, v] = inputs else { anyhow::bail!("attention takes q, k and v") };
    let attended = Tensor::f_scaled_dot_product_attention(q, k, v, None::<Tensor>, 0.0, true, scale, true)?;
    // The next piece takes it with the strides that the operator's result has in the graph: those of q (`empty_like`).
    let mut like_q = q.f_empty_like()?;
    like_q.f_copy_(&attended)?;
    Ok(like_q)
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let _no_grad = tch::no_grad_guard();
    let uid = rustix::process::getuid().as_raw();
    let endpoint = Endpoint::resolve(arguments.endpoint.as_deref(), |name| std::env::var(name).ok(), uid)?;
    let device = Device::Cpu;
    let options = WorkerOptions {
        client: ClientOptions { ready_timeout: Duration::from_secs(120), ..ClientOptions::default() },
        cache_dir: arguments.cache_dir.clone(),
        ..WorkerOptions::new(device)
    };
    let worker = Worker::connect(endpoint, options).await?;
    let started = Instant::now();
    let model = Model::load(&worker, &arguments.folder).await?;
    println!("{} pieces ready after {:.1} s", model.pieces.iter().flatten().count(), started.elapsed().as_secs_f64());

    compare(&model, &arguments.folder)?;
    println!("{:>8} {:>12} {:>12}", "tokens", "ms a prompt", "tokens/s");
    for n in arguments.sizes {
        let tokens = Tensor::randint(2048, [1, n], (Kind::Int64, device));
        let _warm = model.forward(&tokens)?;
        synchronise(device)?;
        let (started, mut n_calls) = (Instant::now(), 0);
        while started.elapsed().as_secs_f64() < arguments.seconds {
            let _logits = model.forward(&tokens)?;
            n_calls += 1;
        }
        synchronise(device)?;
        let seconds = started.elapsed().as_secs_f64() / f64::from(n_calls);
        println!("{n:>8} {:>12.3} {:>12.0}", seconds * 1e3, n as f64 / seconds);
    }
    Ok(())
}

/// Compares with what eager gave when the model was captured.
#[expect(clippy::print_stdout, reason = "an example")]
fn compare(model: &Model, folder: &Path) -> Result<()> {
    let expected: HashMap<String, Tensor> =
        Tensor::read_safetensors(folder.join("expected.safetensors"))?.into_iter().collect();
    for (name, tokens) in expected.iter().filter(|(name, _)| name.starts_with("tokens")) {
        let logits = &expected[&name.replace("tokens", "logits")];
        let off = (model.forward(tokens)? - logits).abs().max().double_value(&[]);
        let largest = logits.abs().max().double_value(&[]);
        ensure!(off <= 1e-4 * largest, "{name}: the logits are off by {off}, of {largest}");
    }
    println!("the logits of {} prompts are eager's", expected.len() / 2);
    Ok(())
}
