//! The graph as the rest of the project sees it, and its JSON form.
//!
//! The JSON form (serde's externally tagged enums, field order as declared) is the project's own language between Rust
//! and Python: the client's Python side writes it, executors read the canonical form of it, and the digest of the
//! canonical form is what a key is made of. So it must not change without a new [`crate::KEY_VERSION`].
//!
//! Deliberately absent: whether a tensor requires a gradient (compiling is for inference), and debug information other
//! than stack traces.

use serde::{Deserialize, Serialize};

/// An FX graph, or one nested in it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Graph {
    /// In execution order.
    pub nodes: Vec<Node>,
    /// Shape symbols; outermost graph only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symbols: Vec<Symbol>,
    /// Tensors by value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constants: Vec<Constant>,
    /// Nested graphs by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subgraphs: Vec<Subgraph>,
}

/// One FX node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Unique within its graph; canonical form: `n0`, `n1`, ...
    pub name: String,
    /// What it does.
    pub op: Op,
    /// The Python stack that recorded the node. Absent in canonical form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack_trace: Option<String>,
}

/// The kinds of node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    /// An input.
    Placeholder {
        /// What it looks like.
        value: ValueMeta,
    },
    /// Reads a constant or a nested graph of the same graph.
    GetAttr {
        /// Its name.
        target: String,
    },
    /// Calls an allowed function.
    CallFunction {
        /// `torch.ops.aten.mul.Tensor`, `_operator.add`, ...
        target: String,
        /// Positional arguments.
        args: Vec<Argument>,
        /// Keyword arguments in their order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        kwargs: Vec<(String, Argument)>,
    },
    /// Calls an allowed method of its first argument.
    CallMethod {
        /// The method's name.
        method: String,
        /// Positional arguments, the object first.
        args: Vec<Argument>,
        /// Keyword arguments in their order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        kwargs: Vec<(String, Argument)>,
    },
    /// Calls a nested graph.
    CallModule {
        /// Its name.
        target: String,
        /// Positional arguments.
        args: Vec<Argument>,
        /// Keyword arguments in their order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        kwargs: Vec<(String, Argument)>,
    },
    /// What the graph returns.
    Output {
        /// A node, or a structure of them.
        value: Argument,
    },
}

/// One argument of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Argument {
    /// An earlier node, by name.
    Node(String),
    /// A Python int.
    Int(i64),
    /// A Python float; in JSON a string as Python's `repr` writes it, so that `inf` and `nan` have a form.
    Float(Real),
    /// A Python bool.
    Bool(bool),
    /// None.
    None,
    /// A Python str.
    Str(String),
    /// A Python complex: real and imaginary part.
    Complex(Real, Real),
    /// `torch.<name>`.
    Dtype(String),
    /// A device.
    Device(Device),
    /// `torch.<name>`.
    Layout(String),
    /// `torch.<name>`.
    MemoryFormat(String),
    /// Start, stop, step; none is [`Argument::None`].
    Slice(Box<(Argument, Argument, Argument)>),
    /// `...`.
    Ellipsis,
    /// A tuple.
    Tuple(Vec<Argument>),
    /// A list.
    List(Vec<Argument>),
    /// A dict in its order; keys are str, int, bool or none.
    Dict(Vec<(Argument, Argument)>),
    /// A symbolic integer written into the argument.
    SymInt(SymExpr),
    /// A symbolic float.
    SymFloat(SymExpr),
    /// A symbolic bool.
    SymBool(SymExpr),
    /// A nested graph given by value.
    Graph(Box<Graph>),
    /// An object known by its type's name and a string.
    Opaque {
        /// Fully qualified.
        r#type: String,
        /// What the frontend makes it from.
        value: String,
    },
}

/// A float that compares by bits (so that `nan` equals itself and `-0.0` differs from `0.0`) and is a string in JSON.
#[derive(Debug, Clone, Copy)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits() || (self.0.is_nan() && other.0.is_nan())
    }
}

impl Serialize for Real {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_nan() {
            serializer.serialize_str("nan")
        } else {
            serializer.collect_str(&format_args!("{:?}", self.0))
        }
    }
}

impl<'de> Deserialize<'de> for Real {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Real).map_err(|_| serde::de::Error::custom(format!("not a float: {text:?}")))
    }
}

/// A device by kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// "cpu", "cuda", "meta".
    pub r#type: String,
    /// Absent: the current one. Canonical form: numbered per kind in order of first appearance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
}

/// A shape symbol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Symbol {
    /// Unique; canonical form: `s0`, `s1`, ...
    pub name: String,
    /// What heuristics should think of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<i64>,
    /// Smallest value, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<i64>,
    /// Largest value, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
}

/// An expression over symbols.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SymExpr {
    /// An integer.
    Int(i64),
    /// A symbol by name.
    Symbol(String),
    /// A float.
    Real(Real),
    /// A bool.
    Bool(bool),
    /// A function of expressions.
    Call(SymFunction, Vec<SymExpr>),
}

/// The functions of expressions; `piecewised/v1/graph.proto` says what each one means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "documented once, at the proto's SymFunction")]
pub enum SymFunction {
    Add,
    Mul,
    Pow,
    FloorDiv,
    CleanDiv,
    CeilDiv,
    Mod,
    PythonMod,
    ModularIndexing,
    Max,
    Min,
    ToFloat,
    TruncToInt,
    FloorToInt,
    CeilToInt,
    RoundToInt,
    IntTrueDiv,
    FloatTrueDiv,
    PowByNatural,
    FloatPow,
    Abs,
    Where,
    Identity,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
    Not,
    Sqrt,
}

/// What an input looks like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ValueMeta {
    /// A tensor.
    Tensor(TensorMeta),
    /// An integer with this value.
    SymInt(SymExpr),
    /// A float with this value.
    SymFloat(SymExpr),
    /// A bool with this value.
    SymBool(SymExpr),
    /// Always this value.
    Constant(Argument),
    /// An object of this type, fully qualified; another one at each call.
    Opaque(String),
}

/// A tensor without its values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorMeta {
    /// `torch.<name>`.
    pub dtype: String,
    /// Where it is.
    pub device: Device,
    /// `torch.<name>`.
    pub layout: String,
    /// In elements.
    pub sizes: Vec<SymExpr>,
    /// In elements.
    pub strides: Vec<SymExpr>,
    /// In elements.
    #[serde(default = "zero", skip_serializing_if = "is_zero")]
    pub storage_offset: SymExpr,
    /// Whether it is a `torch.nn.Parameter`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_parameter: bool,
}

fn zero() -> SymExpr {
    SymExpr::Int(0)
}

fn is_zero(expr: &SymExpr) -> bool {
    *expr == zero()
}

/// A tensor by value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    /// What `get_attr` calls it.
    pub name: String,
    /// Contiguous, with integer sizes.
    pub meta: TensorMeta,
    /// Row-major, little-endian; base64 in JSON.
    #[serde(with = "base64_bytes")]
    pub data: Vec<u8>,
}

/// A nested graph with its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subgraph {
    /// What `get_attr` and `call_module` call it.
    pub name: String,
    /// The graph.
    pub graph: Graph,
}

mod base64_bytes {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
