//! Measures the daemon with many calls in flight on one connection, beside a redis-server that holds the same values. Driven by
//! service.py; prints one JSON object.
//!
//! Usage: `bench-load SOCKET GRAPH.json REDIS_SOCKET N_CALLS N_IN_FLIGHT ROUNDS`, where GRAPH.json is a graph in the project's JSON form
//! whose plan [1, 16] is in the store already. REDIS_SOCKET may be "-".
//!
//! * `hit`: Compile of a stored key, to the end of its stream;
//! * `whole`: the same, and every byte of the artifact (FetchArtifact);
//! * `fetch`: the bytes alone;
//! * `redis`: GET of a value of the artifact's bytes.
//!
//! In turn, round by round, so that all see the same machine.
#![allow(clippy::print_stdout, reason = "its result is what it prints")]

use std::{
    env, fs,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use piecewised_graph::request::{ArtifactFormat, CompileOptions};
use piecewised_plan::{Plan, Range};
use piecewised_proto::v1::{self, client::compile_service_client::CompileServiceClient, compile_event::Event};
use piecewised_wire as wire;
use redis::AsyncCommands as _;
use tonic::transport::{Channel, Endpoint};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Service = CompileServiceClient<Channel>;

const KEY: &str = "artifact";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [socket, graph, redis, n_calls, n_in_flight, n_rounds] = arguments.as_slice() else {
        return Err("usage: bench-load SOCKET GRAPH.json REDIS_SOCKET N_CALLS N_IN_FLIGHT ROUNDS".into());
    };
    let (n_calls, n_in_flight, n_rounds): (usize, usize, usize) =
        (n_calls.parse()?, n_in_flight.parse()?, n_rounds.parse()?);
    let endpoint = Endpoint::from_shared(format!("unix:{socket}"))?
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20);
    let service = CompileServiceClient::new(endpoint.connect().await?).max_decoding_message_size(usize::MAX);
    let request = Arc::new(request(&fs::read_to_string(graph)?)?);
    let handle = hit(service.clone(), Arc::clone(&request)).await?;
    let artifact = fetch(service.clone(), handle.digest.clone()).await?;
    let cache = match redis.as_str() {
        "-" => None,
        path => {
            let client = redis::Client::open(format!("unix://{path}"))?;
            let mut connection = client.get_multiplexed_async_connection().await?;
            connection.set::<_, _, ()>(KEY, &artifact).await?;
            Some(connection)
        }
    };

    let [mut hits, mut wholes, mut fetches, mut gets] = <[Samples; 4]>::default();
    for _ in 0..n_rounds {
        let call = || hit(service.clone(), Arc::clone(&request));
        hits.take(n_calls, n_in_flight, call).await?;
        let call = || {
            let (service, request) = (service.clone(), Arc::clone(&request));
            async move {
                let handle = hit(service.clone(), request).await?;
                fetch(service, handle.digest).await
            }
        };
        wholes.take(n_calls, n_in_flight, call).await?;
        fetches.take(n_calls, n_in_flight, || fetch(service.clone(), handle.digest.clone())).await?;
        if let Some(cache) = &cache {
            let call = || {
                let mut cache = cache.clone();
                async move {
                    let value: Vec<u8> = cache.get(KEY).await?;
                    Ok::<_, Error>(value)
                }
            };
            gets.take(n_calls, n_in_flight, call).await?;
        }
    }
    println!(
        "{}",
        serde_json::json!({
            "artifact_bytes": artifact.len(),
            "n_in_flight": n_in_flight,
            "hit": hits.summary(0),
            "whole": wholes.summary(artifact.len()),
            "fetch": fetches.summary(artifact.len()),
            "redis": gets.summary(artifact.len()),
        })
    );
    Ok(())
}

fn request(graph: &str) -> Result<v1::CompileRequest, Error> {
    let graph: piecewised_graph::model::Graph = serde_json::from_str(graph)?;
    let mut options = CompileOptions::default();
    options.torch.num_threads = 1;
    Ok(v1::CompileRequest {
        graph: Some(wire::graph_to_proto(&graph)),
        plan: Some(wire::plan_to_proto(&Plan::new(&[Range::new(1, 16)?], &[])?)),
        options: Some(wire::options_to_proto(&options, ArtifactFormat::Inductor, &wire::Delivery::default())),
        ..v1::CompileRequest::default()
    })
}

async fn hit(mut service: Service, request: Arc<v1::CompileRequest>) -> Result<v1::Handle, Error> {
    let mut events = service.compile(v1::CompileRequest::clone(&request)).await?.into_inner();
    let mut found = None;
    while let Some(event) = events.message().await? {
        if let Some(Event::Ready(ready)) = event.event {
            found = ready.handle;
        }
    }
    found.ok_or_else(|| "there was no handle".into())
}

async fn fetch(mut service: Service, digest: Vec<u8>) -> Result<Vec<u8>, Error> {
    let mut chunks = service.fetch_artifact(v1::FetchArtifactRequest { digest, offset: 0 }).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        bytes.reserve(usize::try_from(chunk.total_bytes)?.saturating_sub(bytes.len()));
        bytes.extend_from_slice(&chunk.data);
    }
    Ok(bytes)
}

#[derive(Default)]
struct Samples {
    latencies: Vec<Duration>,
    /// Calls a second, for each round.
    rates: Vec<f64>,
}

impl Samples {
    async fn take<T, F: Future<Output = Result<T, Error>>>(
        &mut self,
        n_calls: usize,
        n_in_flight: usize,
        call: impl Fn() -> F,
    ) -> Result<(), Error> {
        let timed = |_| {
            let call = call();
            async move {
                let started = Instant::now();
                call.await.map(|_| started.elapsed())
            }
        };
        let started = Instant::now();
        let mut calls = stream::iter(0..n_calls).map(timed).buffer_unordered(n_in_flight);
        while let Some(latency) = calls.next().await {
            self.latencies.push(latency?);
        }
        self.rates.push(n_calls as f64 / started.elapsed().as_secs_f64());
        Ok(())
    }

    fn summary(&mut self, n_bytes: usize) -> serde_json::Value {
        self.latencies.sort_unstable();
        self.rates.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| {
            let position = (self.latencies.len() as f64 * share) as usize;
            self.latencies.get(position).map(|time| time.as_secs_f64() * 1e6)
        };
        let rate = self.rates.get(self.rates.len() / 2).copied();
        serde_json::json!({
            "n": self.latencies.len(),
            "p50_us": at(0.5),
            "p99_us": at(0.99),
            "calls_per_s": rate,
            "megabytes_per_s": rate.map(|rate| rate * n_bytes as f64 / 1e6),
        })
    }
}
