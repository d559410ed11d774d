//! Rules, canonical form and keys; `arbitrary` makes the graphs that the property tests use.
#![allow(clippy::unwrap_used)]

mod arbitrary;
mod canonical;
mod difference;
mod evaluate;
mod explain;
mod guards;
mod handle;
mod key;
mod rules;

use crate::{
    AllowList,
    model::{Argument, Device, Graph, Node, Op, SymExpr, Symbol, TensorMeta, ValueMeta},
};

pub(crate) fn allow() -> AllowList {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    AllowList::new(
        names(&["_operator.add", "torch.ops.aten.mul.Tensor", "builtins.getattr", "torch.ops.higher_order.cond"]),
        names(&["view", "to"]),
        names(&["shape", "dtype"]),
    )
}

pub(crate) fn node(name: &str, op: Op) -> Node {
    Node { name: name.into(), op, stack_trace: Some(format!("File {name}.py")) }
}

pub(crate) fn call(target: &str, args: Vec<Argument>) -> Op {
    Op::CallFunction { target: target.into(), args, kwargs: vec![] }
}

pub(crate) fn reference(name: &str) -> Argument {
    Argument::Node(name.into())
}

pub(crate) fn sym(name: &str) -> SymExpr {
    SymExpr::Symbol(name.into())
}

pub(crate) fn tensor(sizes: Vec<SymExpr>) -> TensorMeta {
    let strides = vec![SymExpr::Int(1); sizes.len()];
    TensorMeta {
        dtype: "float32".into(),
        device: Device { r#type: "cuda".into(), index: Some(3) },
        layout: "strided".into(),
        sizes,
        strides,
        storage_offset: SymExpr::Int(0),
        is_parameter: false,
    }
}

pub(crate) fn symbol(name: &str) -> Symbol {
    Symbol { name: name.into(), hint: Some(64), min: Some(2), max: None }
}

/// `x + x.view(s)`, with the size `s` as an input.
pub(crate) fn small(names: [&str; 4], symbol_name: &str) -> Graph {
    let [size, x, viewed, sum] = names;
    Graph {
        nodes: vec![
            node(size, Op::Placeholder { value: ValueMeta::SymInt(sym(symbol_name)) }),
            node(x, Op::Placeholder { value: ValueMeta::Tensor(tensor(vec![sym(symbol_name), SymExpr::Int(8)])) }),
            node(
                viewed,
                Op::CallMethod { method: "view".into(), args: vec![reference(x), reference(size)], kwargs: vec![] },
            ),
            node(sum, call("_operator.add", vec![reference(x), reference(viewed)])),
            node("out", Op::Output { value: Argument::Tuple(vec![reference(sum)]) }),
        ],
        symbols: vec![symbol(symbol_name)],
        ..Graph::default()
    }
}
