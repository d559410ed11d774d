//! Graphs for property tests: mostly well-formed, with names from a small pool so that collisions, dangling references
//! and cycles happen often.

use proptest::prelude::*;

use super::{node, tensor};
use crate::model::{Argument, Device, Graph, Node, Op, Real, Subgraph, SymExpr, SymFunction, Symbol, ValueMeta};

fn name() -> impl Strategy<Value = String> {
    prop_oneof![8 => (0..12u8).prop_map(|i| format!("v{i}")), 1 => Just(String::new()), 1 => any::<String>()]
}

fn symbol() -> impl Strategy<Value = String> {
    (0..4u8).prop_map(|i| format!("s{i}"))
}

pub(crate) fn exprs() -> impl Strategy<Value = SymExpr> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(SymExpr::Int),
        symbol().prop_map(SymExpr::Symbol),
        any::<f64>().prop_map(|value| SymExpr::Real(Real(value))),
        any::<bool>().prop_map(SymExpr::Bool),
    ];
    leaf.prop_recursive(4, 12, 3, |inner| {
        let function = prop_oneof![
            Just(SymFunction::Add),
            Just(SymFunction::Mul),
            Just(SymFunction::FloorDiv),
            Just(SymFunction::Where),
            Just(SymFunction::Not),
            Just(SymFunction::Eq),
        ];
        (function, prop::collection::vec(inner, 0..4))
            .prop_map(|(function, operands)| SymExpr::Call(function, operands))
    })
}

pub(crate) fn arguments() -> impl Strategy<Value = Argument> {
    let text = || "[a-z0-9_.]{0,12}";
    let leaf = prop_oneof![
        6 => name().prop_map(Argument::Node),
        1 => any::<i64>().prop_map(Argument::Int),
        1 => any::<f64>().prop_map(|value| Argument::Float(Real(value))),
        1 => any::<bool>().prop_map(Argument::Bool),
        1 => Just(Argument::None),
        1 => any::<String>().prop_map(Argument::Str),
        1 => any::<(f64, f64)>().prop_map(|(re, im)| Argument::Complex(Real(re), Real(im))),
        1 => text().prop_map(Argument::Dtype),
        1 => (prop_oneof![Just("cpu"), Just("cuda"), Just("tpu")], any::<Option<u32>>())
            .prop_map(|(kind, index)| Argument::Device(Device { r#type: kind.into(), index })),
        1 => text().prop_map(Argument::Layout),
        1 => text().prop_map(Argument::MemoryFormat),
        1 => Just(Argument::Ellipsis),
        1 => exprs().prop_map(Argument::SymInt),
        1 => exprs().prop_map(Argument::SymFloat),
        1 => exprs().prop_map(Argument::SymBool),
        1 => (text(), text()).prop_map(|(r#type, value)| Argument::Opaque { r#type, value }),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        let items = || prop::collection::vec(inner.clone(), 0..4);
        prop_oneof![
            items().prop_map(Argument::Tuple),
            items().prop_map(Argument::List),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|bounds| Argument::Slice(Box::new(bounds))),
            prop::collection::vec((inner.clone(), inner.clone()), 0..3).prop_map(Argument::Dict),
        ]
    })
}

fn ops() -> impl Strategy<Value = Op> {
    let kwargs = || prop::collection::vec(("[a-c]{1}", arguments()), 0..2);
    let args = || prop::collection::vec(arguments(), 0..4);
    let target = prop_oneof![
        8 => Just("_operator.add".to_owned()),
        2 => Just("builtins.getattr".to_owned()),
        1 => any::<String>(),
    ];
    prop_oneof![
        2 => exprs().prop_map(|expr| Op::Placeholder { value: ValueMeta::SymInt(expr) }),
        2 => prop::collection::vec(exprs(), 0..3)
            .prop_map(|sizes| Op::Placeholder { value: ValueMeta::Tensor(tensor(sizes)) }),
        1 => arguments().prop_map(|value| Op::Placeholder { value: ValueMeta::Constant(value) }),
        1 => "[a-z.]{1,8}".prop_map(|name| Op::Placeholder { value: ValueMeta::Opaque(name) }),
        1 => name().prop_map(|target| Op::GetAttr { target }),
        4 => (target, args(), kwargs()).prop_map(|(target, args, kwargs)| Op::CallFunction { target, args, kwargs }),
        2 => (args(), kwargs()).prop_map(|(args, kwargs)| Op::CallMethod { method: "view".into(), args, kwargs }),
        1 => (name(), args(), kwargs())
            .prop_map(|(target, args, kwargs)| Op::CallModule { target, args, kwargs }),
    ]
}

fn flat() -> impl Strategy<Value = Graph> {
    let nodes = prop::collection::vec((prop::option::weighted(0.2, name()), ops()), 0..8);
    (nodes, arguments(), prop::collection::vec(symbol(), 0..5)).prop_map(|(nodes, output, symbols)| {
        // Usually in place: inputs first, names by position.
        let mut nodes: Vec<(Option<String>, Op)> = nodes;
        nodes.sort_by_key(|(_, op)| !matches!(op, Op::Placeholder { .. }));
        let mut nodes: Vec<Node> = nodes
            .into_iter()
            .enumerate()
            .map(|(i, (name, op))| node(&name.unwrap_or_else(|| format!("v{i}")), op))
            .collect();
        nodes.push(node("out", Op::Output { value: output }));
        let symbols =
            symbols.into_iter().map(|name| Symbol { name, hint: Some(8), min: Some(2), max: Some(64) }).collect();
        Graph { nodes, symbols, ..Graph::default() }
    })
}

/// Graphs, some with a nested one.
pub(crate) fn graphs() -> impl Strategy<Value = Graph> {
    (flat(), prop::option::weighted(0.3, flat()), name()).prop_map(|(mut graph, nested, name)| {
        if let Some(mut nested) = nested {
            nested.symbols.clear();
            graph.subgraphs.push(Subgraph { name, graph: nested });
        }
        graph
    })
}
