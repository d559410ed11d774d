//! `ExplainMiss`: of a request or of a key in the store, what differs from the nearest other key.
//!
//! Looks at every handle in the store, a page at a time. Left out: what is held in memory only, and what was evicted.

use std::sync::Arc;

use piecewised_graph::{
    ComparedComponent, Digest, Distance, Handle, KeyComponents, KeyInWords, first_difference, model::Graph,
};
use piecewised_plan::Range;
use piecewised_proto::v1::{self, explanation::Answer, key_component::Comparison};
use piecewised_scheduler::{JobSpec, Scheduler, ToolchainInfo};
use piecewised_store::{Listed, ListedItem, Store};
use piecewised_wire as wire;
use tonic::Code;

use crate::{
    ApiConfig,
    request::{check, priority},
    status::ApiError,
};

/// Handles looked at in one step.
const PAGE: usize = 1000;

/// What is to be explained.
pub(crate) enum About {
    Request(Box<v1::CompileRequest>),
    Key(Listed),
}

/// One key, and what is known of it.
struct Asked {
    range: Option<Range>,
    key: Digest,
    graph: Digest,
    words: KeyInWords,
    /// A key that is in the store is compared with others also where it is.
    is_request: bool,
}

/// The graph that was sent, and what the caller calls its nodes.
struct Sent {
    json: Arc<str>,
    names: Vec<String>,
}

/// The best of the others so far.
type Nearest = Option<(Distance, Digest, Box<Handle>)>;

/// One explanation for each key that is asked about.
pub(crate) async fn explain(
    scheduler: &Scheduler,
    store: &Store,
    config: &Arc<ApiConfig>,
    about: About,
    against: Option<Listed>,
) -> Result<Vec<v1::Explanation>, ApiError> {
    let against = against.map(handle_of).transpose()?;
    let (asked, sent) = match about {
        About::Key(listed) => (vec![Asked::of_handle(&*handle_of(listed)?)], None),
        About::Request(request) => {
            let info = scheduler.toolchain_ready(config.toolchain_timeout).await?;
            let config = Arc::clone(config);
            let checked = tokio::task::spawn_blocking(move || asked_of(*request, &info, &config)).await;
            let (mut asked, tuned, sent) = checked.map_err(|error| failed(&error))??;
            for (position, key) in tuned {
                // A tiered request is answered with this one where there is one.
                if let Some(handle) = peek(store, &key).await?.filter(|it| scheduler.config().verify.accepts(it)) {
                    asked[position] =
                        Asked { is_request: true, range: asked[position].range, ..Asked::of_handle(&handle) };
                }
            }
            (asked, Some(sent))
        }
    };
    let mut answers = Vec::with_capacity(asked.len());
    for one in &asked {
        answers.push(answer(scheduler, store, &one.key).await?);
    }
    let wants = |(one, answer): (&Asked, &Answer)| !(one.is_request && *answer == Answer::Stored);
    let wanted: Vec<bool> = asked.iter().zip(&answers).map(|pair| against.is_some() || wants(pair)).collect();
    let (asked, nearest) = match against {
        Some(other) => {
            let found = asked.iter().map(|_| Some(((0, false, false, 0, 0), other.key, other.clone()))).collect();
            (asked, found)
        }
        None if wanted.contains(&true) => nearest(store, asked).await?,
        None => (asked, Vec::new()),
    };
    let mut nearest = nearest.into_iter();
    let mut explanations = Vec::with_capacity(asked.len());
    for ((one, answer), is_wanted) in asked.iter().zip(answers).zip(wanted) {
        let found = nearest.next().flatten().filter(|_| is_wanted);
        let found =
            found.map(|(_, key, handle)| (key, handle.graph_digest, KeyInWords::from(&KeyComponents::from(&*handle))));
        let components = found.as_ref().map_or_else(Vec::new, |(_, graph, words)| {
            let mut compared = one.words.compare(words);
            if let Some(what) = graph_difference(scheduler, one, *graph, sent.as_ref()) {
                compared.iter_mut().filter(|it| it.name == "graph").for_each(|it| it.differences = vec![what.clone()]);
            }
            compared.into_iter().map(component).collect()
        });
        explanations.push(v1::Explanation {
            range: one.range.map(wire::range_to_proto),
            key: one.key.0.to_vec(),
            answer: answer.into(),
            nearest: found.as_ref().map(|(key, ..)| key.0.to_vec()).unwrap_or_default(),
            nearest_label: found.map(|(.., words)| words.label().to_owned()).unwrap_or_default(),
            components,
        });
    }
    Ok(explanations)
}

/// The error for a request that asks nothing.
pub(crate) fn nothing_asked() -> ApiError {
    let message =
        "ExplainMissRequest.request or .key is required; piecewised/v1/admin_service.proto says what goes into it";
    ApiError::new(Code::InvalidArgument, "MISSING_FIELD", message).with("field", "about")
}

fn failed(error: &tokio::task::JoinError) -> ApiError {
    ApiError::new(Code::Internal, "INTERNAL", format!("explaining failed: {error}"))
}

fn handle_of(listed: Listed) -> Result<Box<Handle>, ApiError> {
    match listed.item {
        ListedItem::Handle(handle) => Ok(handle),
        ListedItem::Snapshot(_) => {
            let message =
                format!("key {} is a snapshot's, which is stored under its name; name compiled code", listed.key);
            Err(ApiError::new(Code::InvalidArgument, "BAD_KEY", message).with("field", "key"))
        }
    }
}

/// The keys of a request, positions and keys of what it would rather be answered with, and its graph.
#[allow(clippy::type_complexity, reason = "three things, said above")]
fn asked_of(
    mut request: v1::CompileRequest,
    info: &ToolchainInfo,
    config: &ApiConfig,
) -> Result<(Vec<Asked>, Vec<(usize, Digest)>, Sent), ApiError> {
    // That it is another toolchain is an answer here, and no error.
    let mut info = info.clone();
    if let Some(theirs) = request.toolchain.take() {
        info.toolchain = wire::toolchain_from_proto(theirs);
    }
    priority(request.priority)?;
    let checked = check(request, &info, config)?;
    let asked = checked.entries.iter().zip(&checked.specs).map(|(entry, spec)| Asked::of_spec(*entry, spec)).collect();
    Ok((asked, checked.tuned.into_iter().enumerate().collect(), Sent { json: checked.graph, names: checked.names }))
}

impl Asked {
    fn of_spec(entry: Option<Range>, spec: &JobSpec) -> Self {
        let components = KeyComponents {
            graph: spec.graph_digest,
            range: spec.range,
            dispatch_argument: spec.dispatch_argument,
            hint: spec.hint,
            format: spec.format,
            toolchain: spec.toolchain.clone(),
            record: spec.key_record.clone(),
        };
        Self { range: entry, key: spec.key, graph: spec.graph_digest, words: (&components).into(), is_request: true }
    }

    fn of_handle(handle: &Handle) -> Self {
        let words = KeyInWords::from(&KeyComponents::from(handle));
        Self { range: handle.range, key: handle.key, graph: handle.graph_digest, words, is_request: false }
    }
}

async fn peek(store: &Store, key: &Digest) -> Result<Option<Box<Handle>>, ApiError> {
    Ok(store.peek(key).await?.and_then(|listed| match listed.item {
        ListedItem::Handle(handle) => Some(handle),
        ListedItem::Snapshot(_) => None,
    }))
}

/// What a request for a key is answered with now.
async fn answer(scheduler: &Scheduler, store: &Store, key: &Digest) -> Result<Answer, ApiError> {
    let stored = peek(store, key).await?;
    Ok(match stored {
        Some(handle) if scheduler.config().verify.accepts(&handle) => Answer::Stored,
        _ if scheduler.jobs().iter().any(|info| info.job.key == *key) => Answer::Running,
        Some(_) => Answer::Unverified,
        None if store.get_failure(key).await?.is_some() => Answer::Failed,
        None => Answer::Absent,
    })
}

/// Of each key the nearest other one in the store.
async fn nearest(store: &Store, asked: Vec<Asked>) -> Result<(Vec<Asked>, Vec<Nearest>), ApiError> {
    let mut best: Vec<Nearest> = asked.iter().map(|_| None).collect();
    let (mut asked, mut after) = (asked, None);
    loop {
        let page = store.list(after, PAGE).await?;
        let n_listed = page.len();
        after = page.last().map(|last| last.key);
        // Words of a thousand handles: not for an async thread.
        let compared = tokio::task::spawn_blocking(move || {
            for handle in page.into_iter().filter_map(|listed| handle_of(listed).ok()) {
                let words = KeyInWords::from(&KeyComponents::from(&*handle));
                for (one, best) in asked.iter().zip(&mut best) {
                    let distance = one.words.distance(&words);
                    // Keys come in order: the first of equals is the smallest.
                    let is_nearer = best.as_ref().is_none_or(|(so_far, ..)| distance < *so_far);
                    if one.key != handle.key && is_nearer {
                        *best = Some((distance, handle.key, handle.clone()));
                    }
                }
            }
            (asked, best)
        });
        (asked, best) = compared.await.map_err(|error| failed(&error))?;
        if n_listed < PAGE {
            return Ok((asked, best));
        }
    }
}

/// Where two graphs differ first, if the daemon has both.
fn graph_difference(scheduler: &Scheduler, one: &Asked, other: Digest, sent: Option<&Sent>) -> Option<String> {
    if one.graph == other {
        return None;
    }
    let ours = sent.map(|sent| Arc::clone(&sent.json)).or_else(|| scheduler.labels().graph(&one.graph))?;
    let theirs = scheduler.labels().graph(&other)?;
    let [ours, theirs] = [ours, theirs].map(|text| serde_json::from_str::<Graph>(&text).ok());
    let ours = ours?;
    let found = first_difference(&ours, &theirs?)?;
    let Some(position) = found.position else { return Some(found.what) };
    let name = match sent {
        Some(sent) => sent.names.get(position).cloned(),
        // In the canonical form they are numbered.
        None => ours.nodes.get(position).map(|node| node.name.clone()),
    };
    Some(format!("node `{}`: {}", name.unwrap_or_default(), found.what))
}

fn component(compared: ComparedComponent) -> v1::KeyComponent {
    let ComparedComponent { name, is_equal, ours, theirs, differences } = compared;
    let comparison = match is_equal {
        Some(true) => Comparison::Equal,
        Some(false) => Comparison::Different,
        None => Comparison::Unknown,
    };
    v1::KeyComponent { name: name.to_owned(), comparison: comparison.into(), ours, theirs, differences }
}
