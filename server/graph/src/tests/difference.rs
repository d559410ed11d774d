//! The first difference is told, and nothing that does not count is one.

use super::*;
use crate::{canonicalise, difference::first_difference, model::Constant};

fn canonical(graph: &Graph) -> Graph {
    serde_json::from_str(&canonicalise(graph).unwrap().json).unwrap()
}

fn good() -> Graph {
    small(["s", "x", "v", "a"], "s27")
}

fn found(change: impl FnOnce(&mut Graph)) -> Option<(Option<usize>, String)> {
    let mut changed = good();
    change(&mut changed);
    first_difference(&canonical(&changed), &canonical(&good())).map(|found| (found.position, found.what))
}

#[test]
fn names_are_no_difference() {
    assert_eq!(first_difference(&canonical(&good()), &canonical(&small(["a", "b", "c", "d"], "zz"))), None);
}

#[test]
fn the_first_node_that_differs_is_named_with_what() {
    let sum = |args| call("_operator.add", args);
    let add = |value| sum(vec![reference("x"), Argument::Int(value)]);
    let mut other = good();
    other.nodes[3].op = add(64_128);
    let mut ours = good();
    ours.nodes[3].op = add(128_256);
    let difference = first_difference(&canonical(&ours), &canonical(&other)).unwrap();
    assert_eq!(difference.position, Some(3));
    assert_eq!(difference.what, r#"argument 1 of _operator.add is {"int":128256}, the other's is {"int":64128}"#);

    let one = found(|graph| graph.nodes[3].op = sum(vec![reference("x")])).unwrap();
    assert_eq!(one, (Some(3), "_operator.add has 1 arguments, the other's 2".into()));
    let (position, what) = found(|graph| {
        let meta = tensor(vec![sym("s27"), SymExpr::Int(16)]);
        graph.nodes[1].op = Op::Placeholder { value: ValueMeta::Tensor(meta) };
    })
    .unwrap();
    assert_eq!(position, Some(1));
    assert!(what.starts_with(r#"the input is {"tensor":"#) && what.contains(", the other's is "), "{what}");
    let (position, what) = found(|graph| graph.nodes[3].op = call("torch.mul", vec![])).unwrap();
    assert!(position == Some(3) && what.starts_with(r#"it is {"call_function":{"target":"torch.mul""#), "{what}");
}

#[test]
fn what_is_outside_of_the_nodes_is_told_too() {
    let with = |value: u8| {
        let mut graph = good();
        let mut meta = tensor(vec![SymExpr::Int(1)]);
        meta.device.r#type = "cpu".into();
        graph.constants.push(Constant { name: "c".into(), meta, data: vec![value; 4] });
        graph.nodes.insert(2, node("g", Op::GetAttr { target: "c".into() }));
        canonical(&graph)
    };
    let difference = first_difference(&with(1), &with(2)).unwrap();
    assert_eq!(difference.position, None);
    assert!(difference.what.starts_with("of its constants, number 0 is "), "{}", difference.what);
    let longer = found(|graph| graph.nodes.insert(4, node("b", call("torch.neg", vec![reference("a")])))).unwrap();
    assert_eq!(longer.0, Some(4));
}
