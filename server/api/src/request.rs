//! From a `CompileRequest` to jobs: everything that can be said of a request before it waits for anything.
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::sync::Arc;

use piecewised_graph::{
    CanonicalGraph, Digest, GraphError, KeyParts, KeyRecord, Trust, canonicalise, options_for_key,
    request::{CompileOptions, DeviceKind, Specialisation, Toolchain, Tuning},
    validate,
};
use piecewised_plan::{Plan, Range, default_hint, generic_hint};
use piecewised_proto::v1;
use piecewised_scheduler::{JobSpec, Place, Priority, ToolchainInfo};
use piecewised_wire as wire;
use tonic::Code;

use crate::{ApiConfig, frontend, status::ApiError};

/// A request that passed every check, but for its program and its priority.
#[derive(Debug)]
pub(crate) struct Checked {
    /// The entries of the plan; `None`: the graph has no symbolic input.
    pub(crate) entries: Vec<Option<Range>>,
    /// One job for each entry, in their order. Entries that one compile serves have the same job: its range is then around theirs.
    pub(crate) specs: Vec<Arc<JobSpec>>,
    /// Where each entry is to be answered with its tuned artifact if the store has that: the keys of those. Empty: it is not.
    pub(crate) tuned: Vec<Digest>,
    /// Positions in `specs` in the order in which they should run.
    pub(crate) order: Vec<usize>,
    /// A range whose code runs under guards only, or not for all sizes, is an error.
    pub(crate) is_strict: bool,
    /// What the caller calls the piece.
    pub(crate) label: Arc<str>,
    /// The canonical graph.
    pub(crate) graph_digest: Digest,
    pub(crate) graph: Arc<str>,
    /// The caller's names of the nodes, in order.
    pub(crate) names: Vec<String>,
}

impl Checked {
    /// What it takes in memory, about.
    pub(crate) fn n_bytes(&self) -> usize {
        /// Of a job, and of a name, beside what is counted.
        const SPEC: usize = 2048;
        const NAME: usize = 32;
        let payload = |spec: &Arc<JobSpec>| spec.frontend.as_ref().map_or(0, |it| it.payload.len());
        let payload = self.specs.first().map_or(0, payload);
        let names: usize = self.names.iter().map(|name| name.len() + NAME).sum();
        self.graph.len() + payload + names + self.specs.len() * SPEC
    }
}

/// What one entry of a plan is compiled as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    range: Option<Range>,
    hint: Option<i64>,
    specialisation: Specialisation,
}

/// Checks a request against the toolchain and makes its jobs. Takes milliseconds for large graphs: not for an async thread.
pub(crate) fn check(
    request: v1::CompileRequest,
    info: &ToolchainInfo,
    config: &ApiConfig,
) -> Result<Checked, ApiError> {
    let graph = request.graph.ok_or_else(|| missing("graph"))?;
    let plan = request.plan.ok_or_else(|| missing("plan"))?;
    // Counted before it is converted, so that an oversized graph costs no second copy.
    if graph.nodes.len() > config.graph_limits.max_nodes {
        let (found, limit) = (graph.nodes.len(), config.graph_limits.max_nodes);
        return Err(GraphError::TooLarge { what: "nodes", found, limit }.into());
    }
    let plan = wire::plan_from_proto(plan)?;
    plan.check_limit(config.max_ranges)?;
    let (options, format, delivery) = wire::options_from_proto(request.options.unwrap_or_default())?;
    check_options(&options, info)?;
    if let Some(toolchain) = request.toolchain {
        check_toolchain(&wire::toolchain_from_proto(toolchain), &info.toolchain)?;
    }

    let frontend = request.frontend.map(|it| frontend::frontend(it, info)).transpose()?;
    let label = frontend::label(request.label)?;
    let graph = wire::graph_from_proto(graph)?;
    // Who may send a frontend was asked before.
    let trust = if frontend.is_some() { Trust::Frontend } else { Trust::AllowList };
    validate(&graph, &config.graph_limits, &info.allow, trust)?;
    let canonical = canonicalise(&graph)?;
    let json: Arc<str> = canonical.json.as_str().into();
    let entries = entries(&plan, &canonical)?;
    let targets = targets(&entries, plan.hull(), &delivery.hints, options.specialisation)?;
    let (devices, device) = devices(&canonical, request.device.map(wire::device_from_proto), info)?;
    let options = options_for_key(&options, &canonical.device_types);
    let names = graph.nodes.into_iter().map(|node| node.name).collect();
    let frontend_digest = frontend.as_ref().map(|it| it.frontend.digest());
    let key = |target: Target, options: &CompileOptions| {
        let parts = KeyParts {
            graph: &canonical.digest,
            range: target.range,
            dispatch_argument: canonical.dispatch_argument,
            hint: target.hint,
            options,
            frontend: frontend_digest.as_ref(),
            format,
            toolchain: &info.toolchain.fingerprint,
            devices: &devices,
        };
        parts.key()
    };
    let options_of =
        |target: Target, tuning| CompileOptions { specialisation: target.specialisation, tuning, ..options.clone() };
    let spec = |&target: &Target| {
        let options = options_of(target, options.tuning);
        let key_record = KeyRecord::new(&options, frontend.as_ref().map(|it| &it.frontend), &devices, &label);
        Arc::new(JobSpec {
            key: key(target, &options),
            graph_digest: canonical.digest,
            graph: Arc::clone(&json),
            range: target.range,
            dispatch_argument: canonical.dispatch_argument,
            hint: target.hint,
            options,
            format,
            toolchain: info.toolchain.clone(),
            device: device.clone(),
            frontend: frontend.clone(),
            label: Arc::clone(&label),
            key_record,
        })
    };
    let specs: Vec<Arc<JobSpec>> = targets.iter().map(spec).collect();
    let tuned = |&target: &Target| key(target, &options_of(target, Tuning::Full));
    let tuned = if delivery.is_tiered { targets.iter().map(tuned).collect() } else { Vec::new() };
    let order = if specs.len() == 1 { vec![0] } else { plan.most_likely_first() };
    let (is_strict, graph_digest) = (delivery.is_strict, canonical.digest);
    Ok(Checked { entries, specs, tuned, order, is_strict, label, graph_digest, graph: json, names })
}

pub(crate) fn priority(priority: i32) -> Result<Priority, ApiError> {
    match v1::Priority::try_from(priority) {
        Ok(v1::Priority::Unspecified | v1::Priority::Interactive) => Ok(Priority::Interactive),
        Ok(v1::Priority::Prefetch) => Ok(Priority::Prefetch),
        Ok(v1::Priority::Background) => Ok(Priority::Background),
        Err(_) => {
            let message = format!(
                "CompileRequest.priority {priority} is not one that this version knows; compile_service.proto lists them"
            );
            Err(ApiError::new(Code::InvalidArgument, "UNKNOWN_CHOICE", message).with("field", "priority"))
        }
    }
}

/// What each entry is compiled as. With one compile for all ranges (`hull` is around them) they have one target; single sizes, and graphs
/// without a symbolic input, are compiled for themselves whatever the specialisation, and so have the same keys under each.
fn targets(
    entries: &[Option<Range>],
    hull: Option<Range>,
    hints: &[i64],
    specialisation: Specialisation,
) -> Result<Vec<Target>, GraphError> {
    if !hints.is_empty() && hints.len() != entries.len() {
        return Err(GraphError::BadHints { n_hints: hints.len(), n_entries: entries.len() });
    }
    let asked = |position: usize, range: Range| match hints.get(position) {
        None | Some(0) => Ok(None),
        Some(&hint) if range.contains(hint) => Ok(Some(hint)),
        Some(&hint) => Err(GraphError::HintOutside { hint, range }),
    };
    // Checked for every entry, also where only the highest range's counts.
    let with_hints = entries.iter().enumerate().map(|(position, entry)| match *entry {
        Some(range) => Ok((*entry, asked(position, range)?)),
        None => Ok((None, None)),
    });
    let with_hints = with_hints.collect::<Result<Vec<(Option<Range>, Option<i64>)>, GraphError>>()?;
    let is_range = |entry: &Option<Range>| entry.is_some_and(|range| !range.is_single_size());
    let highest = with_hints.iter().filter(|(entry, _)| is_range(entry)).max_by_key(|(entry, _)| *entry);
    let generic = match (specialisation, hull) {
        (Specialisation::Generic, Some(hull)) => {
            let hint = highest.and_then(|(_, asked)| *asked).unwrap_or_else(|| generic_hint(hull));
            Some(Target { range: Some(hull), hint: Some(hint), specialisation })
        }
        _ => None,
    };
    let target = |(entry, asked): (Option<Range>, Option<i64>)| match generic.filter(|_| is_range(&entry)) {
        Some(generic) => generic,
        None => Target {
            range: entry,
            hint: entry.map(|range| asked.unwrap_or_else(|| default_hint(range))),
            specialisation: Specialisation::Range,
        },
    };
    Ok(with_hints.into_iter().map(target).collect())
}

pub(crate) fn place(piece: v1::ProgramPiece) -> Result<Place, ApiError> {
    let v1::ProgramPiece { program, run, index, n_pieces } = piece;
    Ok(Place {
        program: wire::program_name_from_proto(&program)?,
        run: wire::program_name_from_proto(&run)?,
        index,
        n_pieces,
    })
}

fn missing(field: &str) -> ApiError {
    let message = format!("CompileRequest.{field} is required; piecewised/v1/*.proto says what goes into it");
    ApiError::new(Code::InvalidArgument, "MISSING_FIELD", message).with("field", field)
}

/// A graph without symbolic input is compiled once, whatever the bounds of its plan's one entry.
fn entries(plan: &Plan, graph: &CanonicalGraph) -> Result<Vec<Option<Range>>, ApiError> {
    match (graph.dispatch_argument, plan.entries()) {
        (Some(_), entries) => Ok(entries.iter().copied().map(Some).collect()),
        (None, [_]) => Ok(vec![None]),
        (None, entries) => Err(GraphError::StaticGraph { n_entries: entries.len() }.into()),
    }
}

fn check_options(options: &CompileOptions, info: &ToolchainInfo) -> Result<(), ApiError> {
    for name in options.inductor.keys() {
        match info.options.get(name) {
            Some(false) => {}
            Some(true) => {
                let message = format!(
                    "option {name:?} is reserved: it names programs, paths or caches, which are the operator's to choose; leave it out"
                );
                return Err(ApiError::new(Code::InvalidArgument, "RESERVED_OPTION", message).with("option", name));
            }
            None => {
                let torch = &info.toolchain.torch_version;
                let near = nearest(name, info.options.keys());
                let near = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
                let message = format!("torch {torch}'s Inductor has no option {name:?}{near}");
                return Err(ApiError::new(Code::InvalidArgument, "UNKNOWN_OPTION", message).with("option", name));
            }
        }
    }
    Ok(())
}

/// The known name that is most like `name`, if one is alike at all.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    known
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(likeness, _)| *likeness > 0.85)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}

/// An artifact of one toolchain does not load in another: better told now than after the compile.
fn check_toolchain(theirs: &Toolchain, ours: &Toolchain) -> Result<(), ApiError> {
    if theirs.fingerprint == ours.fingerprint {
        return Ok(());
    }
    let fields = [
        ("Python", &theirs.python_version, &ours.python_version),
        ("torch", &theirs.torch_version, &ours.torch_version),
        ("torch's git revision", &theirs.torch_git_version, &ours.torch_git_version),
        ("triton", &theirs.triton_version, &ours.triton_version),
        ("CUDA", &theirs.cuda_version, &ours.cuda_version),
    ];
    let differing: Vec<String> = fields
        .iter()
        .filter(|(_, theirs, ours)| theirs != ours)
        .map(|(what, theirs, ours)| {
            format!("{what} is {theirs:?} in the worker and {ours:?} in the daemon's toolchain")
        })
        .collect();
    let differing = if differing.is_empty() { "the fingerprints differ".to_owned() } else { differing.join(", ") };
    let message = format!(
        "{differing}; start the daemon with --python naming the interpreter that the worker runs (here {})",
        ours.executable
    );
    Err(ApiError::new(Code::FailedPrecondition, "TOOLCHAIN_MISMATCH", message)
        .with("worker", &theirs.fingerprint)
        .with("daemon", &ours.fingerprint))
}

/// Every kind of device that the graph names, and the one that its artifact is for: an accelerator before the CPU.
fn devices(
    graph: &CanonicalGraph,
    asked: Option<DeviceKind>,
    info: &ToolchainInfo,
) -> Result<(Vec<DeviceKind>, DeviceKind), ApiError> {
    let find = |r#type: &str| {
        let wanted = asked.as_ref().filter(|asked| asked.r#type == r#type);
        let found = info
            .devices
            .iter()
            .find(|device| device.r#type == r#type && wanted.is_none_or(|wanted| wanted == *device))
            .cloned();
        found.ok_or_else(|| {
            let has: Vec<String> = info.devices.iter().map(describe).collect();
            let has = if has.is_empty() { "none".to_owned() } else { has.join(", ") };
            let wanted = wanted.map_or_else(|| r#type.to_owned(), describe);
            ApiError::new(
                Code::FailedPrecondition,
                "NO_DEVICE",
                format!("the graph is for {wanted}; this daemon compiles for: {has}"),
            )
            .with("wanted", wanted)
            .with("available", has)
        })
    };
    let mut types: Vec<&str> = graph.device_types.iter().map(String::as_str).collect();
    if types.is_empty() {
        types.push("cpu");
    }
    let kinds = types.iter().map(|r#type| find(r#type)).collect::<Result<Vec<_>, _>>()?;
    let main = kinds.iter().find(|kind| kind.r#type != "cpu").or(kinds.first()).cloned();
    let main = main.expect("there is at least one type");
    Ok((kinds, main))
}

fn describe(device: &DeviceKind) -> String {
    format!("{} {} ({})", device.r#type, device.name, device.capability.chars().take(12).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(start: i64, end: i64) -> Range {
        Range::new(start, end).unwrap()
    }

    /// The targets of a plan, as (range, hint).
    fn found(ranges: &[Range], sizes: &[i64], hints: &[i64], how: Specialisation) -> Result<Vec<(Range, i64)>, String> {
        let plan = Plan::new(ranges, sizes).unwrap();
        let entries: Vec<_> = plan.entries().iter().copied().map(Some).collect();
        let targets = targets(&entries, plan.hull(), hints, how).map_err(|error| error.to_string())?;
        for (entry, target) in entries.iter().zip(&targets) {
            let is_range = !entry.unwrap().is_single_size();
            assert_eq!(target.specialisation == Specialisation::Generic, is_range && how == Specialisation::Generic);
        }
        Ok(targets.into_iter().map(|target| (target.range.unwrap(), target.hint.unwrap())).collect())
    }

    #[test]
    fn each_range_is_compiled_for_itself_or_all_of_them_at_once() {
        use Specialisation::{Generic, Range};
        let (ranges, sizes) = ([r(17, 128), r(1, 16), r(200, 512)], [4, 600]);
        let (low, middle, high, hull) = (r(1, 16), r(17, 128), r(200, 512), r(1, 512));
        let singles = [(r(4, 4), 4), (r(600, 600), 600)];
        let check = |how, hints: &[i64], expected: [(piecewised_plan::Range, i64); 3]| {
            assert_eq!(found(&ranges, &sizes, hints, how).unwrap(), [&expected[..], &singles].concat());
        };
        check(Range, &[], [(low, 4), (middle, 64), (high, 256)]);
        check(Range, &[2, 0, 300, 4, 0], [(low, 2), (middle, 64), (high, 300)]);
        check(Generic, &[], [(hull, 512); 3]);
        check(Generic, &[0; 5], [(hull, 512); 3]);
        // Of the hints, the highest range's.
        check(Generic, &[2, 20, 300, 4, 600], [(hull, 300); 3]);
    }

    #[test]
    fn a_plan_of_single_sizes_has_nothing_generic() {
        let generic = found(&[], &[4, 1], &[], Specialisation::Generic).unwrap();
        assert_eq!(generic, [(r(1, 1), 1), (r(4, 4), 4)]);
        assert_eq!(targets(&[None], None, &[7], Specialisation::Generic).unwrap()[0].hint, None);
    }

    #[test]
    fn hints_that_are_no_sizes_of_their_range_are_refused() {
        let check = |hints: &[i64], how, expected: &str| {
            let found = found(&[r(1, 16), r(17, 32)], &[], hints, how).unwrap_err();
            assert!(found.starts_with(expected), "{found}");
        };
        for how in [Specialisation::Range, Specialisation::Generic] {
            check(&[4], how, "there are 1 hints for 2 entries");
            check(&[17, 17], how, "hint 17 lies outside of [1, 16]");
            check(&[1, -1], how, "hint -1 lies outside of [17, 32]");
        }
    }
}
