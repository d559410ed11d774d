//! Graphs that are written in Rust, right and wrong ones. No daemon: what a builder checks, it checks by itself.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps nothing")]

use expect_test::{Expect, expect};
use piecewised_graph::{canonicalise, model::Graph};
use piecewised_tch::GraphBuilder;
use tch::{Device, Kind, Tensor};

fn refused(build: impl FnOnce(&mut GraphBuilder) -> Vec<piecewised_tch::Value>, expected: Expect) {
    let mut graph = GraphBuilder::new(Device::Cpu);
    let outputs = build(&mut graph);
    expected.assert_eq(&graph.finish(outputs).unwrap_err().to_string());
}

fn doubled(names: [&str; 2]) -> Graph {
    let mut graph = GraphBuilder::new(Device::Cuda(3));
    let n = graph.symbol(names[0]);
    let x = graph.tensor(names[1], Kind::BFloat16, [(&n).into(), 3.into(), 4.into()]);
    let flat = graph.call_method("view", &x, [n.into(), 12.into()]);
    let doubled = graph.call("torch.add", [(&flat).into(), flat.into()]);
    graph.finish([doubled]).unwrap()
}

#[test]
fn a_graph_has_the_form_that_is_compiled() {
    let canonical = canonicalise(&doubled(["n", "x"])).unwrap();
    assert_eq!(canonical.dispatch_argument, Some(0));
    assert_eq!(canonical.n_arguments, 2);
    assert_eq!(canonical.device_types, ["cuda"]);
    expect![[r#"{"nodes":[{"name":"n0","op":{"placeholder":{"value":{"sym_int":{"symbol":"s0"}}}}},{"name":"n1","op":{"placeholder":{"value":{"tensor":{"dtype":"bfloat16","device":{"type":"cuda"},"layout":"strided","sizes":[{"symbol":"s0"},{"int":3},{"int":4}],"strides":[{"int":12},{"int":4},{"int":1}]}}}}},{"name":"n2","op":{"call_method":{"method":"view","args":[{"node":"n1"},{"node":"n0"},{"int":12}]}}},{"name":"n3","op":{"call_function":{"target":"torch.add","args":[{"node":"n2"},{"node":"n2"}]}}},{"name":"n4","op":{"output":{"value":{"tuple":[{"node":"n3"}]}}}}],"symbols":[{"name":"s0"}]}"#]]
    .assert_eq(&canonical.json);
    assert_eq!(canonical.digest, canonicalise(&doubled(["tokens", "hidden"])).unwrap().digest, "names do not count");
}

#[test]
fn mistakes_are_told_by_name() {
    refused(
        |graph| {
            let n = graph.symbol("n");
            vec![graph.tensor("x", Kind::Float, [n]), graph.tensor("x", Kind::Float, [4.into()])]
        },
        expect![[r#"the graph can't be built: two inputs are named "x""#]],
    );
    refused(
        |graph| {
            graph.symbol("n");
            vec![graph.tensor("x", Kind::Float, [4.into()])]
        },
        expect![[
            r#"the graph can't be built: the symbol "n" is no dimension of an input tensor, so that no call would say its value"#
        ]],
    );
    refused(
        |graph| {
            let x = graph.tensor("x", Kind::Float, [4.into()]);
            let y = graph.call("torch.relu", [x.into()]);
            graph.tensor("late", Kind::Float, [4.into()]);
            vec![y]
        },
        expect![[r#"the graph can't be built: the input "late" comes after a call; inputs come first"#]],
    );
    refused(|_| vec![], expect!["the graph can't be built: it returns nothing"]);
    refused(
        |graph| vec![graph.tensor("x", Kind::Float, [(-1).into()])],
        expect![[r#"the graph can't be built: tensor "x" has the size -1"#]],
    );
    refused(
        |graph| vec![graph.tensor("x", Kind::QInt8, [4.into()])],
        expect![[r#"the graph can't be built: tensor "x" is QInt8, and quantised tensors are not compiled"#]],
    );
    refused(
        |graph| {
            let elsewhere = GraphBuilder::new(Device::Cpu).tensor("y", Kind::Float, [4.into()]);
            vec![graph.call("torch.relu", [elsewhere.into()])]
        },
        expect![[
            r#"the graph can't be compiled: node "relu": it refers to "y", and there is no such node in this graph"#
        ]],
    );
}

#[test]
fn a_constant_is_its_values_whatever_their_strides() {
    let with = |table: Tensor| {
        let mut graph = GraphBuilder::new(Device::Cpu);
        let x = graph.tensor("x", Kind::Float, [2.into(), 2.into()]);
        let table = graph.constant("table", &table);
        let sum = graph.call("torch.add", [x.into(), table.into()]);
        graph.finish([sum]).unwrap()
    };
    let table = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]).reshape([2, 2]);
    let graph = with(table.copy());
    let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].into_iter().flat_map(f32::to_le_bytes).collect();
    assert_eq!(graph.constants[0].data, bytes);
    let digest = |table: Tensor| canonicalise(&with(table)).unwrap().digest;
    assert_eq!(digest(table.copy()), digest(table.tr().contiguous().tr()));
    assert_ne!(digest(table.copy()), digest(table.tr()), "values count");
    assert_ne!(digest(table.copy()), digest(table.to_kind(Kind::Int)), "and so do their types");
    refused(
        |graph| {
            let value = Tensor::zeros([2], (Kind::Float, Device::Cpu));
            vec![graph.constant("table", &value), graph.constant("table", &value)]
        },
        expect![[r#"the graph can't be compiled: two constants or subgraphs of one graph are named "table""#]],
    );
    refused(
        |graph| vec![graph.constant("none", &Tensor::new())],
        expect![[
            r#"the graph can't be built: the constant "none" can't be read: Internal torch error: tensor does not have a device"#
        ]],
    );
}
