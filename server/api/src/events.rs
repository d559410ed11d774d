//! From tickets to the event stream of one request.
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_stream::stream;
use piecewised_graph::{Digest, Handle, unproven};
use piecewised_plan::Range;
use piecewised_proto::v1::{self, compile_event::Event};
use piecewised_scheduler::{CameFrom, JobFailure, JobState, Origin, Place, RunStatus, Scheduler, Ticket, Watcher};
use piecewised_sign::{Signer, Statement};
use piecewised_wire as wire;
use tokio_stream::{Stream, StreamExt as _, StreamMap};
use tonic::{Code, Status};

use crate::{account::Account, request::Checked, status::ApiError, trace::RequestSpan};

/// What the events of a request depend on beside its tickets.
pub(crate) struct Asked {
    pub(crate) program: Option<(Place, Scheduler)>,
    pub(crate) is_strict: bool,
    /// When the request came, and how long its caller waits.
    pub(crate) started: Instant,
    pub(crate) deadline: Option<Duration>,
    pub(crate) account: Account,
    pub(crate) difference: Option<v1::GraphDifference>,
    /// What the request was understood as.
    pub(crate) accepted: v1::Accepted,
    pub(crate) signer: Arc<Signer>,
}

/// The signed word for what a request asks for. Its digest is that of its bytes.
pub(crate) fn accepted(digest: Digest, checked: &Checked, signer: &Signer) -> v1::Accepted {
    let entry = |(position, entry): (usize, &Option<Range>)| {
        let keys =
            checked.specs.get(position).map(|spec| spec.key).into_iter().chain(checked.tuned.get(position).copied());
        v1::AcceptedEntry { range: entry.map(wire::range_to_proto), keys: keys.map(|key| key.0.to_vec()).collect() }
    };
    let entries = checked.entries.iter().enumerate().map(entry).collect();
    let mut accepted = v1::Accepted { request_digest: digest.0.to_vec(), entries, signature: None };
    let signature = signer.sign(&Statement::of_accepted(&accepted));
    accepted.signature = Some(wire::signature_to_proto(&signature));
    accepted
}

/// The events of a request: first Accepted and one for each entry of the plan, then progress and results as they come, last Completed.
///
/// For a piece of a program, each result is noted in its run, and the manifest of a program that is complete by now is durable
/// before the last Ready is sent: a caller that has all its handles and leaves without waiting for Completed leaves a manifest too.
///
/// `is_strict` is decided here, when a handle is delivered: it says what this caller takes, not what is compiled, so that strict and other
/// callers share jobs and the store.
pub(crate) fn events(
    tickets: Vec<(Option<Range>, Ticket)>,
    asked: Asked,
    span: RequestSpan,
) -> impl Stream<Item = Result<v1::CompileEvent, Status>> + Send + 'static {
    stream! {
        let Asked { program, is_strict, started, deadline, mut account, difference, accepted, signer } = asked;
        yield Ok(v1::CompileEvent { index: 0, range: None, event: Some(Event::Accepted(accepted)) });
        let n_entries = u32::try_from(tickets.len()).unwrap_or(u32::MAX);
        let mut summary = v1::Completed::default();
        let mut end = None;
        let mut running = StreamMap::new();
        for (position, (range, ticket)) in tickets.into_iter().enumerate() {
            let index = u32::try_from(position).unwrap_or(u32::MAX);
            let at = move |event| v1::CompileEvent { index, range: range.map(wire::range_to_proto), event: Some(event) };
            match ticket {
                Ticket::Stored(handle) => {
                    let event = match delivered(&handle, range, is_strict) {
                        Ok(handle) => {
                            note(program.as_ref(), position, &handle, CameFrom::Store);
                            ready(&handle, v1::Source::Store, &signer)
                        }
                        Err(failure) => failed(handle.key, failure),
                    };
                    count(&mut summary, &event);
                    account.note(position, &event);
                    if summary.n_ready == n_entries {
                        end = Some(end_piece(program.as_ref()).await);
                    }
                    yield Ok(at(event));
                }
                Ticket::Failed { key, failure } => {
                    let event = failed(key, failure);
                    count(&mut summary, &event);
                    account.note(position, &event);
                    yield Ok(at(event));
                }
                Ticket::Running(watcher) => {
                    yield Ok(at(first(&watcher)));
                    let program = program.clone();
                    let noted = move |handle: &Handle, from| note(program.as_ref(), position, handle, from);
                    running.insert(index, Box::pin(follow(watcher, range, is_strict, Arc::clone(&signer), noted).map(at)));
                }
            }
        }
        let is_late = late(started, deadline);
        tokio::pin!(is_late);
        loop {
            let event = tokio::select! {
                next = running.next() => match next {
                    Some((_, event)) => event,
                    None => break,
                },
                status = &mut is_late => {
                    // With the stream go its watchers: this caller has left.
                    yield Err(status);
                    return;
                }
            };
            if let Some(kind) = &event.event {
                count(&mut summary, kind);
                account.note(usize::try_from(event.index).unwrap_or(usize::MAX), kind);
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
                yield Err(Status::from(error));
                return;
            }
        }
        summary.difference = difference;
        summary.elapsed_s = started.elapsed().as_secs_f64();
        span.completed(&summary);
        yield Ok(v1::CompileEvent { index: 0, range: None, event: Some(Event::Completed(summary)) });
    }
}

/// Resolves when the caller's deadline is over.
async fn late(started: Instant, deadline: Option<Duration>) -> Status {
    let Some(deadline) = deadline else { return std::future::pending().await };
    tokio::time::sleep_until((started + deadline).into()).await;
    let message = format!(
        "your deadline of {} s is over and not everything is compiled; ask again with a longer one: what was finished by then is in the \
         store, and what is under way is joined",
        deadline.as_secs_f64()
    );
    ApiError::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", message).into()
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
    entry: Option<Range>,
    is_strict: bool,
    signer: Arc<Signer>,
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
            match state.outcome.map(|outcome| outcome.and_then(|handle| delivered(&handle, entry, is_strict))) {
                Some(Ok(handle)) => {
                    let (source, from) = match watcher.origin() {
                        Origin::Queued { .. } => (v1::Source::Compiled, CameFrom::Compiled),
                        Origin::Joined { .. } => (v1::Source::Joined, CameFrom::Joined),
                    };
                    noted(&handle, from);
                    yield ready(&handle, source, &signer);
                    break;
                }
                Some(Err(failure)) => {
                    yield failed(watcher.key(), failure);
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

fn ready(handle: &Handle, source: v1::Source, signer: &Signer) -> Event {
    Event::Ready(v1::Ready { handle: Some(signer.signed_handle(handle)), source: source.into() })
}

/// What of a handle is told of an entry of the plan: a compile may have been for more than it. Or why this caller does not want it: what
/// is strict is what it is told of, and not what was compiled besides.
fn delivered(handle: &Handle, entry: Option<Range>, is_strict: bool) -> Result<Handle, JobFailure> {
    let unproven_range =
        |message| Err(JobFailure { reason: "UNPROVEN_RANGE".into(), message, retryable: false, age: None });
    let Some(clipped) = handle.clipped(entry) else {
        let parts: Vec<_> = handle.segments.iter().map(ToString::to_string).collect();
        return unproven_range(format!(
            "the one compile for all ranges is proven for {}, and no size of this range lies there; \
             compile each range for itself (specialisation RANGE)",
            parts.join(", ")
        ));
    };
    match unproven(clipped.range, &clipped.segments) {
        Some(parts) if is_strict => {
            let range = clipped.range.map_or_else(|| "the graph".to_owned(), |range| range.to_string());
            unproven_range(format!(
                "the code for {range} is not proven for all of it, which the strict policy asks for: {parts}"
            ))
        }
        _ => Ok(clipped),
    }
}

fn failed(key: Digest, failure: JobFailure) -> Event {
    Event::Failed(v1::Failed {
        key: key.0.to_vec(),
        reason: failure.reason,
        message: failure.message,
        retryable: failure.retryable,
        remembered: failure.age.is_some(),
        age_s: failure.age.map_or(0.0, |age| age.as_secs_f64()),
    })
}

#[cfg(test)]
mod tests {
    use piecewised_graph::{
        GuardSymbol, Segment, Timings,
        model::{SymExpr, SymFunction},
        request::{ArtifactFormat, DeviceKind},
    };

    use super::*;

    fn r(start: i64, end: i64) -> Range {
        Range::new(start, end).unwrap()
    }

    /// A stored handle for [1, 64] that is proven for [1, 16], and up to 32 under a guard.
    fn ticket() -> Ticket {
        let text = String::new;
        Ticket::Stored(Box::new(Handle {
            key: Digest([1; 32]),
            graph_digest: Digest([2; 32]),
            range: Some(r(1, 64)),
            digest: Digest([3; 32]),
            size_bytes: 1,
            format: ArtifactFormat::Inductor,
            toolchain: piecewised_graph::request::Toolchain {
                fingerprint: text(),
                python_version: text(),
                torch_version: text(),
                torch_git_version: text(),
                triton_version: text(),
                cuda_version: text(),
                executable: text(),
            },
            device: DeviceKind { r#type: "cpu".into(), name: text(), capability: text() },
            segments: vec![
                Segment { range: Some(r(1, 32)), entry: "e1".into(), guards: vec![even()] },
                Segment { range: Some(r(1, 16)), entry: "e0".into(), guards: Vec::new() },
            ],
            dispatch_argument: Some(0),
            hint: Some(64),
            returns_tuple: true,
            n_arguments: 1,
            timings: Timings::default(),
            created_unix_ms: 0,
            guard_symbols: vec![GuardSymbol { name: "s0".into(), argument: 0, dimension: None }],
            verification: Default::default(),
            tuning: Default::default(),
            latencies: Vec::new(),
            key_record: Default::default(),
            signature: None,
        }))
    }

    /// `s0 % 2 == 0`.
    fn even() -> SymExpr {
        let remainder = SymExpr::Call(SymFunction::Mod, vec![SymExpr::Symbol("s0".into()), SymExpr::Int(2)]);
        SymExpr::Call(SymFunction::Eq, vec![remainder, SymExpr::Int(0)])
    }

    /// What three entries of a plan hear of the one handle, in words, and the end.
    async fn heard(is_strict: bool) -> (Vec<String>, v1::Completed) {
        let tickets: Vec<_> = [r(1, 8), r(9, 32), r(33, 64)].into_iter().map(|entry| (Some(entry), ticket())).collect();
        let account = Account::new(None, &tickets);
        let started = Instant::now();
        let signer = Arc::new(Signer::from_seed(&[1; 32]));
        let accepted = v1::Accepted::default();
        let asked =
            Asked { program: None, is_strict, started, deadline: None, account, difference: None, accepted, signer };
        let events = events(tickets, asked, RequestSpan::none());
        let events: Vec<_> = events.map(Result::unwrap).collect().await;
        let mut found = Vec::new();
        assert!(matches!(events[0].event, Some(Event::Accepted(_))));
        for event in &events[1..4] {
            match event.event.as_ref().unwrap() {
                Event::Ready(ready) => {
                    let handle = ready.handle.as_ref().unwrap();
                    assert_eq!(handle.range, event.range);
                    assert_eq!(handle.guard_symbols.len(), 1);
                    let part = |segment: &v1::Segment| {
                        let range = segment.range.unwrap();
                        format!(" {} {}-{} {}", segment.entry, range.start, range.end, segment.guards.len())
                    };
                    found.push(format!("ready{}", handle.segments.iter().map(part).collect::<String>()));
                }
                Event::Failed(failed) => found.push(format!("failed {}: {}", failed.reason, failed.message)),
                other => panic!("{other:?}"),
            }
        }
        let Some(Event::Completed(summary)) = &events[4].event else { panic!("{:?}", events[4]) };
        (found, summary.clone())
    }

    #[tokio::test]
    async fn each_entry_hears_of_its_own_part_and_one_without_any_fails_alone() {
        let (found, summary) = heard(false).await;
        assert_eq!(found[..2], ["ready e1 1-8 1 e0 1-8 0", "ready e1 9-32 1 e0 9-16 0"]);
        assert!(found[2].starts_with("failed UNPROVEN_RANGE: ") && found[2].contains("[1, 16]"), "{}", found[2]);
        assert_eq!((summary.n_ready, summary.n_failed, summary.n_from_store), (2, 1, 2));
    }

    #[tokio::test]
    async fn the_strict_policy_is_about_what_an_entry_is_told_of() {
        let (found, summary) = heard(true).await;
        assert_eq!(found[0], "ready e1 1-8 1 e0 1-8 0");
        assert!(found[1].starts_with("failed UNPROVEN_RANGE: the code for [9, 32] is not proven"), "{}", found[1]);
        assert!(found[1].contains("[9, 32] where"), "{}", found[1]);
        assert!(found[2].starts_with("failed UNPROVEN_RANGE: "), "{}", found[2]);
        assert_eq!((summary.n_ready, summary.n_failed), (1, 2));
    }
}
