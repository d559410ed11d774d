//! What an executor is asked, and what it answers.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use piecewised_graph::{
    Frontend, GuardSymbol, Latency, Segment, Timings, TuningReport, Verification,
    request::{ArtifactFormat, CompileOptions, DeviceKind},
};
use piecewised_plan::Range;
use serde::Deserialize;

/// One graph, for one range.
#[derive(Debug, Clone)]
pub struct CompileJob {
    /// Names the job in logs and on the wire.
    pub id: String,
    /// The canonical graph as JSON text, sent as it is.
    pub graph: Arc<str>,
    /// The sizes to compile for; none where the graph has no symbolic input.
    pub range: Option<Range>,
    /// The position of the placeholder whose value is dispatched on.
    pub dispatch_argument: Option<u32>,
    /// The size that heuristics should think of.
    pub hint: Option<i64>,
    /// What the caller chose.
    pub options: CompileOptions,
    /// How the artifact is packed.
    pub format: ArtifactFormat,
    /// What the code runs on.
    pub device: DeviceKind,
    /// Whether the artifact is run against eager before it is given back.
    pub verify: bool,
    /// What takes part in the compile, and its payload.
    pub frontend: Option<(Frontend, Bytes)>,
    /// From the request to the last byte of the artifact, without what is spent waiting for leases; the config's is the longest there is.
    pub deadline: Duration,
}

/// A finished compile: what an executor says of it, and the artifact that comes with that.
#[derive(Debug, Clone, Deserialize)]
pub struct CompileOutcome {
    /// The artifact's container, as docs/artifact.md has it.
    #[serde(skip)]
    pub artifact: Bytes,
    /// Its parts and the sizes each was proven for: at least one, inside the job's range, none overlapping another.
    pub segments: Vec<Segment>,
    /// Where the time went.
    pub timings: Timings,
    /// Whether the compiled function returns a tuple.
    pub returns_tuple: bool,
    /// How many arguments it takes.
    pub n_arguments: u32,
    /// What gives the symbols of the segments' guards their values.
    #[serde(default)]
    pub guard_symbols: Vec<GuardSymbol>,
    /// What came of running it against eager.
    #[serde(default)]
    pub verification: Verification,
    /// What was tried and measured to choose the code.
    #[serde(default)]
    pub tuning: TuningReport,
    /// What a call takes on the device.
    #[serde(default)]
    pub latencies: Vec<Latency>,
    /// The most of the machine's memory that the executor's process group was seen to hold during the job, shared pages counted in
    /// shares. Measured by the daemon.
    #[serde(skip)]
    pub peak_memory_bytes: u64,
}
