//! The rules of a graph: what is refused before anything is compiled.
//!
//! Guarantees, for a graph that passes: names are unique, every reference goes backwards, every symbol is declared, every
//! target is in the toolchain's allow-list, every count is within its limit. It deliberately does not type-check: whether
//! `aten.mm` takes these shapes is the compiler's to say.
//!
//! Recursion is bounded by the decoders (prost refuses more than 100 levels, serde_json more than 128), the limit of
//! [`Limits::max_nesting`] then gives the sentence a person can act on.

use std::collections::{HashMap, HashSet};

use crate::{
    GraphError,
    allow::AllowList,
    evaluate::MAX_EXPRESSION_DEPTH,
    model::{Argument, Constant, Device, Graph, Node, Op, SymExpr, SymFunction, TensorMeta, ValueMeta},
};

/// What a graph may hold. Counts are of the graph with its nested graphs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Nodes.
    pub max_nodes: usize,
    /// Depth of nested arguments, expressions and graphs, each.
    pub max_nesting: usize,
    /// Declared symbols.
    pub max_symbols: usize,
    /// Bytes of all constants.
    pub max_constant_bytes: usize,
    /// Bytes of any name.
    pub max_name_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_nodes: 50_000,
            max_nesting: MAX_EXPRESSION_DEPTH,
            max_symbols: 256,
            max_constant_bytes: 4 << 20,
            max_name_bytes: 1024,
        }
    }
}

/// What a request's sender may have the executor resolve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trust {
    /// What the allow-list names.
    AllowList,
    /// Also any registered operator, and objects that the frontend makes: the sender is trusted with a frontend.
    Frontend,
}

/// Checks every rule.
///
/// # Errors
/// The first rule that is broken, with the node it was found in.
pub fn validate(graph: &Graph, limits: &Limits, allow: &AllowList, trust: Trust) -> Result<(), GraphError> {
    limit("symbols", graph.symbols.len(), limits.max_symbols)?;
    let mut symbols = HashSet::new();
    for symbol in &graph.symbols {
        name("symbol", &symbol.name, limits)?;
        if !symbols.insert(symbol.name.as_str()) {
            return Err(GraphError::DuplicateSymbol { symbol: symbol.name.clone() });
        }
        if let (Some(min), Some(max)) = (symbol.min, symbol.max)
            && min > max
        {
            return Err(GraphError::BadExpression {
                problem: format!("symbol {:?} has min {min} above max {max}", symbol.name),
            });
        }
    }
    let mut validator = Validator { limits, allow, trust, symbols, n_nodes: 0, constant_bytes: 0 };
    validator.graph(graph, 0)
}

fn limit(what: &'static str, found: usize, limit: usize) -> Result<(), GraphError> {
    if found > limit { Err(GraphError::TooLarge { what, found, limit }) } else { Ok(()) }
}

fn name(what: &'static str, name: &str, limits: &Limits) -> Result<(), GraphError> {
    if name.is_empty() || name.len() > limits.max_name_bytes {
        return Err(GraphError::BadName { what, n_bytes: name.len(), limit: limits.max_name_bytes });
    }
    Ok(())
}

/// What an opaque object is made from is a name or a short description, never its data.
const MAX_OPAQUE_BYTES: usize = 64 << 10;

struct Validator<'a> {
    limits: &'a Limits,
    allow: &'a AllowList,
    trust: Trust,
    symbols: HashSet<&'a str>,
    n_nodes: usize,
    constant_bytes: usize,
}

/// What a node of one graph may refer to.
struct Scope<'a> {
    /// Position of every node of the graph.
    positions: HashMap<&'a str, usize>,
    /// Position of the node being checked.
    here: usize,
    depth: usize,
}

impl<'a> Validator<'a> {
    fn graph(&mut self, graph: &'a Graph, depth: usize) -> Result<(), GraphError> {
        limit("levels of nested graphs", depth, self.limits.max_nesting)?;
        if depth > 0 && !graph.symbols.is_empty() {
            return Err(GraphError::MisplacedSymbols);
        }
        self.n_nodes += graph.nodes.len();
        limit("nodes", self.n_nodes, self.limits.max_nodes)?;

        let attributes = self.attributes(graph, depth)?;
        let mut scope = Scope { positions: HashMap::with_capacity(graph.nodes.len()), here: 0, depth };
        for (position, node) in graph.nodes.iter().enumerate() {
            name("node", &node.name, self.limits)?;
            if scope.positions.insert(&node.name, position).is_some() {
                return Err(GraphError::DuplicateNode { node: node.name.clone() });
            }
        }
        match graph.nodes.last() {
            Some(Node { op: Op::Output { .. }, .. }) => {}
            _ => return Err(GraphError::NoOutput),
        }
        let mut inputs_over = false;
        for (position, node) in graph.nodes.iter().enumerate() {
            let is_input = matches!(node.op, Op::Placeholder { .. });
            let is_last = position + 1 == graph.nodes.len();
            if (is_input && inputs_over) || (matches!(node.op, Op::Output { .. }) && !is_last) {
                return Err(GraphError::MisplacedNode { node: node.name.clone() });
            }
            inputs_over |= !is_input;
            scope.here = position;
            self.op(&node.op, &attributes, &scope).map_err(|error| error.in_node(&node.name))?;
        }
        Ok(())
    }

    /// The names that get_attr and call_module may use; true: a nested graph.
    fn attributes(&mut self, graph: &'a Graph, depth: usize) -> Result<HashMap<&'a str, bool>, GraphError> {
        let mut names = HashMap::new();
        for constant in &graph.constants {
            self.constant(constant)?;
            if names.insert(constant.name.as_str(), false).is_some() {
                return Err(GraphError::DuplicateAttribute { attribute: constant.name.clone() });
            }
        }
        for sub in &graph.subgraphs {
            name("subgraph", &sub.name, self.limits)?;
            if names.insert(sub.name.as_str(), true).is_some() {
                return Err(GraphError::DuplicateAttribute { attribute: sub.name.clone() });
            }
            self.graph(&sub.graph, depth + 1)?;
        }
        Ok(names)
    }

    fn constant(&mut self, constant: &'a Constant) -> Result<(), GraphError> {
        name("constant", &constant.name, self.limits)?;
        self.constant_bytes = self.constant_bytes.saturating_add(constant.data.len());
        limit("bytes of constants", self.constant_bytes, self.limits.max_constant_bytes)?;
        let bad = |problem: String| GraphError::BadConstant { constant: constant.name.clone(), problem };
        self.tensor(&constant.meta).map_err(|error| bad(error.to_string()))?;
        let integers = |exprs: &[SymExpr]| -> Option<Vec<u64>> {
            exprs
                .iter()
                .map(|expr| match expr {
                    SymExpr::Int(value) => u64::try_from(*value).ok(),
                    _ => None,
                })
                .collect()
        };
        let (Some(sizes), Some(strides)) = (integers(&constant.meta.sizes), integers(&constant.meta.strides)) else {
            return Err(bad("its sizes and strides must be integers from 0 up".into()));
        };
        let mut expected = 1u64;
        for (size, stride) in sizes.iter().zip(&strides).rev() {
            if *size > 1 && *stride != expected {
                return Err(bad("it must be contiguous".into()));
            }
            expected = expected.saturating_mul((*size).max(1));
        }
        let n_elements = sizes.iter().fold(1u64, |product, &size| product.saturating_mul(size));
        let n_bytes = constant.data.len() as u64;
        let fits =
            if n_elements == 0 { n_bytes == 0 } else { n_bytes.is_multiple_of(n_elements) && n_bytes >= n_elements };
        if !fits {
            return Err(bad(format!("{n_bytes} bytes do not hold {n_elements} elements of {}", constant.meta.dtype)));
        }
        Ok(())
    }

    fn op(&mut self, op: &'a Op, attributes: &HashMap<&'a str, bool>, scope: &Scope<'_>) -> Result<(), GraphError> {
        match op {
            Op::Placeholder { value } => self.meta(value),
            Op::GetAttr { target } => match attributes.get(target.as_str()) {
                Some(_) => Ok(()),
                None => Err(GraphError::UnknownAttribute { attribute: target.clone() }),
            },
            Op::CallFunction { target, args, kwargs } => {
                self.allow.function(target, self.trust)?;
                if target == "builtins.getattr" {
                    match args.get(1) {
                        Some(Argument::Str(attribute)) => self.allow.attribute(attribute)?,
                        _ => return Err(GraphError::AttributeNotAllowed { attribute: "(not a string)".into() }),
                    }
                }
                self.call(args, kwargs, scope)
            }
            Op::CallMethod { method, args, kwargs } => {
                self.allow.method(method)?;
                if args.is_empty() {
                    return Err(GraphError::NoReceiver);
                }
                self.call(args, kwargs, scope)
            }
            Op::CallModule { target, args, kwargs } => {
                if attributes.get(target.as_str()) != Some(&true) {
                    return Err(GraphError::UnknownAttribute { attribute: target.clone() });
                }
                self.call(args, kwargs, scope)
            }
            Op::Output { value } => self.argument(value, scope, 0),
        }
    }

    fn call(
        &mut self,
        args: &'a [Argument],
        kwargs: &'a [(String, Argument)],
        scope: &Scope<'_>,
    ) -> Result<(), GraphError> {
        let mut names = HashSet::new();
        for (kwarg, _) in kwargs {
            name("keyword argument", kwarg, self.limits)?;
            if !names.insert(kwarg) {
                return Err(GraphError::DuplicateKeyword { keyword: kwarg.clone() });
            }
        }
        args.iter().chain(kwargs.iter().map(|(_, value)| value)).try_for_each(|value| self.argument(value, scope, 0))
    }

    fn argument(&mut self, argument: &'a Argument, scope: &Scope<'_>, depth: usize) -> Result<(), GraphError> {
        limit("levels of nested arguments", depth, self.limits.max_nesting)?;
        match argument {
            Argument::Node(name) => match scope.positions.get(name.as_str()) {
                Some(&position) if position < scope.here => Ok(()),
                Some(_) => Err(GraphError::Cycle { reference: name.clone() }),
                None => Err(GraphError::DanglingReference { reference: name.clone() }),
            },
            Argument::Int(_)
            | Argument::Float(_)
            | Argument::Bool(_)
            | Argument::None
            | Argument::Str(_)
            | Argument::Complex(..)
            | Argument::Ellipsis => Ok(()),
            Argument::Dtype(text) | Argument::Layout(text) | Argument::MemoryFormat(text) => torch_name(text),
            Argument::Device(it) => device(it),
            Argument::Slice(bounds) => [&bounds.0, &bounds.1, &bounds.2]
                .into_iter()
                .try_for_each(|bound| self.argument(bound, scope, depth + 1)),
            Argument::Tuple(items) | Argument::List(items) => {
                items.iter().try_for_each(|item| self.argument(item, scope, depth + 1))
            }
            Argument::Dict(entries) => entries.iter().try_for_each(|(key, value)| {
                if !matches!(key, Argument::Str(_) | Argument::Int(_) | Argument::Bool(_) | Argument::None) {
                    return Err(GraphError::BadDictKey);
                }
                self.argument(value, scope, depth + 1)
            }),
            Argument::SymInt(expr) | Argument::SymFloat(expr) | Argument::SymBool(expr) => self.expr(expr, 0),
            Argument::Graph(graph) => self.graph(graph, scope.depth + 1),
            Argument::Opaque { r#type, value } => self.opaque(r#type, value),
        }
    }

    fn opaque(&self, r#type: &str, value: &str) -> Result<(), GraphError> {
        if self.trust == Trust::AllowList {
            return Err(GraphError::OpaqueNotAllowed { r#type: r#type.chars().take(200).collect() });
        }
        name("opaque type", r#type, self.limits)?;
        limit("bytes of an opaque object", value.len(), MAX_OPAQUE_BYTES)
    }

    fn meta(&self, meta: &ValueMeta) -> Result<(), GraphError> {
        match meta {
            ValueMeta::Tensor(tensor) => self.tensor(tensor),
            ValueMeta::SymInt(expr) | ValueMeta::SymFloat(expr) | ValueMeta::SymBool(expr) => self.expr(expr, 0),
            ValueMeta::Constant(value) => self.constant_input(value),
            ValueMeta::Opaque(r#type) => self.opaque(r#type, ""),
        }
    }

    /// An input that always has one value: plain data without nodes in it.
    fn constant_input(&self, value: &Argument) -> Result<(), GraphError> {
        match value {
            Argument::Tuple(items) | Argument::List(items) => {
                items.iter().try_for_each(|item| self.constant_input(item))
            }
            Argument::Int(_)
            | Argument::Float(_)
            | Argument::Bool(_)
            | Argument::None
            | Argument::Str(_)
            | Argument::Complex(..)
            | Argument::Ellipsis => Ok(()),
            Argument::Dtype(text) | Argument::Layout(text) | Argument::MemoryFormat(text) => torch_name(text),
            Argument::Device(it) => device(it),
            Argument::Opaque { r#type, value } => self.opaque(r#type, value),
            _ => Err(GraphError::BadConstantInput),
        }
    }

    fn tensor(&self, tensor: &TensorMeta) -> Result<(), GraphError> {
        torch_name(&tensor.dtype)?;
        device(&tensor.device)?;
        if tensor.layout != "strided" {
            return Err(GraphError::BadTensor {
                problem: format!("its layout is {:?}, only \"strided\" compiles", tensor.layout),
            });
        }
        if tensor.sizes.len() != tensor.strides.len() {
            return Err(GraphError::BadTensor {
                problem: format!("it has {} sizes and {} strides", tensor.sizes.len(), tensor.strides.len()),
            });
        }
        limit("dimensions of a tensor", tensor.sizes.len(), 64)?;
        for expr in tensor.sizes.iter().chain(&tensor.strides).chain([&tensor.storage_offset]) {
            if let SymExpr::Int(value) = expr
                && *value < 0
            {
                return Err(GraphError::BadTensor { problem: format!("it has a size, stride or offset of {value}") });
            }
            self.expr(expr, 0)?;
        }
        Ok(())
    }

    fn expr(&self, expr: &SymExpr, depth: usize) -> Result<(), GraphError> {
        limit("levels of a symbolic expression", depth, self.limits.max_nesting)?;
        match expr {
            SymExpr::Int(_) | SymExpr::Real(_) | SymExpr::Bool(_) => Ok(()),
            SymExpr::Symbol(symbol) if self.symbols.contains(symbol.as_str()) => Ok(()),
            SymExpr::Symbol(symbol) => Err(GraphError::UndeclaredSymbol { symbol: symbol.clone() }),
            SymExpr::Call(function, operands) => {
                let arity = arity(*function);
                if !arity.contains(&operands.len()) {
                    return Err(GraphError::BadExpression {
                        problem: format!("{function:?} does not take {} operands", operands.len()),
                    });
                }
                operands.iter().try_for_each(|operand| self.expr(operand, depth + 1))
            }
        }
    }
}

/// How many operands a function takes.
pub(crate) fn arity(function: SymFunction) -> std::ops::RangeInclusive<usize> {
    use SymFunction as F;
    match function {
        F::Add | F::Mul | F::Max | F::Min | F::And | F::Or => 1..=usize::MAX,
        F::Pow
        | F::FloorDiv
        | F::CleanDiv
        | F::CeilDiv
        | F::Mod
        | F::PythonMod
        | F::IntTrueDiv
        | F::FloatTrueDiv
        | F::PowByNatural
        | F::FloatPow
        | F::Eq
        | F::Ne
        | F::Lt
        | F::Le
        | F::Gt
        | F::Ge => 2..=2,
        F::ModularIndexing | F::Where => 3..=3,
        F::ToFloat
        | F::TruncToInt
        | F::FloorToInt
        | F::CeilToInt
        | F::RoundToInt
        | F::Abs
        | F::Identity
        | F::Not
        | F::Sqrt => 1..=1,
    }
}

/// `torch.<name>` is looked up by the executor among torch's dtypes, layouts and memory formats; here only the form counts.
fn torch_name(text: &str) -> Result<(), GraphError> {
    let is_name = !text.is_empty()
        && text.len() <= 64
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if is_name { Ok(()) } else { Err(GraphError::BadTorchName { text: text.chars().take(80).collect() }) }
}

fn device(device: &Device) -> Result<(), GraphError> {
    if matches!(device.r#type.as_str(), "cpu" | "cuda" | "meta") {
        Ok(())
    } else {
        Err(GraphError::BadDevice { r#type: device.r#type.chars().take(80).collect() })
    }
}
