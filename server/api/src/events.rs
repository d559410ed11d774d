//! From tickets to the event stream of one request.

use std::time::Instant;

use async_stream::stream;
use piecewised_graph::{Digest, Handle, unproven};
use piecewised_plan::Range;
use piecewised_proto::v1::{self, compile_event::Event};
use piecewised_scheduler::{CameFrom, JobFailure, JobState, Origin, Place, RunStatus, Scheduler, Ticket, Watcher};
use piecewised_wire as wire;
use tokio_stream::{Stream, StreamExt as _, StreamMap};
use tonic::Status;

use crate::status::ApiError;

/// The events of a request: first one for each entry of the plan, then progress and results as they come, last Completed.
///
/// For a piece of a program, each result is noted in its run, and the manifest of a program that is complete by now is durable
/// before the last Ready is sent: a caller that has all its handles and leaves without waiting for Completed leaves a manifest too.
///
/// `is_strict` is decided here, when a handle is delivered: it says what this caller takes, not what is compiled, so that strict and other
/// callers share jobs and the store.
pub(crate) fn events(
    tickets: Vec<(Option<Range>, Ticket)>,
    program: Option<(Place, Scheduler)>,
    is_strict: bool,
    started: Instant,
) -> impl Stream<Item = Result<v1::CompileEvent, Status>> + Send + 'static {
    stream! {
        let n_entries = u32::try_from(tickets.len()).unwrap_or(u32::MAX);
        let mut summary = v1::Completed::default();
        let mut end = None;
        let mut running = StreamMap::new();
        for (position, (range, ticket)) in tickets.into_iter().enumerate() {
            let index = u32::try_from(position).unwrap_or(u32::MAX);
            let at = move |event| v1::CompileEvent { index, range: range.map(wire::range_to_proto), event: Some(event) };
            match ticket {
                Ticket::Stored(handle) => {
                    let event = delivered(&handle, v1::Source::Store, is_strict);
                    count(&mut summary, &event);
                    if matches!(event, Event::Ready(_)) {
                        note(program.as_ref(), position, &handle, CameFrom::Store);
                    }
                    if summary.n_ready == n_entries {
                        end = Some(end_piece(program.as_ref()).await);
                    }
                    yield Ok(at(event));
                }
                Ticket::Running(watcher) => {
                    yield Ok(at(first(&watcher)));
                    let program = program.clone();
                    let noted = move |handle: &Handle, from| note(program.as_ref(), position, handle, from);
                    running.insert(index, Box::pin(follow(watcher, is_strict, noted).map(at)));
                }
            }
        }
        while let Some((_, event)) = running.next().await {
            if let Some(kind) = &event.event {
                count(&mut summary, kind);
            }
            if end.is_none() && summary.n_ready == n_entries {
                end = Some(end_piece(program.as_ref()).await);
            }
            yield Ok(event);
        }
        let end = match end {
            Some(end) => end,
            None => end_piece(program.as_ref()).await,
        };
        match end {
            Ok(status) => summary.program = status,
            // Every handle was sent; what failed is the program's completion, and that must not look like success.
            Err(error) => {
                yield Err(error.into());
                return;
            }
        }
        summary.elapsed_s = started.elapsed().as_secs_f64();
        yield Ok(v1::CompileEvent { index: 0, range: None, event: Some(Event::Completed(summary)) });
    }
}

async fn end_piece(program: Option<&(Place, Scheduler)>) -> Result<Option<v1::ProgramStatus>, ApiError> {
    match program {
        Some((place, scheduler)) => Ok(scheduler.end_piece(place).await?.map(program_status)),
        None => Ok(None),
    }
}

fn note(program: Option<&(Place, Scheduler)>, position: usize, handle: &Handle, from: CameFrom) {
    if let Some((place, scheduler)) = program {
        scheduler.entry_ready(place, position, handle.clone(), from);
    }
}

fn program_status((status, manifest): (RunStatus, Option<Digest>)) -> v1::ProgramStatus {
    v1::ProgramStatus {
        program: status.program.to_string(),
        n_pieces: status.n_pieces,
        n_pieces_ready: status.n_pieces_ready,
        n_distinct_pieces: status.n_distinct_pieces,
        is_complete: manifest.is_some(),
        manifest_digest: manifest.map(|digest| digest.0.to_vec()).unwrap_or_default(),
        elapsed_s: status.elapsed.as_secs_f64(),
        n_from_store: status.n_from_store,
        n_compiled: status.n_compiled,
        n_joined: status.n_joined,
        phases: status
            .phases
            .into_iter()
            .map(|timing| v1::PhaseTiming { phase: timing.phase, seconds: timing.seconds })
            .collect(),
    }
}

fn count(summary: &mut v1::Completed, event: &Event) {
    match event {
        Event::Ready(ready) => {
            summary.n_ready += 1;
            match ready.source() {
                v1::Source::Store => summary.n_from_store += 1,
                v1::Source::Joined => summary.n_joined += 1,
                v1::Source::Compiled | v1::Source::Unspecified => summary.n_compiled += 1,
            }
        }
        Event::Failed(_) => summary.n_failed += 1,
        _ => {}
    }
}

fn first(watcher: &Watcher) -> Event {
    let key = watcher.key().0.to_vec();
    let job_id = watcher.job_id().to_owned();
    match watcher.origin() {
        Origin::Queued { position } => {
            Event::Queued(v1::Queued { key, job_id, position: u32::try_from(*position).unwrap_or(u32::MAX) })
        }
        Origin::Joined { phase, age } => {
            Event::Joined(v1::Joined { key, job_id, phase: phase.clone(), age_s: age.as_secs_f64() })
        }
    }
}

/// What a job does from now on; ends after its outcome.
fn follow(
    mut watcher: Watcher,
    is_strict: bool,
    noted: impl Fn(&Handle, CameFrom) + Send,
) -> impl Stream<Item = Event> + Send {
    stream! {
        let mut attempt = 0;
        let mut phase = String::new();
        loop {
            let state = watcher.state();
            if let (Some(executor_pid), true) = (state.executor_pid, state.attempt > attempt) {
                attempt = state.attempt;
                phase = "started".to_owned();
                yield Event::Started(v1::Started { job_id: watcher.job_id().to_owned(), executor_pid, attempt });
            }
            if attempt > 0 && state.phase != phase {
                phase.clone_from(&state.phase);
                yield progress(&watcher, &state);
            }
            match state.outcome {
                Some(Ok(handle)) => {
                    let (source, from) = match watcher.origin() {
                        Origin::Queued { .. } => (v1::Source::Compiled, CameFrom::Compiled),
                        Origin::Joined { .. } => (v1::Source::Joined, CameFrom::Joined),
                    };
                    let event = delivered(&handle, source, is_strict);
                    if matches!(event, Event::Ready(_)) {
                        noted(&handle, from);
                    }
                    yield event;
                    break;
                }
                Some(Err(failure)) => {
                    yield failed(&watcher, failure);
                    break;
                }
                None => watcher.changed().await,
            }
        }
    }
}

fn progress(watcher: &Watcher, state: &JobState) -> Event {
    Event::Progress(v1::Progress {
        job_id: watcher.job_id().to_owned(),
        phase: state.phase.clone(),
        elapsed_s: state.started.map_or(0.0, |started| started.elapsed().as_secs_f64()),
    })
}

/// The handle, or why this caller does not want it.
fn delivered(handle: &Handle, source: v1::Source, is_strict: bool) -> Event {
    if is_strict && let Some(parts) = unproven(handle.range, &handle.segments) {
        let range = handle.range.map_or_else(|| "the graph".to_owned(), |range| range.to_string());
        return Event::Failed(v1::Failed {
            key: handle.key.0.to_vec(),
            reason: "UNPROVEN_RANGE".into(),
            message: format!(
                "the code for {range} is not proven for all of it, which the strict policy asks for: {parts}"
            ),
            retryable: false,
        });
    }
    Event::Ready(v1::Ready { handle: Some(wire::handle_to_proto(handle)), source: source.into() })
}

fn failed(watcher: &Watcher, failure: JobFailure) -> Event {
    Event::Failed(v1::Failed {
        key: watcher.key().0.to_vec(),
        reason: failure.reason,
        message: failure.message,
        retryable: failure.retryable,
    })
}
