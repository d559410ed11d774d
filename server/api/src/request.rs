//! From a `CompileRequest` to jobs: everything that can be said of a request before it waits for anything.

use std::sync::Arc;

use piecewised_graph::{
    CanonicalGraph, GraphError, KeyParts, canonicalise, options_for_key,
    request::{CompileOptions, DeviceKind, Toolchain},
    validate,
};
use piecewised_plan::{Plan, Range, default_hint};
use piecewised_proto::v1;
use piecewised_scheduler::{JobSpec, Place, ToolchainInfo};
use piecewised_wire as wire;
use tonic::Code;

use crate::{ApiConfig, status::ApiError};

/// A request that passed every check.
#[derive(Debug)]
pub(crate) struct Checked {
    /// One job for each entry of the plan, in its order.
    pub(crate) specs: Vec<JobSpec>,
    /// Positions in `specs` in the order in which they should run.
    pub(crate) order: Vec<usize>,
    /// Which piece of which program it is.
    pub(crate) place: Option<Place>,
    /// A range whose code runs under guards only, or not for all sizes, is an error.
    pub(crate) is_strict: bool,
}

/// Checks a request against the toolchain and makes its jobs. Takes milliseconds for large graphs: not for an async thread.
pub(crate) fn check(
    request: v1::CompileRequest,
    info: &ToolchainInfo,
    config: &ApiConfig,
) -> Result<Checked, ApiError> {
    let place = request.program.map(place).transpose()?;
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

    let graph = wire::graph_from_proto(graph)?;
    validate(&graph, &config.graph_limits, &info.allow)?;
    let canonical = canonicalise(&graph)?;
    drop(graph);
    let entries = entries(&plan, &canonical)?;
    let hints = &delivery.hints;
    if !hints.is_empty() && hints.len() != entries.len() {
        return Err(GraphError::BadHints { n_hints: hints.len(), n_entries: entries.len() }.into());
    }
    let (devices, device) = devices(&canonical, request.device.map(wire::device_from_proto), info)?;
    let options = options_for_key(&options, &canonical.device_types);
    let json: Arc<str> = canonical.json.as_str().into();
    let spec = |(position, range): (usize, Option<Range>)| {
        let hint = range.map(|range| {
            let asked = hints.get(position).copied();
            asked.filter(|&hint| range.contains(hint)).unwrap_or_else(|| default_hint(range))
        });
        let key = KeyParts {
            graph: &canonical.digest,
            range,
            dispatch_argument: canonical.dispatch_argument,
            hint,
            options: &options,
            frontend: None,
            format,
            toolchain: &info.toolchain.fingerprint,
            devices: &devices,
        }
        .key();
        JobSpec {
            key,
            graph_digest: canonical.digest,
            graph: Arc::clone(&json),
            range,
            dispatch_argument: canonical.dispatch_argument,
            hint,
            options: options.clone(),
            format,
            toolchain: info.toolchain.clone(),
            device: device.clone(),
            verify: true,
        }
    };
    let specs: Vec<JobSpec> = entries.into_iter().enumerate().map(spec).collect();
    let order = if specs.len() == 1 { vec![0] } else { plan.most_likely_first() };
    Ok(Checked { specs, order, place, is_strict: delivery.is_strict })
}

fn place(piece: v1::ProgramPiece) -> Result<Place, ApiError> {
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
