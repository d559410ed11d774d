//! Graphs written in Rust.
//!
//! ```no_run
//! use piecewised_tch::GraphBuilder;
//! use tch::{Device, Kind};
//!
//! # fn main() -> piecewised_tch::Result<()> {
//! let mut graph = GraphBuilder::new(Device::Cpu);
//! let n = graph.symbol("n");
//! let x = graph.tensor("x", Kind::Float, [n, 64.into()]);
//! let weight = graph.tensor("weight", Kind::Float, [64.into(), 64.into()]);
//! let product = graph.call("torch.matmul", [x.into(), weight.into()]);
//! let gated = graph.call_with("torch._C._nn.gelu", [product.into()], [("approximate", "tanh".into())]);
//! let graph = graph.finish([gated])?;
//! # Ok(())
//! # }
//! ```
//!
//! What a builder makes has the form that the daemon demands ([`piecewised_graph::validate`]); which functions there are is the daemon's torch's
//! to say, when it is asked to compile.

use std::collections::HashSet;

use piecewised_graph::{
    AllowList, GraphError, Limits, Trust,
    model::{self, Argument, Constant, Graph, Op, Real, SymExpr, SymFunction, Symbol, TensorMeta, ValueMeta},
    validate,
};
use tch::{Device, Kind, TchError, Tensor};

use crate::{Error, Result, dtype};

/// Makes a [`Graph`], node by node. Mistakes are kept and reported by [`Self::finish`].
#[derive(Debug)]
pub struct GraphBuilder {
    graph: Graph,
    device: Device,
    names: HashSet<String>,
    n_inputs: usize,
    problem: Option<String>,
}

/// A value of the graph that is being built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value(String);

/// A size: a number, a symbol, or an expression of both.
#[derive(Debug, Clone, PartialEq)]
pub struct Size {
    expr: SymExpr,
    /// The placeholder, where the size is a symbol itself.
    input: Option<Value>,
}

/// An argument of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Arg(Argument);

impl GraphBuilder {
    /// A graph whose tensors are on `device` (of which only the kind counts).
    pub fn new(device: Device) -> Self {
        Self { graph: Graph::default(), device, names: HashSet::new(), n_inputs: 0, problem: None }
    }

    /// A size that is known at the call only, and an integer input with its value. The first one is what calls are dispatched on: the plan's ranges
    /// are its values. It has to be a dimension of some input tensor.
    pub fn symbol(&mut self, name: &str) -> Size {
        let expr = SymExpr::Symbol(name.into());
        self.graph.symbols.push(Symbol { name: name.into(), hint: None, min: None, max: None });
        let value = self.input(name, ValueMeta::SymInt(expr.clone()));
        Size { expr, input: Some(value) }
    }

    /// Bounds of a symbol's values, both inclusive. For those that are not dispatched on: the plan's ranges bound the first.
    pub fn bound(&mut self, symbol: &Size, min: i64, max: i64) {
        let declared = self.graph.symbols.iter_mut().find(|known| SymExpr::Symbol(known.name.clone()) == symbol.expr);
        match declared {
            Some(declared) => (declared.min, declared.max) = (Some(min), Some(max)),
            None => self.complain(format!("{} has bounds and is not a symbol of this graph", symbol.expr)),
        }
    }

    /// An input tensor, contiguous, on the graph's device.
    pub fn tensor(&mut self, name: &str, kind: Kind, sizes: impl IntoIterator<Item = Size>) -> Value {
        let sizes: Vec<SymExpr> = sizes.into_iter().map(|size| size.expr).collect();
        let strides = contiguous(&sizes);
        self.strided(name, kind, sizes, strides)
    }

    /// An input tensor with strides of its own, in elements.
    pub fn tensor_with_strides(
        &mut self,
        name: &str,
        kind: Kind,
        sizes: impl IntoIterator<Item = Size>,
        strides: impl IntoIterator<Item = Size>,
    ) -> Value {
        let exprs = |sizes: &mut dyn Iterator<Item = Size>| sizes.map(|size| size.expr).collect();
        self.strided(name, kind, exprs(&mut sizes.into_iter()), exprs(&mut strides.into_iter()))
    }

    /// A tensor whose values are part of the graph, on the graph's device: they are in the request, in its key and in the artifact, and no input of the
    /// calls. For tables and masks; weights are inputs.
    pub fn constant(&mut self, name: &str, value: &Tensor) -> Value {
        match read(value) {
            Ok((kind, sizes, data)) => {
                let sizes: Vec<SymExpr> = sizes.into_iter().map(SymExpr::Int).collect();
                let strides = contiguous(&sizes);
                if let Some(meta) = self.meta(name, kind, sizes, strides) {
                    self.graph.constants.push(Constant { name: name.into(), meta, data });
                }
            }
            Err(error) => {
                // Behind the first line is a stack of C++.
                let error = error.to_string();
                let problem = error.lines().next().unwrap_or_default();
                self.complain(format!("the constant {name:?} can't be read: {problem}"));
            }
        }
        self.node(name, Op::GetAttr { target: name.into() })
    }

    /// Calls a function: "torch.matmul", "torch.nn.functional.silu", "torch.ops.aten.mul.Tensor", "_operator.getitem".
    pub fn call(&mut self, target: &str, args: impl IntoIterator<Item = Arg>) -> Value {
        self.call_with(target, args, [])
    }

    /// The same, with keyword arguments.
    pub fn call_with<'k>(
        &mut self,
        target: &str,
        args: impl IntoIterator<Item = Arg>,
        kwargs: impl IntoIterator<Item = (&'k str, Arg)>,
    ) -> Value {
        let (args, kwargs) = arguments(args, kwargs);
        let stem = target.rsplit('.').next().unwrap_or(target).to_owned();
        self.node(&stem, Op::CallFunction { target: target.into(), args, kwargs })
    }

    /// Calls a tensor's method: "view", "to".
    pub fn call_method(&mut self, method: &str, object: &Value, args: impl IntoIterator<Item = Arg>) -> Value {
        let args = [Arg::from(object)].into_iter().chain(args);
        let (args, kwargs) = arguments(args, []);
        self.node(method, Op::CallMethod { method: method.into(), args, kwargs })
    }

    /// The graph, which returns `outputs` as a tuple.
    ///
    /// # Errors
    /// [`Error::Build`] and [`Error::Graph`], for the first mistake.
    pub fn finish(mut self, outputs: impl IntoIterator<Item = Value>) -> Result<Graph> {
        let outputs: Vec<Argument> = outputs.into_iter().map(|value| Argument::Node(value.0)).collect();
        if outputs.is_empty() {
            self.complain("it returns nothing".into());
        }
        let unsized_symbol = self.graph.symbols.iter().find(|symbol| !self.is_some_size(&symbol.name));
        if let Some(symbol) = unsized_symbol {
            let name = symbol.name.clone();
            self.complain(format!(
                "the symbol {name:?} is no dimension of an input tensor, so that no call would say its value"
            ));
        }
        if let Some(problem) = self.problem {
            return Err(Error::Build { problem });
        }
        let name = fresh(&self.names, "output");
        let op = Op::Output { value: Argument::Tuple(outputs) };
        self.graph.nodes.push(model::Node { name, op, stack_trace: None });
        check(&self.graph)?;
        Ok(self.graph)
    }

    fn strided(&mut self, name: &str, kind: Kind, sizes: Vec<SymExpr>, strides: Vec<SymExpr>) -> Value {
        match self.meta(name, kind, sizes, strides) {
            Some(meta) => self.input(name, ValueMeta::Tensor(meta)),
            None => Value(name.into()),
        }
    }

    fn meta(&mut self, name: &str, kind: Kind, sizes: Vec<SymExpr>, strides: Vec<SymExpr>) -> Option<TensorMeta> {
        let Some(dtype) = dtype::dtype(kind) else {
            self.complain(format!("tensor {name:?} is {kind:?}, and quantised tensors are not compiled"));
            return None;
        };
        if let Some(negative) = sizes.iter().find(|size| matches!(size, SymExpr::Int(value) if *value < 0)) {
            self.complain(format!("tensor {name:?} has the size {negative}"));
        }
        let kind = match self.device {
            Device::Cpu => "cpu",
            Device::Cuda(_) => "cuda",
            other => {
                self.complain(format!("{other:?} is not compiled for; Device::Cpu and Device::Cuda are"));
                "cpu"
            }
        };
        Some(TensorMeta {
            dtype: dtype.into(),
            device: model::Device { r#type: kind.into(), index: None },
            layout: "strided".into(),
            sizes,
            strides,
            storage_offset: SymExpr::Int(0),
            is_parameter: false,
        })
    }

    fn input(&mut self, name: &str, value: ValueMeta) -> Value {
        if self.n_inputs < self.graph.nodes.len() {
            self.complain(format!("the input {name:?} comes after a call; inputs come first"));
        }
        self.n_inputs += 1;
        if !self.names.insert(name.into()) {
            self.complain(format!("two inputs are named {name:?}"));
        }
        self.graph.nodes.push(model::Node { name: name.into(), op: Op::Placeholder { value }, stack_trace: None });
        Value(name.into())
    }

    fn node(&mut self, stem: &str, op: Op) -> Value {
        let name = fresh(&self.names, stem);
        self.names.insert(name.clone());
        self.graph.nodes.push(model::Node { name: name.clone(), op, stack_trace: None });
        Value(name)
    }

    fn is_some_size(&self, symbol: &str) -> bool {
        self.graph.nodes.iter().any(|node| match &node.op {
            Op::Placeholder { value: ValueMeta::Tensor(meta) } => {
                meta.sizes.iter().any(|size| matches!(size, SymExpr::Symbol(name) if name == symbol))
            }
            _ => false,
        })
    }

    /// The first complaint is the one that is told: others may follow from it.
    fn complain(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }
}

fn fresh(names: &HashSet<String>, stem: &str) -> String {
    let numbered = (1..).map(|n| format!("{stem}_{n}"));
    let mut candidates = std::iter::once(stem.to_owned()).chain(numbered);
    candidates.find(|name| !names.contains(name)).unwrap_or_default()
}

type Arguments = (Vec<Argument>, Vec<(String, Argument)>);

fn arguments<'k>(args: impl IntoIterator<Item = Arg>, kwargs: impl IntoIterator<Item = (&'k str, Arg)>) -> Arguments {
    let kwargs = kwargs.into_iter().map(|(name, Arg(value))| (name.to_owned(), value));
    (args.into_iter().map(|Arg(value)| value).collect(), kwargs.collect())
}

/// Every rule but which functions there are.
fn check(graph: &Graph) -> std::result::Result<(), GraphError> {
    let (mut functions, mut methods) = (Vec::new(), Vec::new());
    for node in &graph.nodes {
        match &node.op {
            Op::CallFunction { target, .. } => functions.push(target.clone()),
            Op::CallMethod { method, .. } => methods.push(method.clone()),
            _ => {}
        }
    }
    validate(graph, &Limits::default(), &AllowList::new(functions, methods, []), Trust::AllowList)
}

/// A tensor's type, sizes and values, row-major.
fn read(value: &Tensor) -> std::result::Result<(Kind, Vec<i64>, Vec<u8>), TchError> {
    let value = value.f_to_device(Device::Cpu)?.f_contiguous()?;
    let kind = value.f_kind()?;
    let mut data = vec![0; value.numel() * kind.elt_size_in_bytes()];
    value.f_copy_data_u8(&mut data, value.numel())?;
    Ok((kind, value.size(), data))
}

/// The strides of a row-major tensor, in elements.
fn contiguous(sizes: &[SymExpr]) -> Vec<SymExpr> {
    let mut strides = vec![SymExpr::Int(1); sizes.len()];
    for at in (1..sizes.len()).rev() {
        strides[at - 1] = product(&strides[at], &sizes[at]);
    }
    strides
}

fn product(a: &SymExpr, b: &SymExpr) -> SymExpr {
    match (a, b) {
        (SymExpr::Int(1), other) | (other, SymExpr::Int(1)) => other.clone(),
        (SymExpr::Int(a), SymExpr::Int(b)) => SymExpr::Int(a.saturating_mul(*b)),
        (SymExpr::Call(SymFunction::Mul, factors), other) => {
            SymExpr::Call(SymFunction::Mul, factors.iter().chain([other]).cloned().collect())
        }
        (a, b) => SymExpr::Call(SymFunction::Mul, vec![a.clone(), b.clone()]),
    }
}

impl From<i64> for Size {
    fn from(value: i64) -> Self {
        Self { expr: SymExpr::Int(value), input: None }
    }
}

impl From<&Size> for Size {
    fn from(size: &Size) -> Self {
        size.clone()
    }
}

impl From<SymExpr> for Size {
    fn from(expr: SymExpr) -> Self {
        Self { expr, input: None }
    }
}

impl From<&Value> for Arg {
    fn from(value: &Value) -> Self {
        Self(Argument::Node(value.0.clone()))
    }
}

impl From<Value> for Arg {
    fn from(value: Value) -> Self {
        Self(Argument::Node(value.0))
    }
}

/// A symbol is its input; other sizes are written into the call.
impl From<Size> for Arg {
    fn from(size: Size) -> Self {
        match (size.input, size.expr) {
            (Some(value), _) => value.into(),
            (None, SymExpr::Int(value)) => value.into(),
            (None, expr) => Self(Argument::SymInt(expr)),
        }
    }
}

impl From<&Size> for Arg {
    fn from(size: &Size) -> Self {
        size.clone().into()
    }
}

impl From<i64> for Arg {
    fn from(value: i64) -> Self {
        Self(Argument::Int(value))
    }
}

impl From<f64> for Arg {
    fn from(value: f64) -> Self {
        Self(Argument::Float(Real(value)))
    }
}

impl From<bool> for Arg {
    fn from(value: bool) -> Self {
        Self(Argument::Bool(value))
    }
}

impl From<&str> for Arg {
    fn from(value: &str) -> Self {
        Self(Argument::Str(value.into()))
    }
}

/// `None` is torch's None.
impl<T: Into<Arg>> From<Option<T>> for Arg {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self(Argument::None), Into::into)
    }
}

/// A dtype; a quantised one is refused by the daemon, by its name.
impl From<Kind> for Arg {
    fn from(kind: Kind) -> Self {
        Self(Argument::Dtype(dtype::dtype(kind).map_or_else(|| format!("{kind:?}"), str::to_owned)))
    }
}

/// A list.
impl From<Vec<Arg>> for Arg {
    fn from(items: Vec<Arg>) -> Self {
        Self(Argument::List(items.into_iter().map(|Arg(value)| value).collect()))
    }
}

/// Anything else that a node can hold.
impl From<Argument> for Arg {
    fn from(argument: Argument) -> Self {
        Self(argument)
    }
}
