//! What counts and what does not.

use expect_test::expect;
use proptest::prelude::*;

use super::{arbitrary::graphs, *};
use crate::{
    Limits, Trust, canonicalise,
    model::{Constant, Subgraph, SymFunction},
    validate,
};

fn json(graph: &Graph) -> String {
    canonicalise(graph).unwrap().json
}

#[test]
fn the_form_is_what_it_was() {
    // A change here is a change of every key: it needs a new KEY_VERSION.
    expect![[r#"{"nodes":[{"name":"n0","op":{"placeholder":{"value":{"sym_int":{"symbol":"s0"}}}}},{"name":"n1","op":{"placeholder":{"value":{"tensor":{"dtype":"float32","device":{"type":"cuda","index":0},"layout":"strided","sizes":[{"symbol":"s0"},{"int":8}],"strides":[{"int":1},{"int":1}]}}}}},{"name":"n2","op":{"call_method":{"method":"view","args":[{"node":"n1"},{"node":"n0"}]}}},{"name":"n3","op":{"call_function":{"target":"_operator.add","args":[{"node":"n1"},{"node":"n2"}]}}},{"name":"n4","op":{"output":{"value":{"tuple":[{"node":"n3"}]}}}}],"symbols":[{"name":"s0"}]}"#]]
    .assert_eq(&json(&small(["s", "x", "v", "a"], "s27")));
}

#[test]
fn names_devices_traces_and_the_dispatched_symbols_bounds_do_not_count() {
    let one = small(["s", "x", "v", "a"], "s27");
    let mut other = small(["n4", "n3", "n2", "n1"], "zzz");
    other.symbols[0] = Symbol { name: "zzz".into(), hint: Some(9), min: Some(0), max: Some(99) };
    other.symbols.push(symbol("unused"));
    other.nodes.iter_mut().for_each(|node| node.stack_trace = None);
    if let Op::Placeholder { value: ValueMeta::Tensor(meta) } = &mut other.nodes[1].op {
        meta.device.index = Some(0);
    }
    other.constants.push(Constant { name: "unread".into(), meta: tensor(vec![]), data: vec![0; 4] });
    assert_eq!(json(&one), json(&other));
    let canonical = canonicalise(&one).unwrap();
    assert_eq!((canonical.dispatch_argument, canonical.n_arguments), (Some(0), 2));
    assert_eq!(canonical.device_types, ["cuda"]);
}

#[test]
fn what_can_change_the_code_counts() {
    let base = small(["s", "x", "v", "a"], "s");
    let differs = |change: fn(&mut Graph)| {
        let mut graph = base.clone();
        change(&mut graph);
        assert_ne!(json(&base), json(&graph));
    };
    differs(|graph| graph.nodes.swap(0, 1));
    differs(|graph| {
        graph.nodes[3].op = call("_operator.add", vec![reference("v"), reference("x")]);
    });
    differs(|graph| {
        graph.nodes[3].op = call("torch.ops.aten.mul.Tensor", vec![reference("x"), reference("v")]);
    });
    differs(|graph| {
        graph.nodes[1].op =
            Op::Placeholder { value: ValueMeta::Tensor(tensor(vec![SymExpr::Int(8), SymExpr::Symbol("s".into())])) };
    });
    differs(|graph| graph.nodes[4].op = Op::Output { value: reference("a") });
    let float = |value: f64| {
        let mut graph = base.clone();
        graph.nodes[3].op = call("_operator.add", vec![Argument::Float(crate::model::Real(value))]);
        json(&graph)
    };
    assert_ne!(float(0.0), float(-0.0));
    assert_ne!(float(1.0), json(&base));
    assert_eq!(float(f64::NAN), float(-f64::NAN));
}

/// sympy orders the operands of a sum by the symbols' names, so renaming reorders them.
#[test]
fn operands_that_commute_are_sorted_after_renaming() {
    let graph = |first: &str, second: &str, swapped: bool| {
        let mut operands = vec![sym(first), SymExpr::Call(SymFunction::Mul, vec![SymExpr::Int(2), sym(second)])];
        if swapped {
            operands.reverse();
        }
        let total = SymExpr::Call(SymFunction::Add, operands);
        Graph {
            nodes: vec![
                node("t", Op::Placeholder { value: ValueMeta::Tensor(tensor(vec![total])) }),
                node("a", Op::Placeholder { value: ValueMeta::SymInt(sym(first)) }),
                node("b", Op::Placeholder { value: ValueMeta::SymInt(sym(second)) }),
                node("o", Op::Output { value: reference("t") }),
            ],
            symbols: vec![symbol(first), symbol(second)],
            ..Graph::default()
        }
    };
    assert_eq!(json(&graph("a", "b", false)), json(&graph("y", "x", true)));
    let divided = |swapped: bool| {
        let mut graph = graph("a", "b", false);
        let mut operands = vec![sym("a"), sym("b")];
        if swapped {
            operands.reverse();
        }
        let quotient = SymExpr::Call(SymFunction::FloorDiv, operands);
        graph.nodes[0].op = Op::Placeholder { value: ValueMeta::Tensor(tensor(vec![quotient])) };
        json(&graph)
    };
    assert_ne!(divided(false), divided(true));
}

#[test]
fn devices_are_told_apart_within_a_graph() {
    let graph = |indices: [u32; 2]| {
        let mut graph = small(["s", "x", "v", "a"], "s");
        for (position, index) in indices.into_iter().enumerate() {
            let device = Argument::Device(Device { r#type: "cuda".into(), index: Some(index) });
            graph.nodes[2 + position].op = call("_operator.add", vec![device]);
        }
        json(&graph)
    };
    assert_eq!(graph([3, 5]), graph([3, 7]));
    assert_ne!(graph([3, 5]), graph([3, 3]));
}

#[test]
fn subgraphs_follow_the_order_of_their_use() {
    let body = |target: &str| Graph {
        nodes: vec![
            node("y", Op::Placeholder { value: ValueMeta::Tensor(tensor(vec![sym("s")])) }),
            node("z", call(target, vec![reference("y")])),
            node("o", Op::Output { value: reference("z") }),
        ],
        ..Graph::default()
    };
    let graph = |names: [&str; 2], swapped: bool| {
        let mut graph = small(["s", "x", "v", "a"], "s");
        graph.nodes[2].op = Op::GetAttr { target: names[0].into() };
        graph.nodes[3].op = Op::GetAttr { target: names[1].into() };
        graph.subgraphs = vec![
            Subgraph { name: names[0].into(), graph: body("_operator.add") },
            Subgraph { name: names[1].into(), graph: body("torch.ops.aten.mul.Tensor") },
        ];
        if swapped {
            graph.subgraphs.reverse();
        }
        json(&graph)
    };
    assert_eq!(graph(["then", "else"], false), graph(["b", "a"], true));
}

#[test]
fn there_must_be_something_to_dispatch_on_if_anything_is_symbolic() {
    let mut graph = small(["s", "x", "v", "a"], "s");
    let double = SymExpr::Call(SymFunction::Mul, vec![SymExpr::Int(2), sym("s")]);
    graph.nodes[0].op = Op::Placeholder { value: ValueMeta::SymInt(double) };
    assert_eq!(canonicalise(&graph).unwrap_err().reason(), "NOTHING_TO_DISPATCH_ON");
    graph.nodes[0].op = Op::Placeholder { value: ValueMeta::SymInt(SymExpr::Int(4)) };
    assert_eq!(canonicalise(&graph).unwrap().dispatch_argument, None);
}

proptest! {
    /// Whatever is decoded, the validator and the canonicaliser answer; they do not panic, and what passes is stable.
    #[test]
    fn canonical_form_is_a_fixed_point_and_ignores_names(graph in graphs()) {
        if validate(&graph, &Limits::default(), &allow(), Trust::AllowList).is_ok()
            && let Ok(canonical) = canonicalise(&graph)
        {
            let again: Graph = serde_json::from_str(&canonical.json).unwrap();
            validate(&again, &Limits::default(), &allow(), Trust::AllowList).unwrap();
            prop_assert_eq!(&canonicalise(&again).unwrap().json, &canonical.json);
        }
    }

    /// Bytes that happen to be JSON are answered too.
    #[test]
    fn text_of_any_kind_is_answered(text in "[\\[\\]{}:,\"a-z0-9_ ]{0,200}") {
        if let Ok(graph) = serde_json::from_str::<Graph>(&text) {
            let _ = validate(&graph, &Limits::default(), &allow(), Trust::AllowList);
        }
    }
}
