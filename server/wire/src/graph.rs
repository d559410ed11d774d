//! Graphs and nodes.

use piecewised_graph::model::{Argument, Constant, Graph, Node, Op, Subgraph, Symbol};
use piecewised_proto::v1;

use crate::{
    WireError,
    value::{argument_from, argument_to, arguments_from, arguments_to, meta_from, meta_to, tensor_from, tensor_to},
};

/// The graph of a message.
///
/// # Errors
/// [`WireError`] where something required is absent, with the node's name.
pub fn graph_from_proto(graph: v1::Graph) -> Result<Graph, WireError> {
    Ok(Graph {
        nodes: graph.nodes.into_iter().map(node_from).collect::<Result<_, _>>()?,
        symbols: graph.symbols.into_iter().map(symbol_from).collect(),
        constants: graph.constants.into_iter().map(constant_from).collect::<Result<_, _>>()?,
        subgraphs: graph.subgraphs.into_iter().map(subgraph_from).collect::<Result<_, _>>()?,
    })
}

/// The message of a graph.
pub fn graph_to_proto(graph: &Graph) -> v1::Graph {
    v1::Graph {
        nodes: graph.nodes.iter().map(node_to).collect(),
        symbols: graph.symbols.iter().map(symbol_to).collect(),
        constants: graph
            .constants
            .iter()
            .map(|constant| v1::Constant {
                name: constant.name.clone(),
                meta: Some(tensor_to(&constant.meta)),
                data: constant.data.clone(),
            })
            .collect(),
        subgraphs: graph
            .subgraphs
            .iter()
            .map(|sub| v1::Subgraph { name: sub.name.clone(), graph: Some(graph_to_proto(&sub.graph)) })
            .collect(),
    }
}

fn node_from(node: v1::Node) -> Result<Node, WireError> {
    let name = node.name;
    let op = node
        .op
        .ok_or_else(|| {
            WireError::new(
                "UNKNOWN_OP",
                "the kind of node is not set, or is one that this daemon does not know; known are placeholder, get_attr, \
                 call_function, call_method, call_module and output",
            )
        })
        .and_then(op_from)
        .map_err(|error| error.in_node(&name))?;
    Ok(Node { name, op, stack_trace: node.debug.map(|debug| debug.stack_trace).filter(|trace| !trace.is_empty()) })
}

fn op_from(op: v1::node::Op) -> Result<Op, WireError> {
    use v1::node::Op as Wire;
    Ok(match op {
        Wire::Placeholder(v1::Placeholder { value }) => {
            Op::Placeholder { value: meta_from(value.unwrap_or_default())? }
        }
        Wire::GetAttr(v1::GetAttr { target }) => Op::GetAttr { target },
        Wire::CallFunction(call) => Op::CallFunction {
            target: call.target,
            args: arguments_from(call.args)?,
            kwargs: kwargs_from(call.kwargs)?,
        },
        Wire::CallMethod(call) => {
            Op::CallMethod { method: call.method, args: arguments_from(call.args)?, kwargs: kwargs_from(call.kwargs)? }
        }
        Wire::CallModule(call) => {
            Op::CallModule { target: call.target, args: arguments_from(call.args)?, kwargs: kwargs_from(call.kwargs)? }
        }
        Wire::Output(v1::Output { value }) => Op::Output { value: argument_from(value.unwrap_or_default())? },
    })
}

fn node_to(node: &Node) -> v1::Node {
    use v1::node::Op as Wire;
    let op = match &node.op {
        Op::Placeholder { value } => Wire::Placeholder(v1::Placeholder { value: Some(meta_to(value)) }),
        Op::GetAttr { target } => Wire::GetAttr(v1::GetAttr { target: target.clone() }),
        Op::CallFunction { target, args, kwargs } => Wire::CallFunction(v1::CallFunction {
            target: target.clone(),
            args: arguments_to(args),
            kwargs: kwargs_to(kwargs),
        }),
        Op::CallMethod { method, args, kwargs } => Wire::CallMethod(v1::CallMethod {
            method: method.clone(),
            args: arguments_to(args),
            kwargs: kwargs_to(kwargs),
        }),
        Op::CallModule { target, args, kwargs } => Wire::CallModule(v1::CallModule {
            target: target.clone(),
            args: arguments_to(args),
            kwargs: kwargs_to(kwargs),
        }),
        Op::Output { value } => Wire::Output(v1::Output { value: Some(argument_to(value)) }),
    };
    v1::Node {
        name: node.name.clone(),
        op: Some(op),
        debug: node.stack_trace.as_ref().map(|trace| v1::DebugInfo { stack_trace: trace.clone() }),
    }
}

fn kwargs_from(kwargs: Vec<v1::KeywordArgument>) -> Result<Vec<(String, Argument)>, WireError> {
    kwargs.into_iter().map(|kwarg| Ok((kwarg.name, argument_from(kwarg.value.unwrap_or_default())?))).collect()
}

fn kwargs_to(kwargs: &[(String, Argument)]) -> Vec<v1::KeywordArgument> {
    kwargs
        .iter()
        .map(|(name, value)| v1::KeywordArgument { name: name.clone(), value: Some(argument_to(value)) })
        .collect()
}

fn symbol_from(symbol: v1::Symbol) -> Symbol {
    Symbol { name: symbol.name, hint: symbol.hint, min: symbol.min, max: symbol.max }
}

fn symbol_to(symbol: &Symbol) -> v1::Symbol {
    v1::Symbol { name: symbol.name.clone(), hint: symbol.hint, min: symbol.min, max: symbol.max }
}

fn constant_from(constant: v1::Constant) -> Result<Constant, WireError> {
    let meta = constant
        .meta
        .ok_or_else(|| WireError::new("BAD_CONSTANT", format!("constant {:?} has no metadata", constant.name)))?;
    Ok(Constant { name: constant.name, meta: tensor_from(meta)?, data: constant.data })
}

fn subgraph_from(sub: v1::Subgraph) -> Result<Subgraph, WireError> {
    Ok(Subgraph { name: sub.name, graph: graph_from_proto(sub.graph.unwrap_or_default())? })
}
