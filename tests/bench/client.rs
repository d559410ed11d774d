//! Measures the daemon over its socket: hits and fetches. Driven by bench.py; prints one JSON object.
//!
//! Usage: `bench-client ENDPOINT GRAPH.json N_HITS N_FETCHES`, where GRAPH.json is a graph in the project's JSON form whose plan
//! [1, 16] is in the store already.
#![allow(clippy::print_stdout, reason = "its result is what it prints")]

use std::{
    env, fs,
    time::{Duration, Instant},
};

use piecewised_client::{Cache, Client, ClientOptions, CompileRequest, Endpoint, EventKind, Source};
use piecewised_graph::{
    Handle,
    request::{ArtifactFormat, CompileOptions},
};
use piecewised_plan::{Plan, Range};
use tokio_stream::StreamExt as _;

type Error = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [endpoint, graph, n_hits, n_fetches] = arguments.as_slice() else {
        return Err("usage: bench-client ENDPOINT GRAPH.json N_HITS N_FETCHES".into());
    };
    let endpoint: Endpoint = endpoint.parse()?;
    let mut options = CompileOptions::default();
    options.torch.num_threads = 1;
    let graph = serde_json::from_str(&fs::read_to_string(graph)?)?;
    let plan = Plan::new(&[Range::new(1, 16)?], &[])?;
    let request = CompileRequest { options, ..CompileRequest::new(graph, plan, ArtifactFormat::Inductor) };
    let client = Client::connect(endpoint, ClientOptions::default()).await?;
    // The first may compile; what is measured is what follows.
    let handle = compile(&client, request.clone()).await?.0;

    let mut hits = Vec::new();
    for _ in 0..n_hits.parse()? {
        let started = Instant::now();
        let (_, source) = compile(&client, request.clone()).await?;
        hits.push(started.elapsed());
        if source != Source::Store {
            return Err("a hit was none".into());
        }
    }

    let mut fetches = Vec::new();
    for _ in 0..n_fetches.parse()? {
        // Each into an empty cache: transferred, verified, unpacked.
        let folder = tempfile::tempdir()?;
        let cache = Cache::open(&folder.path().join("cache"))?;
        let started = Instant::now();
        client.fetch(&handle, &cache).await?;
        fetches.push(started.elapsed());
    }
    println!(
        "{}",
        serde_json::json!({
            "hit_us": percentiles(&mut hits),
            "fetch_us": percentiles(&mut fetches),
            "artifact_bytes": handle.size_bytes,
            "request_nodes": request.graph.nodes.len(),
        })
    );
    Ok(())
}

async fn compile(client: &Client, request: CompileRequest) -> Result<(Handle, Source), Error> {
    let mut stream = client.compile(request).await?;
    let mut found = None;
    while let Some(event) = stream.next().await {
        match event?.kind {
            EventKind::Ready { handle, source } => found = Some((*handle, source)),
            EventKind::Failed { reason, message, .. } => return Err(format!("{reason}: {message}").into()),
            _ => {}
        }
    }
    found.ok_or_else(|| "there was no handle".into())
}

fn percentiles(times: &mut [Duration]) -> serde_json::Value {
    times.sort_unstable();
    let at = |share: f64| {
        let position = (times.len() as f64 * share) as usize;
        times.get(position.min(times.len().saturating_sub(1))).map(|time| time.as_secs_f64() * 1e6)
    };
    serde_json::json!({ "n": times.len(), "p50": at(0.5), "p99": at(0.99) })
}
