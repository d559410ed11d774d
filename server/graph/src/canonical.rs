//! The canonical form: what is left of a graph when everything that cannot influence the compiled code is gone.
//!
//! * nodes are named `n0`, `n1`, ... in their order; constants `c0`, ... and subgraphs `g0`, ... in the order in which
//!   nodes first read them, and those that no node reads are dropped;
//! * symbols are named `s0`, ... in the order in which they first stand alone (an input, a size), then by first use
//!   inside an expression; those that nothing uses are dropped;
//! * operands of commutative functions are sorted;
//! * devices are numbered per type in order of first appearance, so that `cuda:3` alone is `cuda:0`;
//! * stack traces are dropped, and so are hint and bounds of the dispatched symbol, which the plan's range and hint replace (a capture's
//!   hint is whatever size came first).
//!
//! The order of nodes, arguments, keyword arguments and dict entries is kept: it can change the code.
//!
//! Two graphs that differ only in names can still miss each other where two symbols both first appear inside one
//! commutative expression and never alone. A miss costs a compile; a wrong hit is not possible, since the canonical form
//! is what executors compile from.

use std::collections::{BTreeSet, HashMap};

use crate::{
    Digest, GraphError,
    model::{Argument, Device, Graph, Node, Op, Subgraph, SymExpr, SymFunction, Symbol, TensorMeta, ValueMeta},
};

/// A graph in canonical form, with what follows from it.
#[derive(Debug, Clone)]
pub struct CanonicalGraph {
    /// The JSON text: what is digested is what executors get.
    pub json: String,
    /// Of the JSON text.
    pub digest: Digest,
    /// The placeholder whose value is dispatched on; `None`: no symbolic input.
    pub dispatch_argument: Option<u32>,
    /// Device types that occur, sorted, without "meta".
    pub device_types: Vec<String>,
    /// How many inputs the graph has.
    pub n_arguments: u32,
}

/// The canonical form of a graph that [`crate::validate`] accepted.
///
/// # Errors
/// [`GraphError::NothingToDispatchOn`] where there are symbolic integer inputs, but none of them is a plain symbol.
pub fn canonicalise(graph: &Graph) -> Result<CanonicalGraph, GraphError> {
    let mut canon = Canon::default();
    canon.number_bare_symbols(graph);
    let mut canonical = canon.graph(graph);

    let dispatch = dispatch_argument(&canonical)?;
    let mut symbols: Vec<(usize, Symbol)> = graph
        .symbols
        .iter()
        .filter_map(|symbol| {
            let number = *canon.symbols.get(&symbol.name)?;
            Some((number, Symbol { name: format!("s{number}"), ..symbol.clone() }))
        })
        .collect();
    symbols.sort_unstable_by_key(|(number, _)| *number);
    canonical.symbols = symbols.into_iter().map(|(_, symbol)| symbol).collect();

    if let Some((_, name)) = &dispatch
        && let Some(symbol) = canonical.symbols.iter_mut().find(|symbol| symbol.name == *name)
    {
        symbol.hint = None;
        symbol.min = None;
        symbol.max = None;
    }
    let json = serde_json::to_string(&canonical).expect("the model has string keys only and no fallible serializer");
    let n_arguments = canonical.nodes.iter().filter(|node| matches!(node.op, Op::Placeholder { .. })).count();
    Ok(CanonicalGraph {
        digest: Digest::of(json.as_bytes()),
        json,
        dispatch_argument: dispatch.map(|(position, _)| position),
        device_types: canon.device_types.into_iter().collect(),
        n_arguments: u32::try_from(n_arguments).expect("validation bounds the number of nodes"),
    })
}

/// The first integer input that is a plain symbol, and the symbol.
fn dispatch_argument(graph: &Graph) -> Result<Option<(u32, String)>, GraphError> {
    let mut any = false;
    for (position, node) in graph.nodes.iter().enumerate() {
        if let Op::Placeholder { value: ValueMeta::SymInt(expr) } = &node.op {
            match expr {
                SymExpr::Symbol(name) => {
                    let position = u32::try_from(position).expect("validation bounds the number of nodes");
                    return Ok(Some((position, name.clone())));
                }
                SymExpr::Int(_) => {}
                _ => any = true,
            }
        }
    }
    if any { Err(GraphError::NothingToDispatchOn) } else { Ok(None) }
}

#[derive(Default)]
struct Canon {
    symbols: HashMap<String, usize>,
    devices: HashMap<(String, u32), u32>,
    device_types: BTreeSet<String>,
}

/// The new names within one graph.
#[derive(Default)]
struct Names {
    nodes: HashMap<String, String>,
    constants: HashMap<String, String>,
    subgraphs: HashMap<String, String>,
}

impl Canon {
    fn number(&mut self, symbol: &str) -> usize {
        let next = self.symbols.len();
        *self.symbols.entry(symbol.to_owned()).or_insert(next)
    }

    /// Numbers the symbols that stand alone in an input, in order, so that the numbering does not depend on the order in
    /// which sympy printed the operands of an expression (which depends on the symbols' names).
    fn number_bare_symbols(&mut self, graph: &Graph) {
        for node in &graph.nodes {
            let Op::Placeholder { value } = &node.op else { continue };
            match value {
                ValueMeta::Tensor(tensor) => {
                    for expr in tensor.sizes.iter().chain(&tensor.strides).chain([&tensor.storage_offset]) {
                        if let SymExpr::Symbol(name) = expr {
                            self.number(name);
                        }
                    }
                }
                ValueMeta::SymInt(expr) | ValueMeta::SymFloat(expr) | ValueMeta::SymBool(expr) => {
                    if let SymExpr::Symbol(name) = expr {
                        self.number(name);
                    }
                }
                ValueMeta::Constant(_) | ValueMeta::Opaque(_) => {}
            }
        }
    }

    fn graph(&mut self, graph: &Graph) -> Graph {
        let mut names = Names::default();
        for (position, node) in graph.nodes.iter().enumerate() {
            names.nodes.insert(node.name.clone(), format!("n{position}"));
            if let Op::GetAttr { target } | Op::CallModule { target, .. } = &node.op {
                if graph.constants.iter().any(|constant| constant.name == *target) {
                    let next = names.constants.len();
                    names.constants.entry(target.clone()).or_insert_with(|| format!("c{next}"));
                } else {
                    let next = names.subgraphs.len();
                    names.subgraphs.entry(target.clone()).or_insert_with(|| format!("g{next}"));
                }
            }
        }
        let nodes = graph
            .nodes
            .iter()
            .map(|node| Node {
                name: names.nodes[&node.name].clone(),
                op: self.op(&node.op, &names),
                stack_trace: None,
            })
            .collect();
        let mut constants: Vec<_> = graph
            .constants
            .iter()
            .filter_map(|constant| {
                let mut constant = constant.clone();
                constant.name = names.constants.get(&constant.name)?.clone();
                constant.meta = self.tensor(&constant.meta);
                Some(constant)
            })
            .collect();
        constants.sort_by_key(|constant| number_of(&constant.name));
        // In the order of their new names, since numbering symbols and devices depends on the order of the visits.
        let mut used: Vec<(&str, &Graph)> = graph
            .subgraphs
            .iter()
            .filter_map(|sub| Some((names.subgraphs.get(&sub.name)?.as_str(), &sub.graph)))
            .collect();
        used.sort_by_key(|(name, _)| number_of(name));
        let subgraphs = used
            .into_iter()
            .map(|(name, graph)| Subgraph { name: name.to_owned(), graph: self.graph(graph) })
            .collect();
        Graph { nodes, symbols: Vec::new(), constants, subgraphs }
    }

    fn op(&mut self, op: &Op, names: &Names) -> Op {
        let attribute = |target: &String| {
            names.constants.get(target).or_else(|| names.subgraphs.get(target)).unwrap_or(target).clone()
        };
        match op {
            Op::Placeholder { value } => Op::Placeholder { value: self.meta(value, names) },
            Op::GetAttr { target } => Op::GetAttr { target: attribute(target) },
            Op::CallFunction { target, args, kwargs } => Op::CallFunction {
                target: target.clone(),
                args: self.arguments(args, names),
                kwargs: self.kwargs(kwargs, names),
            },
            Op::CallMethod { method, args, kwargs } => Op::CallMethod {
                method: method.clone(),
                args: self.arguments(args, names),
                kwargs: self.kwargs(kwargs, names),
            },
            Op::CallModule { target, args, kwargs } => Op::CallModule {
                target: attribute(target),
                args: self.arguments(args, names),
                kwargs: self.kwargs(kwargs, names),
            },
            Op::Output { value } => Op::Output { value: self.argument(value, names) },
        }
    }

    fn kwargs(&mut self, kwargs: &[(String, Argument)], names: &Names) -> Vec<(String, Argument)> {
        kwargs.iter().map(|(name, value)| (name.clone(), self.argument(value, names))).collect()
    }

    fn arguments(&mut self, arguments: &[Argument], names: &Names) -> Vec<Argument> {
        arguments.iter().map(|argument| self.argument(argument, names)).collect()
    }

    fn argument(&mut self, argument: &Argument, names: &Names) -> Argument {
        match argument {
            Argument::Node(name) => Argument::Node(names.nodes.get(name).unwrap_or(name).clone()),
            Argument::Device(device) => Argument::Device(self.device(device)),
            Argument::Slice(bounds) => {
                let (start, stop, step) = &**bounds;
                Argument::Slice(Box::new((
                    self.argument(start, names),
                    self.argument(stop, names),
                    self.argument(step, names),
                )))
            }
            Argument::Tuple(items) => Argument::Tuple(self.arguments(items, names)),
            Argument::List(items) => Argument::List(self.arguments(items, names)),
            Argument::Dict(entries) => {
                Argument::Dict(entries.iter().map(|(key, value)| (key.clone(), self.argument(value, names))).collect())
            }
            Argument::SymInt(expr) => Argument::SymInt(self.expr(expr)),
            Argument::SymFloat(expr) => Argument::SymFloat(self.expr(expr)),
            Argument::SymBool(expr) => Argument::SymBool(self.expr(expr)),
            Argument::Graph(graph) => Argument::Graph(Box::new(self.graph(graph))),
            plain => plain.clone(),
        }
    }

    fn meta(&mut self, meta: &ValueMeta, names: &Names) -> ValueMeta {
        match meta {
            ValueMeta::Tensor(tensor) => ValueMeta::Tensor(self.tensor(tensor)),
            ValueMeta::SymInt(expr) => ValueMeta::SymInt(self.expr(expr)),
            ValueMeta::SymFloat(expr) => ValueMeta::SymFloat(self.expr(expr)),
            ValueMeta::SymBool(expr) => ValueMeta::SymBool(self.expr(expr)),
            ValueMeta::Constant(value) => ValueMeta::Constant(self.argument(value, names)),
            ValueMeta::Opaque(r#type) => ValueMeta::Opaque(r#type.clone()),
        }
    }

    fn tensor(&mut self, tensor: &TensorMeta) -> TensorMeta {
        TensorMeta {
            dtype: tensor.dtype.clone(),
            device: self.device(&tensor.device),
            layout: tensor.layout.clone(),
            sizes: tensor.sizes.iter().map(|expr| self.expr(expr)).collect(),
            strides: tensor.strides.iter().map(|expr| self.expr(expr)).collect(),
            storage_offset: self.expr(&tensor.storage_offset),
            is_parameter: tensor.is_parameter,
        }
    }

    fn device(&mut self, device: &Device) -> Device {
        if device.r#type != "meta" {
            self.device_types.insert(device.r#type.clone());
        }
        let index = device.index.map(|index| {
            let next = self.devices.keys().filter(|(r#type, _)| *r#type == device.r#type).count();
            let next = u32::try_from(next).expect("there are no more devices than indices");
            *self.devices.entry((device.r#type.clone(), index)).or_insert(next)
        });
        Device { r#type: device.r#type.clone(), index }
    }

    fn expr(&mut self, expr: &SymExpr) -> SymExpr {
        match expr {
            SymExpr::Symbol(name) => SymExpr::Symbol(format!("s{}", self.number(name))),
            SymExpr::Call(function, operands) => {
                let mut operands: Vec<SymExpr> = operands.iter().map(|operand| self.expr(operand)).collect();
                if is_commutative(*function) {
                    operands.sort_by_cached_key(|operand| {
                        serde_json::to_string(operand).expect("an expression has no fallible serializer")
                    });
                }
                SymExpr::Call(*function, operands)
            }
            plain => plain.clone(),
        }
    }
}

/// The number in `c12` or `g12`.
fn number_of(name: &str) -> usize {
    name[1..].parse().unwrap_or(usize::MAX)
}

fn is_commutative(function: SymFunction) -> bool {
    use SymFunction as F;
    matches!(function, F::Add | F::Mul | F::Max | F::Min | F::Eq | F::Ne | F::And | F::Or)
}
