//! Each rule of a graph, and the graph that breaks it.

use super::*;
use crate::{
    Limits, Trust,
    model::{Constant, Subgraph, SymFunction},
    validate,
};

fn good() -> Graph {
    small(["s", "x", "v", "a"], "s27")
}

fn refused(graph: &Graph) -> crate::GraphError {
    validate(graph, &Limits::default(), &allow(), Trust::AllowList).unwrap_err()
}

/// Changes a good graph, and expects the reason and, if there is one, the node.
fn check(reason: &str, culprit: Option<&str>, change: impl FnOnce(&mut Graph)) {
    let mut graph = good();
    change(&mut graph);
    let error = refused(&graph);
    assert_eq!((error.reason(), error.node()), (reason, culprit), "{error}");
}

fn sum(graph: &mut Graph, op: Op) {
    graph.nodes[3].op = op;
}

#[test]
fn a_good_graph_passes() {
    validate(&good(), &Limits::default(), &allow(), Trust::AllowList).unwrap();
}

#[test]
fn structure() {
    check("DUPLICATE_NODE", Some("x"), |graph| graph.nodes[2].name = "x".into());
    check("DANGLING_REFERENCE", Some("a"), |graph| sum(graph, call("_operator.add", vec![reference("ghost")])));
    check("CYCLE", Some("a"), |graph| sum(graph, call("_operator.add", vec![reference("a")])));
    check("CYCLE", Some("a"), |graph| graph.nodes.swap(2, 3));
    check("NO_OUTPUT", None, |graph| drop(graph.nodes.pop()));
    check("NO_OUTPUT", None, |graph| graph.nodes.clear());
    check("MISPLACED_NODE", Some("a"), |graph| sum(graph, Op::Output { value: Argument::None }));
    check("MISPLACED_NODE", Some("a"), |graph| {
        sum(graph, Op::Placeholder { value: ValueMeta::Constant(Argument::None) });
    });
    check("BAD_NAME", None, |graph| graph.nodes[0].name = String::new());
    check("BAD_NAME", None, |graph| graph.nodes[0].name = "n".repeat(1025));
    check("UNKNOWN_ATTRIBUTE", Some("a"), |graph| sum(graph, Op::GetAttr { target: "weight".into() }));
    check("UNKNOWN_ATTRIBUTE", Some("a"), |graph| {
        sum(graph, Op::CallModule { target: "body".into(), args: vec![], kwargs: vec![] });
    });
    check("DUPLICATE_KEYWORD", Some("a"), |graph| {
        let kwargs = vec![("alpha".into(), Argument::Int(1)), ("alpha".into(), Argument::Int(2))];
        sum(graph, Op::CallFunction { target: "_operator.add".into(), args: vec![], kwargs });
    });
    check("NO_RECEIVER", Some("a"), |graph| {
        sum(graph, Op::CallMethod { method: "to".into(), args: vec![], kwargs: vec![] });
    });
}

#[test]
fn targets_outside_the_allow_list() {
    for target in ["torch.load", "os.system", "builtins.eval", "torch.ops.load_library", "", "_operator.add\0"] {
        check("TARGET_NOT_ALLOWED", Some("a"), |graph| sum(graph, call(target, vec![reference("x")])));
    }
    check("TARGET_NOT_ALLOWED", Some("a"), |graph| {
        sum(graph, Op::CallMethod { method: "__reduce_ex__".into(), args: vec![reference("x")], kwargs: vec![] });
    });
    for attribute in [Argument::Str("__class__".into()), Argument::Int(0), reference("x")] {
        check("ATTRIBUTE_NOT_ALLOWED", Some("a"), |graph| {
            sum(graph, call("builtins.getattr", vec![reference("x"), attribute]));
        });
    }
    check("OPAQUE_NOT_ALLOWED", Some("a"), |graph| {
        let opaque = Argument::Opaque { r#type: "pkg.LayerName".into(), value: "0".into() };
        sum(graph, call("_operator.add", vec![opaque]));
    });
}

#[test]
fn with_a_frontend_any_operator_and_opaque_objects_pass() {
    let found = |change: &dyn Fn(&mut Graph)| {
        let mut graph = good();
        change(&mut graph);
        let trusted = validate(&graph, &Limits::default(), &allow(), Trust::Frontend);
        (trusted.map_err(|error| error.reason()), refused(&graph).reason())
    };
    for target in ["torch.ops.vllm.moe_forward", "torch.ops._C.rms_norm.default"] {
        let called = |graph: &mut Graph| sum(graph, call(target, vec![reference("x")]));
        assert_eq!(found(&called), (Ok(()), "TARGET_NOT_ALLOWED"), "{target}");
    }
    let opaque = |graph: &mut Graph| {
        let opaque = Argument::Opaque { r#type: "pkg.LayerName".into(), value: "0".into() };
        sum(graph, call("_operator.add", vec![Argument::List(vec![opaque])]));
    };
    assert_eq!(found(&opaque), (Ok(()), "OPAQUE_NOT_ALLOWED"));
    let input = |graph: &mut Graph| {
        graph.nodes[1].op = Op::Placeholder { value: ValueMeta::Opaque("pkg.LayerName".into()) };
    };
    assert_eq!(found(&input), (Ok(()), "OPAQUE_NOT_ALLOWED"));
    // Still no functions of the process, and no attributes that are no operators' names.
    for target in
        ["torch.load", "os.system", "torch.ops.load_library", "torch.ops.a.b.c.d", "torch.ops..x", "torch.ops.a.b c"]
    {
        let called = |graph: &mut Graph| sum(graph, call(target, vec![reference("x")]));
        assert_eq!(found(&called), (Err("TARGET_NOT_ALLOWED"), "TARGET_NOT_ALLOWED"), "{target}");
    }
}

#[test]
fn symbols_and_expressions() {
    check("UNDECLARED_SYMBOL", Some("s"), |graph| graph.symbols.clear());
    check("DUPLICATE_SYMBOL", None, |graph| graph.symbols.push(symbol("s27")));
    check("BAD_EXPRESSION", None, |graph| graph.symbols[0].max = Some(1));
    check("BAD_EXPRESSION", Some("a"), |graph| {
        let expr = SymExpr::Call(SymFunction::FloorDiv, vec![sym("s27")]);
        sum(graph, call("_operator.add", vec![Argument::SymInt(expr)]));
    });
}

#[test]
fn tensors_constants_and_plain_values() {
    let with_tensor = |graph: &mut Graph, change: fn(&mut TensorMeta)| {
        let mut meta = tensor(vec![SymExpr::Int(4)]);
        change(&mut meta);
        graph.nodes[1].op = Op::Placeholder { value: ValueMeta::Tensor(meta) };
    };
    check("BAD_TENSOR", Some("x"), |graph| with_tensor(graph, |meta| meta.strides.clear()));
    check("BAD_TENSOR", Some("x"), |graph| with_tensor(graph, |meta| meta.layout = "sparse_coo".into()));
    check("BAD_TENSOR", Some("x"), |graph| with_tensor(graph, |meta| meta.sizes[0] = SymExpr::Int(-1)));
    check("BAD_DEVICE", Some("x"), |graph| with_tensor(graph, |meta| meta.device.r#type = "npu".into()));
    check("BAD_TORCH_NAME", Some("x"), |graph| with_tensor(graph, |meta| meta.dtype = "torch.float32".into()));
    check("BAD_DICT_KEY", Some("a"), |graph| {
        let entries = vec![(Argument::Tuple(vec![]), Argument::None)];
        sum(graph, call("_operator.add", vec![Argument::Dict(entries)]));
    });
    check("BAD_CONSTANT_INPUT", Some("x"), |graph| {
        graph.nodes[1].op = Op::Placeholder { value: ValueMeta::Constant(reference("s")) };
    });
    let constant = |sizes: &[i64], strides: &[i64], n_bytes: usize| {
        let mut meta = tensor(sizes.iter().copied().map(SymExpr::Int).collect());
        meta.strides = strides.iter().copied().map(SymExpr::Int).collect();
        Constant { name: "c".into(), meta, data: vec![0; n_bytes] }
    };
    for (sizes, strides, n_bytes) in [
        (&[2, 3][..], &[3, 1][..], 23),
        (&[2, 3], &[1, 2], 24),
        (&[0], &[1], 4),
        (&[i64::MAX, i64::MAX], &[i64::MAX, 1], 8),
    ] {
        check("BAD_CONSTANT", None, |graph| graph.constants.push(constant(sizes, strides, n_bytes)));
    }
    let mut graph = good();
    graph.constants.push(constant(&[2, 1, 3], &[3, 7, 1], 24));
    validate(&graph, &Limits::default(), &allow(), Trust::AllowList).unwrap();
    graph.subgraphs.push(Subgraph { name: "c".into(), graph: good() });
    graph.subgraphs[0].graph.symbols.clear();
    assert_eq!(refused(&graph).reason(), "DUPLICATE_ATTRIBUTE");
    graph.subgraphs[0].name = "g".into();
    validate(&graph, &Limits::default(), &allow(), Trust::AllowList).unwrap();
    graph.subgraphs[0].graph.symbols.push(symbol("inner"));
    assert_eq!(refused(&graph).reason(), "MISPLACED_SYMBOLS");
}

#[test]
fn limits() {
    check("GRAPH_TOO_LARGE", None, |graph| {
        for i in 0..100_000 {
            graph.nodes.insert(2, node(&format!("n{i}"), call("_operator.add", vec![])));
            if graph.nodes.len() > Limits::default().max_nodes {
                break;
            }
        }
    });
    check("GRAPH_TOO_LARGE", None, |graph| {
        graph.symbols = (0..257).map(|i| symbol(&format!("s{i}"))).collect();
    });
    check("GRAPH_TOO_LARGE", Some("a"), |graph| {
        let deep = (0..40).fold(Argument::None, |inner, _| Argument::List(vec![inner]));
        sum(graph, call("_operator.add", vec![deep]));
    });
    check("GRAPH_TOO_LARGE", Some("a"), |graph| {
        let deep = (0..40).fold(sym("s27"), |inner, _| SymExpr::Call(SymFunction::Identity, vec![inner]));
        sum(graph, call("_operator.add", vec![Argument::SymInt(deep)]));
    });
    check("GRAPH_TOO_LARGE", None, |graph| {
        let leaf = Graph { nodes: vec![node("o", Op::Output { value: Argument::None })], ..Graph::default() };
        let nested = (0..40).fold(leaf.clone(), |inner, _| Graph {
            subgraphs: vec![Subgraph { name: "g".into(), graph: inner }],
            ..leaf.clone()
        });
        graph.subgraphs.push(Subgraph { name: "g".into(), graph: nested });
    });
    check("GRAPH_TOO_LARGE", None, |graph| {
        let meta = tensor(vec![SymExpr::Int(5 << 20)]);
        graph.constants.push(Constant { name: "big".into(), meta, data: vec![0; 5 << 20] });
    });
}
