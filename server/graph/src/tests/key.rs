//! Each component changes the key, and nothing else does.

use piecewised_plan::Range;

use crate::{
    Digest, Frontend, KeyParts,
    model::Real,
    options_for_key,
    request::{ArtifactFormat, CompileOptions, DeviceKind, OptionValue},
};

fn device(capability: &str) -> DeviceKind {
    DeviceKind { r#type: "cuda".into(), name: "NVIDIA H200".into(), capability: capability.into() }
}

#[test]
fn every_component_changes_the_key_and_is_named_by_the_table() {
    let graph = Digest::of(b"graph");
    let other_digest = Digest::of(b"other");
    let mut options = CompileOptions::default();
    let devices = [device("9.0")];
    let base = KeyParts {
        graph: &graph,
        range: Range::new(1, 16).ok(),
        dispatch_argument: Some(0),
        hint: Some(4),
        options: &options.clone(),
        frontend: None,
        format: ArtifactFormat::Inductor,
        toolchain: "aa",
        devices: &devices,
    };
    // Pinned: a change of it makes every stored artifact unreachable, which needs a new KEY_VERSION.
    expect_test::expect!["51f53a659b4725411d7599d976a828c761b7eec64629f0212cf4f234e7de8a52"]
        .assert_eq(&base.key().to_string());

    options.inductor.insert("max_autotune".into(), OptionValue::Bool(true));
    let other_devices = [device("8.0")];
    let changed = [
        ("graph", KeyParts { graph: &other_digest, ..base.clone() }),
        ("range", KeyParts { range: Range::new(1, 17).ok(), ..base.clone() }),
        ("range", KeyParts { range: None, ..base.clone() }),
        ("dispatch_argument", KeyParts { dispatch_argument: Some(1), ..base.clone() }),
        ("hint", KeyParts { hint: Some(5), ..base.clone() }),
        ("options", KeyParts { options: &options, ..base.clone() }),
        ("frontend", KeyParts { frontend: Some(&other_digest), ..base.clone() }),
        ("toolchain", KeyParts { toolchain: "ab", ..base.clone() }),
        ("devices", KeyParts { devices: &other_devices, ..base.clone() }),
    ];
    for (name, parts) in changed {
        assert_ne!(parts.key(), base.key(), "{name}");
        let (theirs, ours) = (parts.components(), base.components());
        let differing: Vec<_> = ours.keys().filter(|key| theirs[*key] != ours[*key]).collect();
        assert_eq!(differing, [&name]);
    }
}

#[test]
fn a_frontend_is_known_by_name_version_and_identity() {
    let frontend = |name: &str, version: &str, identity: &str| {
        Frontend::new(name.into(), version.into(), identity.into()).map(|frontend| frontend.digest())
    };
    let base = frontend("vllm", "0.26.0", r#"{"a":1}"#).unwrap();
    assert_eq!(frontend("vllm", "0.26.0", r#"{"a":1}"#), Ok(base));
    for (name, version, identity) in [
        ("vllm2", "0.26.0", r#"{"a":1}"#),
        ("vllm", "0.26.1", r#"{"a":1}"#),
        ("vllm", "0.26.0", r#"{"a":2}"#),
        ("vllm0", ".26.0", r#"{"a":1}"#),
    ] {
        assert_ne!(frontend(name, version, identity), Ok(base));
    }
    for (name, version, identity, problem) in [
        ("", "1", "{}", "its name is"),
        ("a/b", "1", "{}", "its name is"),
        ("a", "1 2", "{}", "its version is"),
        ("a", "1", "{", "is not JSON"),
        ("a", "1", "", "is not JSON"),
    ] {
        let found = frontend(name, version, identity).unwrap_err().to_string();
        assert!(found.contains(problem), "{found}");
    }
    let long = format!("\"{}\"", "x".repeat(1 << 20));
    assert!(frontend("a", "1", &long).unwrap_err().to_string().contains("the limit is 1048576"));
    assert!(
        Frontend::new("a".into(), "1".into(), vec![0x22, 0xff, 0x22]).unwrap_err().to_string().contains("not UTF-8")
    );
}

#[test]
fn the_order_of_options_does_not_count_and_their_types_do() {
    let options = |pairs: &[(&str, OptionValue)]| CompileOptions {
        inductor: pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        ..CompileOptions::default()
    };
    let a = ("a", OptionValue::Int(1));
    let b = ("b", OptionValue::Str("x".into()));
    let text = |options: &CompileOptions| serde_json::to_string(options).unwrap();
    assert_eq!(text(&options(&[a.clone(), b.clone()])), text(&options(&[b, a.clone()])));
    for other in
        [OptionValue::Bool(true), OptionValue::Float(Real(1.0)), OptionValue::Str("1".into()), OptionValue::None]
    {
        assert_ne!(text(&options(std::slice::from_ref(&a))), text(&options(&[("a", other)])));
    }
}

#[test]
fn the_number_of_threads_counts_for_cpu_code_only() {
    let mut options = CompileOptions::default();
    options.torch.num_threads = 7;
    assert_eq!(options_for_key(&options, &["cuda".into()]).torch.num_threads, 0);
    assert_eq!(options_for_key(&options, &["cpu".into(), "cuda".into()]).torch.num_threads, 7);
}
