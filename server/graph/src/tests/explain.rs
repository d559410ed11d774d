//! Each component of a key that differs is told, and no other; what is not known is no difference.

use piecewised_plan::Range;

use crate::{
    ComparedComponent, Digest, Frontend, KeyComponents, KeyInWords, KeyRecord,
    request::{ArtifactFormat, CompileOptions, DeviceKind, OptionValue, Toolchain, Tuning},
};

struct Ours {
    components: KeyComponents,
    options: CompileOptions,
    frontend: Option<Frontend>,
    devices: Vec<DeviceKind>,
    label: &'static str,
}

fn ours() -> Ours {
    Ours {
        components: KeyComponents {
            graph: Digest::of(b"graph"),
            range: Some(Range::new(1, 16).unwrap()),
            dispatch_argument: Some(0),
            hint: Some(4),
            format: ArtifactFormat::Inductor,
            toolchain: Toolchain {
                fingerprint: "f".repeat(64),
                python_version: "3.11".into(),
                torch_version: "2.11.0".into(),
                torch_git_version: "abc".into(),
                triton_version: String::new(),
                cuda_version: String::new(),
                executable: "/usr/bin/python3".into(),
            },
            record: KeyRecord::default(),
        },
        options: CompileOptions::default(),
        frontend: None,
        devices: vec![device("avx512")],
        label: "llama/3",
    }
}

fn device(capability: &str) -> DeviceKind {
    DeviceKind { r#type: "cpu".into(), name: "x86_64".into(), capability: capability.into() }
}

fn changed(change: impl FnOnce(&mut Ours)) -> KeyComponents {
    let mut it = ours();
    change(&mut it);
    let record = KeyRecord::new(&it.options, it.frontend.as_ref(), &it.devices, it.label);
    KeyComponents { record, ..it.components }
}

fn words(components: &KeyComponents) -> KeyInWords {
    components.into()
}

/// What differs from `ours()`: component, sentences.
fn told(change: impl FnOnce(&mut Ours)) -> Vec<(&'static str, Vec<String>)> {
    let compared = words(&changed(change)).compare(&words(&changed(|_| {})));
    let differing = compared.into_iter().filter(|it| it.is_equal != Some(true));
    differing.map(|ComparedComponent { name, differences, .. }| (name, differences)).collect()
}

#[test]
fn what_differs_is_told_in_words() {
    let one = |name, sentence: &str| vec![(name, vec![sentence.to_owned()])];
    assert_eq!(told(|_| {}), []);
    assert_eq!(told(|it| it.label = "other"), []);
    assert_eq!(told(|it| it.components.toolchain.executable = "/elsewhere".into()), []);
    let range = Range::new(1, 32).unwrap();
    assert_eq!(told(|it| it.components.range = Some(range)), one("range", "range [1, 32] against [1, 16]"));
    assert_eq!(told(|it| it.components.range = None), one("range", "range any against [1, 16]"));
    assert_eq!(told(|it| it.components.hint = Some(8)), one("hint", "hint 8 against 4"));
    let argument = one("dispatch_argument", "dispatched argument none against 0");
    assert_eq!(told(|it| it.components.dispatch_argument = None), argument);
    assert_eq!(told(|it| it.components.format = ArtifactFormat::Aoti), one("format", "format aoti against inductor"));
    let graphs = [&b"another"[..], b"graph"].map(|text| Digest::of(text).short());
    let graph = one("graph", &format!("graph {} against {}", graphs[0], graphs[1]));
    assert_eq!(told(|it| it.components.graph = Digest::of(b"another")), graph);
    let devices = one("devices", "device cpu x86_64 (avx2) against x86_64 (avx512)");
    assert_eq!(told(|it| it.devices = vec![device("avx2")]), devices);
}

#[test]
fn options_are_told_one_by_one() {
    let found = told(|it| {
        it.options.inductor.insert("max_autotune".into(), OptionValue::Bool(true));
        it.options.inductor.insert("triton.x".into(), OptionValue::Strs(vec!["a".into()]));
        it.options.tuning = Tuning::Full;
        it.options.torch.num_threads = 8;
    });
    let sentences = [
        "option max_autotune: true against unset",
        "option triton.x: [\"a\"] against unset",
        "torch's num_threads: 8 against 0",
        "tuning: full against fast",
    ];
    assert_eq!(found, [("options", sentences.map(ToOwned::to_owned).to_vec())]);
}

#[test]
fn a_toolchain_is_told_by_what_differs_and_else_by_its_fingerprint() {
    let other = |it: &mut Ours| it.components.toolchain.fingerprint = "e".repeat(64);
    let fingerprints = format!("toolchain fingerprint {} against {}", "e".repeat(12), "f".repeat(12));
    assert_eq!(told(other), [("toolchain", vec![fingerprints.clone()])]);
    let found = told(|it| {
        other(it);
        it.components.toolchain.torch_version = "2.10.0".into();
        it.components.toolchain.triton_version = "3.6".into();
    });
    let sentences = ["Triton 3.6 against unset", "torch 2.10.0 against 2.11.0"].map(ToOwned::to_owned).to_vec();
    assert_eq!(found, [("toolchain", sentences)]);
    // A request may know no more than the fingerprint.
    let found = told(|it| {
        let Toolchain { python_version, torch_version, torch_git_version, .. } = &mut it.components.toolchain;
        [python_version, torch_version, torch_git_version].into_iter().for_each(String::clear);
    });
    assert_eq!(found, []);
}

#[test]
fn a_frontend_is_told_by_version_and_identity() {
    let vllm = |version: &str, identity: &str| {
        Some(Frontend { name: "vllm".into(), version: version.into(), identity: identity.into() })
    };
    let compare = |ours: Option<Frontend>, theirs: Option<Frontend>| {
        let [ours, theirs] = [ours, theirs].map(|frontend| words(&changed(|it| it.frontend = frontend)));
        let found = ours.compare(&theirs).into_iter().find(|it| it.name == "frontend").unwrap();
        (found.is_equal.unwrap(), found.differences)
    };
    assert_eq!(compare(vllm("1", "{}"), vllm("1", "{}")), (true, vec![]));
    assert_eq!(compare(None, None), (true, vec![]));
    assert_eq!(compare(vllm("2", "{}"), vllm("1", "{}")), (false, vec!["frontend vllm 2 against vllm 1".into()]));
    let (is_equal, differences) = compare(vllm("1", "{}"), vllm("1", "[]"));
    assert!(!is_equal && differences[0].starts_with("its configuration ") && differences.len() == 1);
    let (is_equal, differences) = compare(None, vllm("1", "[]"));
    assert!(!is_equal && differences[0] == "frontend unset against vllm 1", "{differences:?}");
}

#[test]
fn what_an_older_store_did_not_keep_is_unknown() {
    let old = KeyComponents { record: KeyRecord::default(), ..changed(|_| {}) };
    let compared = words(&changed(|_| {})).compare(&words(&old));
    let unknown: Vec<_> = compared.iter().filter(|it| it.is_equal.is_none()).map(|it| it.name).collect();
    assert_eq!(unknown, ["options", "frontend", "devices", "key_version"]);
    assert!(compared.iter().all(|it| it.differences.is_empty()));
    // What a later version wrote is left alone.
    let record: KeyRecord = serde_json::from_str(r#"{"options":{"new":[1]},"more":{"x":2}}"#).unwrap();
    let newer = KeyComponents { record, ..changed(|_| {}) };
    let compared = words(&changed(|_| {})).compare(&words(&newer));
    let options = compared.iter().find(|it| it.name == "options").unwrap();
    assert!(options.differences.contains(&"new: unset against [1]".to_owned()), "{options:?}");
}

#[test]
fn too_many_options_are_not_kept() {
    let long = OptionValue::Str("x".repeat(10_000));
    let it = changed(|it| _ = it.options.inductor.insert("trace".into(), long));
    assert!(serde_json::to_string(&it.record).unwrap().len() < 1000);
    assert_eq!(words(&it).compare(&words(&it)).iter().filter(|it| it.is_equal.is_none()).count(), 1);
}

#[test]
fn the_nearest_differs_least_and_is_the_same_piece_if_it_can_be() {
    let mine = words(&changed(|_| {}));
    let range = |it: &mut Ours| {
        it.components.range = Some(Range::new(17, 32).unwrap());
        it.components.hint = Some(24);
    };
    let graph = |it: &mut Ours| it.components.graph = Digest::of(b"another");
    let far = words(&changed(|it| {
        range(it);
        it.options.torch.num_threads = 8;
    }));
    let other_piece = words(&changed(|it| {
        graph(it);
        it.label = "llama/4";
    }));
    let in_order = [
        words(&changed(|_| {})),
        // The hint follows from the range.
        words(&changed(range)),
        words(&changed(|it| it.components.range = Some(Range::new(100, 132).unwrap()))),
        words(&changed(graph)),
        other_piece,
        far,
    ];
    let distances: Vec<_> = in_order.iter().map(|other| mine.distance(other)).collect();
    let mut sorted = distances.clone();
    sorted.sort_unstable();
    assert_eq!(distances, sorted);
    assert_eq!(distances.iter().map(|it| it.0).collect::<Vec<_>>(), [0, 1, 1, 1, 1, 2]);
}
