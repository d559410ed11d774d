//! What can be wrong with a graph. The messages are sentences for whoever sent it.

use piecewised_plan::Range;
use thiserror::Error;

/// A graph that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages say what each one is")]
pub enum GraphError {
    #[error("node {node:?}: {source}")]
    InNode { node: String, source: Box<GraphError> },
    #[error("two nodes of one graph are named {node:?}; names must be unique")]
    DuplicateNode { node: String },
    #[error("it refers to {reference:?}, and there is no such node in this graph")]
    DanglingReference { reference: String },
    #[error(
        "it refers to {reference:?}, which does not come before it: the graph has a cycle or is not in execution order"
    )]
    Cycle { reference: String },
    #[error("the graph has no output node at its end")]
    NoOutput,
    #[error("node {node:?} is out of place: placeholders come first, the one output comes last")]
    MisplacedNode { node: String },
    #[error("symbols are declared in the outermost graph, not in a nested one")]
    MisplacedSymbols,
    #[error("symbol {symbol:?} is used but not declared in Graph.symbols")]
    UndeclaredSymbol { symbol: String },
    #[error("symbol {symbol:?} is declared twice")]
    DuplicateSymbol { symbol: String },
    #[error("two constants or subgraphs of one graph are named {attribute:?}")]
    DuplicateAttribute { attribute: String },
    #[error("there is no constant or subgraph {attribute:?} in this graph for it")]
    UnknownAttribute { attribute: String },
    #[error("keyword argument {keyword:?} is given twice")]
    DuplicateKeyword { keyword: String },
    #[error(
        "{target:?} is not a function that graphs may call here: only tensor functions, registered operators and tensor \
         methods of the daemon's torch are; compile this piece locally, or split it at this call"
    )]
    TargetNotAllowed { target: String },
    #[error(
        "attribute {attribute:?} may not be read: only a tensor's own attributes (shape, dtype, device, T, ...) may"
    )]
    AttributeNotAllowed { attribute: String },
    #[error(
        "an object of type {type:?} needs a frontend that makes it: name one in CompileRequest.frontend, or compile this piece locally"
    )]
    OpaqueNotAllowed { r#type: String },
    #[error("a method call needs its object as the first argument")]
    NoReceiver,
    #[error("a dict's keys must be str, int, bool or none")]
    BadDictKey,
    #[error("an input's constant value must be plain data")]
    BadConstantInput,
    #[error("constant {constant:?} is not usable: {problem}")]
    BadConstant { constant: String, problem: String },
    #[error("a tensor is not usable: {problem}")]
    BadTensor { problem: String },
    #[error("a symbolic expression is not usable: {problem}")]
    BadExpression { problem: String },
    #[error(
        "{text:?} is not the name of a torch dtype, layout or memory format (as in \"float32\", without \"torch.\")"
    )]
    BadTorchName { text: String },
    #[error("device type {type:?} is unknown; known are cpu, cuda and meta")]
    BadDevice { r#type: String },
    #[error("a {what}'s name has {n_bytes} bytes; 1 to {limit} are possible")]
    BadName { what: &'static str, n_bytes: usize, limit: usize },
    #[error("the graph has {found} {what}, the limit is {limit}; split it into smaller pieces")]
    TooLarge { what: &'static str, found: usize, limit: usize },
    #[error(
        "none of the graph's symbolic integer inputs is a plain symbol, so there is no input to dispatch on; pass the \
         symbol itself as an input"
    )]
    NothingToDispatchOn,
    #[error("the graph has no symbolic input, so its plan must come to exactly one entry; it has {n_entries}")]
    StaticGraph { n_entries: usize },
    #[error("there are {n_hints} hints for {n_entries} entries of the plan; give one for each, or none")]
    BadHints { n_hints: usize, n_entries: usize },
    #[error(
        "hint {hint} lies outside of {range}, the range that it is for; give a size of that range, or 0 to leave the choice to the daemon"
    )]
    HintOutside { hint: i64, range: Range },
}

impl GraphError {
    /// Says in which node it was. The innermost node wins: it is the one to look at.
    pub(crate) fn in_node(self, node: &str) -> Self {
        match self {
            Self::InNode { .. } | Self::MisplacedNode { .. } | Self::DuplicateNode { .. } => self,
            source => Self::InNode { node: node.to_owned(), source: Box::new(source) },
        }
    }

    /// The stable name of this error in `google.rpc.ErrorInfo`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InNode { source, .. } => source.reason(),
            Self::DuplicateNode { .. } => "DUPLICATE_NODE",
            Self::DanglingReference { .. } => "DANGLING_REFERENCE",
            Self::Cycle { .. } => "CYCLE",
            Self::NoOutput => "NO_OUTPUT",
            Self::MisplacedNode { .. } => "MISPLACED_NODE",
            Self::MisplacedSymbols => "MISPLACED_SYMBOLS",
            Self::UndeclaredSymbol { .. } => "UNDECLARED_SYMBOL",
            Self::DuplicateSymbol { .. } => "DUPLICATE_SYMBOL",
            Self::DuplicateAttribute { .. } => "DUPLICATE_ATTRIBUTE",
            Self::UnknownAttribute { .. } => "UNKNOWN_ATTRIBUTE",
            Self::DuplicateKeyword { .. } => "DUPLICATE_KEYWORD",
            Self::TargetNotAllowed { .. } => "TARGET_NOT_ALLOWED",
            Self::AttributeNotAllowed { .. } => "ATTRIBUTE_NOT_ALLOWED",
            Self::OpaqueNotAllowed { .. } => "OPAQUE_NOT_ALLOWED",
            Self::NoReceiver => "NO_RECEIVER",
            Self::BadDictKey => "BAD_DICT_KEY",
            Self::BadConstantInput => "BAD_CONSTANT_INPUT",
            Self::BadConstant { .. } => "BAD_CONSTANT",
            Self::BadTensor { .. } => "BAD_TENSOR",
            Self::BadExpression { .. } => "BAD_EXPRESSION",
            Self::BadTorchName { .. } => "BAD_TORCH_NAME",
            Self::BadDevice { .. } => "BAD_DEVICE",
            Self::BadName { .. } => "BAD_NAME",
            Self::TooLarge { .. } => "GRAPH_TOO_LARGE",
            Self::NothingToDispatchOn => "NOTHING_TO_DISPATCH_ON",
            Self::StaticGraph { .. } => "STATIC_GRAPH",
            Self::BadHints { .. } | Self::HintOutside { .. } => "BAD_HINTS",
        }
    }

    /// The node in which it was found.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::InNode { node, .. } | Self::MisplacedNode { node } | Self::DuplicateNode { node } => Some(node),
            _ => None,
        }
    }
}
