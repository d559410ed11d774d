//! `piecewised compile`: has a running daemon compile one graph file; and what `piecewised warm` does with each of its files.

use std::{
    io::{self, Write},
    path::Path,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use piecewised_client::{Client, ClientError, CompileRequest, EventKind, Source};
use piecewised_graph::Digest;
use piecewised_plan::Range;
use serde::Serialize;
use tokio_stream::StreamExt as _;

use super::{Place, graph_file::Changes, megabytes, one_line, range, table, write_table};
use crate::{exit::Exit, surroundings::Surroundings};

/// What became of a request.
#[derive(Debug, Default, Serialize)]
pub(super) struct Compiled {
    /// What the piece is called; empty: nothing.
    pub(super) label: String,
    /// One for each entry of the plan, in its order.
    pub(super) entries: Vec<Entry>,
    pub(super) n_compiled: u32,
    pub(super) n_joined: u32,
    pub(super) n_from_store: u32,
    pub(super) n_failed: u32,
    pub(super) elapsed_s: f64,
}

/// What became of one entry of the plan.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    /// `None`: no symbolic input.
    pub(super) range: Option<Range>,
    pub(super) key: Option<Digest>,
    #[serde(flatten)]
    pub(super) result: Outcome,
}

#[derive(Debug, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub(super) enum Outcome {
    Ready { digest: Digest, size_bytes: u64, source: Source, compile_s: f64 },
    Failed { reason: String, message: String, remembered: bool },
}

pub(super) async fn run(
    place: &Place,
    surroundings: &Surroundings,
    file: &Path,
    changes: &Changes,
) -> anyhow::Result<Exit> {
    let client = place.connect(surroundings).await?;
    let request = changes.request(&client, file).await?;
    let bar = bar(request.plan.entries().len());
    let compiled = compile(&client, request, |step| match step {
        Step::Phase(phase) => bar.set_message(one_line(&phase)),
        Step::Ended => bar.inc(1),
    })
    .await;
    bar.finish_and_clear();
    let compiled = compiled?;
    place.write(&compiled, say)?;
    Ok(if compiled.n_failed == 0 { Exit::Success } else { Exit::NotCompiled })
}

/// What is to be seen of a compile while it goes on.
pub(super) enum Step {
    /// A job entered this phase.
    Phase(String),
    /// An entry has its end.
    Ended,
}

/// On the terminal that stderr is; nothing is drawn where it is none.
pub(super) fn bar(n: usize) -> ProgressBar {
    let bar = ProgressBar::new(n as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Compiles, to the end of the request.
pub(super) async fn compile(
    client: &Client,
    request: CompileRequest,
    mut on_step: impl FnMut(Step),
) -> Result<Compiled, ClientError> {
    let label = request.label.clone();
    let mut events = client.compile(request).await?;
    let mut entries: Vec<Option<Entry>> = events.entries().iter().map(|_| None).collect();
    let mut compiled = Compiled { label, ..Compiled::default() };
    while let Some(event) = events.next().await {
        let event = event?;
        let entry = match event.kind {
            EventKind::Started { .. } => {
                on_step(Step::Phase("started".to_owned()));
                continue;
            }
            EventKind::Progress { phase, .. } => {
                on_step(Step::Phase(phase));
                continue;
            }
            EventKind::Completed(summary) => {
                compiled.n_compiled = summary.n_compiled;
                compiled.n_joined = summary.n_joined;
                compiled.n_from_store = summary.n_from_store;
                compiled.n_failed = summary.n_failed;
                compiled.elapsed_s = summary.elapsed_s;
                continue;
            }
            EventKind::Queued { .. } | EventKind::Joined { .. } => continue,
            EventKind::Ready { handle, source } => Entry {
                range: event.range,
                key: Some(handle.key),
                result: Outcome::Ready {
                    digest: handle.digest,
                    size_bytes: handle.size_bytes,
                    source,
                    compile_s: handle.timings.total_s,
                },
            },
            EventKind::Failed { key, reason, message, remembered, .. } => {
                Entry { range: event.range, key, result: Outcome::Failed { reason, message, remembered } }
            }
        };
        on_step(Step::Ended);
        if let Some(place) = entries.get_mut(event.index) {
            *place = Some(entry);
        }
    }
    compiled.entries = entries.into_iter().flatten().collect();
    Ok(compiled)
}

fn say(out: &mut dyn Write, compiled: &Compiled) -> io::Result<()> {
    let mut rows = table(["RANGE", "KEY", "RESULT", "SIZE", "COMPILE"]);
    for Entry { range: of, key, result } in &compiled.entries {
        let key = key.map_or_else(|| "-".to_owned(), |key| key.short());
        let [result, size, compile] = match result {
            Outcome::Ready { size_bytes, source, compile_s, .. } => {
                let source = match source {
                    Source::Store => "from the store",
                    Source::Compiled => "compiled",
                    Source::Joined => "joined",
                };
                [source.to_owned(), megabytes(*size_bytes), format!("{compile_s:.1} s")]
            }
            Outcome::Failed { reason, .. } => [one_line(reason), "-".to_owned(), "-".to_owned()],
        };
        rows.add_row([range(*of), key, result, size, compile]);
    }
    write_table(out, &rows)?;
    for (of, failure) in compiled.failures() {
        writeln!(out, "\n{of}: {failure}")?;
    }
    Ok(())
}

impl Compiled {
    /// What failed: the range, and why.
    pub(super) fn failures(&self) -> impl Iterator<Item = (String, String)> {
        self.entries.iter().filter_map(|entry| match &entry.result {
            Outcome::Failed { reason, message, remembered } => {
                let again =
                    if *remembered { " (remembered; `piecewised clear-failures` has it tried again)" } else { "" };
                let message = message.lines().map(one_line).collect::<Vec<_>>().join("\n  ");
                Some((range(entry.range), format!("{}{again}: {message}", one_line(reason))))
            }
            Outcome::Ready { .. } => None,
        })
    }
}
