//! Both directions agree, and nothing that decodes makes a conversion panic.
#![allow(clippy::unwrap_used)]

use piecewised_graph::{
    Candidate, CheckedSize, Digest, Frontend, GuardSymbol, Handle, Latency, PhaseTiming, PublicKey, Segment, Signature,
    Timings, TuningReport, Verification, VerificationChecker, VerificationOutcome,
    model::{
        Argument, Constant, Device, Graph, Node, Op, Real, Subgraph, SymExpr, SymFunction, Symbol, TensorMeta,
        ValueMeta,
    },
    request::{
        ArtifactFormat, CompileOptions, DeviceKind, OptionValue, Specialisation, Toolchain, TorchSettings, Tuning,
    },
};
use piecewised_plan::{Plan, Range};
use piecewised_proto::v1;
use proptest::prelude::*;
use prost::Message as _;

use super::*;

/// Every kind of node, argument, value and expression at least once.
fn everything() -> Graph {
    let device = || Device { r#type: "cuda".into(), index: Some(1) };
    let sym = || SymExpr::Symbol("s0".into());
    let call = |function| SymExpr::Call(function, vec![sym(), SymExpr::Int(3)]);
    let tensor = TensorMeta {
        dtype: "bfloat16".into(),
        device: device(),
        layout: "strided".into(),
        sizes: vec![sym(), SymExpr::Int(8)],
        strides: vec![SymExpr::Int(8), SymExpr::Int(1)],
        storage_offset: call(SymFunction::FloorDiv),
        is_parameter: true,
    };
    let inner = Graph { nodes: vec![node("o", Op::Output { value: Argument::None })], ..Graph::default() };
    let arguments = vec![
        Argument::Node("x".into()),
        Argument::Int(i64::MIN),
        Argument::Float(Real(f64::NEG_INFINITY)),
        Argument::Float(Real(f64::NAN)),
        Argument::Bool(true),
        Argument::None,
        Argument::Str("é\0".into()),
        Argument::Complex(Real(1.5), Real(-0.0)),
        Argument::Dtype("int64".into()),
        Argument::Device(device()),
        Argument::Layout("strided".into()),
        Argument::MemoryFormat("channels_last".into()),
        Argument::Slice(Box::new((Argument::None, Argument::Int(3), Argument::Node("x".into())))),
        Argument::Ellipsis,
        Argument::Tuple(vec![]),
        Argument::List(vec![Argument::Tuple(vec![Argument::Int(1)])]),
        Argument::Dict(vec![(Argument::Str("k".into()), Argument::Int(1)), (Argument::Int(2), Argument::None)]),
        Argument::SymInt(call(SymFunction::Mod)),
        Argument::SymFloat(SymExpr::Real(Real(0.5))),
        Argument::SymBool(SymExpr::Bool(false)),
        Argument::Graph(Box::new(inner.clone())),
        Argument::Opaque { r#type: "a.B".into(), value: "v".into() },
    ];
    let kwargs = vec![("b".to_owned(), Argument::Int(1)), ("a".to_owned(), Argument::None)];
    let args = vec![Argument::Node("x".into())];
    Graph {
        nodes: vec![
            Node {
                name: "x".into(),
                op: Op::Placeholder { value: ValueMeta::Tensor(tensor.clone()) },
                stack_trace: Some("File a.py".into()),
            },
            node("s", Op::Placeholder { value: ValueMeta::SymInt(sym()) }),
            node("f", Op::Placeholder { value: ValueMeta::SymFloat(sym()) }),
            node("b", Op::Placeholder { value: ValueMeta::SymBool(call(SymFunction::Lt)) }),
            node("c", Op::Placeholder { value: ValueMeta::Constant(Argument::Int(1)) }),
            node("o", Op::Placeholder { value: ValueMeta::Opaque("pkg.LayerName".into()) }),
            node("g", Op::GetAttr { target: "table".into() }),
            node("cf", Op::CallFunction { target: "_operator.add".into(), args: arguments, kwargs: kwargs.clone() }),
            node("cm", Op::CallMethod { method: "view".into(), args: args.clone(), kwargs: kwargs.clone() }),
            node("mod", Op::CallModule { target: "body".into(), args, kwargs }),
            node("out", Op::Output { value: Argument::Node("cm".into()) }),
        ],
        symbols: vec![Symbol { name: "s0".into(), hint: Some(4), min: Some(-1), max: None }],
        constants: vec![Constant { name: "table".into(), meta: tensor, data: vec![1, 2, 3] }],
        subgraphs: vec![Subgraph { name: "body".into(), graph: inner }],
    }
}

fn node(name: &str, op: Op) -> Node {
    Node { name: name.into(), op, stack_trace: None }
}

#[test]
fn a_graph_survives_the_wire() {
    let graph = everything();
    let bytes = graph_to_proto(&graph).encode_to_vec();
    assert_eq!(graph_from_proto(v1::Graph::decode(&*bytes).unwrap()).unwrap(), graph);
}

#[test]
fn every_symbolic_function_survives_the_wire() {
    for number in 1.. {
        let Ok(function) = v1::SymFunction::try_from(number) else {
            assert!(number > 30, "the enumeration ended early");
            break;
        };
        let call = v1::SymCall { function: function.into(), operands: vec![] };
        let expr = v1::SymExpr { expr: Some(v1::sym_expr::Expr::Call(call)) };
        assert_eq!(value::expr_to(&value::expr_from(expr.clone()).unwrap()), expr);
    }
}

#[test]
fn plans_options_and_handles_survive_the_wire() {
    let range = Range::new(1, 16).unwrap();
    let plan = Plan::new(&[range], &[4, 1]).unwrap();
    assert_eq!(plan_from_proto(plan_to_proto(&plan)).unwrap(), plan);

    let options = CompileOptions {
        inductor: [
            ("a", OptionValue::None),
            ("b", OptionValue::Bool(true)),
            ("c", OptionValue::Int(-1)),
            ("d", OptionValue::Float(Real(0.5))),
            ("e", OptionValue::Str("x".into())),
            ("f", OptionValue::Strs(vec!["y".into()])),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
        torch: TorchSettings {
            default_dtype: "bfloat16".into(),
            float32_matmul_precision: "high".into(),
            deterministic_algorithms: true,
            num_threads: 2,
            autocast: vec![("cuda".into(), "bfloat16".into())],
        },
        specialisation: Specialisation::Generic,
        tuning: Tuning::Full,
    };
    let delivery = Delivery { hints: vec![4, 8], is_tiered: false, is_strict: true };
    let message = options_to_proto(&options, ArtifactFormat::Inductor, &delivery);
    assert_eq!(options_from_proto(message).unwrap(), (options, ArtifactFormat::Inductor, delivery));
    let defaults = options_from_proto(v1::CompileOptions::default()).unwrap();
    assert_eq!(defaults, (CompileOptions::default(), ArtifactFormat::Inductor, Delivery::default()));
    let tiered = v1::CompileOptions { tuning: v1::Tuning::Tiered.into(), ..v1::CompileOptions::default() };
    let (options, _, delivery) = options_from_proto(tiered).unwrap();
    assert_eq!((options.tuning, delivery.is_tiered), (Tuning::Fast, true));

    let handle = Handle {
        key: Digest([1; 32]),
        graph_digest: Digest([2; 32]),
        range: Some(range),
        digest: Digest([3; 32]),
        size_bytes: 4,
        format: ArtifactFormat::Aoti,
        toolchain: Toolchain {
            fingerprint: "f".into(),
            python_version: "3.11".into(),
            torch_version: "2.11.0".into(),
            torch_git_version: "g".into(),
            triton_version: "3.6.0".into(),
            cuda_version: String::new(),
            executable: "python3".into(),
        },
        device: DeviceKind { r#type: "cpu".into(), name: "x86_64".into(), capability: "c".into() },
        segments: vec![Segment {
            range: Some(range),
            entry: "0".into(),
            guards: vec![SymExpr::Call(SymFunction::Eq, vec![SymExpr::Symbol("s0".into()), SymExpr::Int(8)])],
        }],
        dispatch_argument: Some(1),
        hint: Some(4),
        returns_tuple: true,
        n_arguments: 2,
        timings: Timings {
            total_s: 1.5,
            cpu_s: 1.0,
            phases: vec![PhaseTiming { phase: "compile".into(), seconds: 1.25 }],
        },
        created_unix_ms: 5,
        guard_symbols: vec![GuardSymbol { name: "s0".into(), argument: 1, dimension: Some(0) }],
        verification: Verification {
            outcome: VerificationOutcome::Passed,
            sizes: vec![CheckedSize {
                size: Some(4),
                entry: "0".into(),
                max_absolute_error: 0.25,
                max_relative_error: 0.125,
                tolerance: 0.5,
            }],
            note: "a note".into(),
            seconds: 1.5,
            checker: VerificationChecker::Runner,
        },
        tuning: TuningReport {
            mode: Tuning::Full,
            candidates: vec![Candidate {
                name: "range".into(),
                hint: Some(4),
                compile_s: 2.5,
                latencies: vec![Latency { size: Some(4), median_us: 7.5 }],
                entries: vec!["0".into()],
                failure: "none".into(),
            }],
            seconds: 3.5,
            note: "another".into(),
        },
        latencies: vec![Latency { size: None, median_us: 8.5 }],
        key_record: Default::default(),
        signature: Some(Signature { public_key: PublicKey([9; 32]), value: [10; 64] }),
    };
    assert_eq!(handle_from_proto(handle_to_proto(&handle)).unwrap(), handle);
    let mut cut = handle_to_proto(&handle);
    cut.digest.pop();
    assert_eq!(handle_from_proto(cut).unwrap_err().reason(), "BAD_HANDLE");
}

#[test]
fn a_frontend_keeps_its_parts_and_its_bounds() {
    let frontend = Frontend::new("vllm".into(), "0.26.0".into(), b"{}".to_vec()).unwrap();
    let message = frontend_to_proto(&frontend, b"payload");
    assert_eq!(frontend_from_proto(message.clone()).unwrap(), (frontend, "payload".into()));
    let large = v1::Frontend { payload: vec![0; MAX_PAYLOAD_BYTES + 1], ..message.clone() };
    let unnamed = v1::Frontend { name: String::new(), ..message };
    for wrong in [large, unnamed] {
        assert_eq!(frontend_from_proto(wrong).unwrap_err().reason(), "BAD_FRONTEND");
    }
}

#[test]
fn what_is_missing_is_named() {
    let check = |op: Option<v1::node::Op>, reason: &str| {
        let graph = v1::Graph { nodes: vec![v1::Node { name: "n".into(), op, debug: None }], ..v1::Graph::default() };
        let error = graph_from_proto(graph).unwrap_err();
        assert_eq!((error.reason(), error.node()), (reason, Some("n")), "{error}");
    };
    check(None, "UNKNOWN_OP");
    check(Some(v1::node::Op::Placeholder(v1::Placeholder::default())), "EMPTY_VALUE");
    check(Some(v1::node::Op::Output(v1::Output::default())), "EMPTY_ARGUMENT");
    let call = v1::CallFunction { args: vec![v1::Argument::default()], ..v1::CallFunction::default() };
    check(Some(v1::node::Op::CallFunction(call)), "EMPTY_ARGUMENT");
    let expr = v1::SymExpr { expr: Some(v1::sym_expr::Expr::Call(v1::SymCall { function: 999, operands: vec![] })) };
    let meta = v1::ValueMeta { value: Some(v1::value_meta::Value::SymInt(expr)) };
    check(Some(v1::node::Op::Placeholder(v1::Placeholder { value: Some(meta) })), "BAD_EXPRESSION");
    let options = v1::CompileOptions { format: 77, ..v1::CompileOptions::default() };
    assert_eq!(options_from_proto(options).unwrap_err().reason(), "UNSUPPORTED_FORMAT");
    for options in [
        v1::CompileOptions { tuning: 77, ..v1::CompileOptions::default() },
        v1::CompileOptions { specialisation: 77, ..v1::CompileOptions::default() },
        v1::CompileOptions { guards: 77, ..v1::CompileOptions::default() },
    ] {
        assert_eq!(options_from_proto(options).unwrap_err().reason(), "UNKNOWN_CHOICE");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// A real message with bytes changed, added and cut: most decode to something odd, and nothing panics.
    #[test]
    fn damaged_messages_are_answered(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut bytes = graph_to_proto(&everything()).encode_to_vec();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(message) = v1::Graph::decode(&*bytes)
            && let Ok(graph) = graph_from_proto(message)
        {
            // What was understood can be said again.
            prop_assert_eq!(graph_from_proto(graph_to_proto(&graph)).unwrap(), graph);
        }
    }

    #[test]
    fn arbitrary_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = v1::CompileRequest::decode(&*bytes) {
            let _ = message.graph.map(graph_from_proto);
            let _ = message.plan.map(plan_from_proto);
            let _ = message.options.map(options_from_proto);
        }
    }
}

proptest! {
    /// Events name entries by position, so both ends must see them in one order.
    #[test]
    fn a_plan_keeps_its_order(
        endpoints in prop::collection::btree_set(1i64..60, 0..6),
        keep in prop::collection::vec(any::<bool>(), 6),
        sizes in prop::collection::vec(1i64..70, 0..8),
    ) {
        let endpoints: Vec<i64> = endpoints.into_iter().collect();
        let ranges = piecewised_plan::ranges_from_endpoints(&endpoints).unwrap();
        let ranges: Vec<Range> =
            ranges.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(range, _)| range).collect();
        if let Ok(plan) = Plan::new(&ranges, &sizes) {
            prop_assert_eq!(plan_from_proto(plan_to_proto(&plan)).unwrap(), plan);
        }
    }
}
