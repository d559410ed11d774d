//! What is signed, pinned: a change of these bytes leaves clients of other versions unable to verify.
#![allow(clippy::unwrap_used)]

use expect_test::expect;
use piecewised_graph::{
    Digest, Handle, Manifest, ManifestPiece, Segment, SnapshotName, Timings,
    request::{ArtifactFormat, DeviceKind, Toolchain},
};
use piecewised_plan::Range;
use piecewised_proto::v1;
use piecewised_sign::{Signer, Statement, public_keys, verify};

fn handle() -> Handle {
    let text = |s: &str| s.to_owned();
    let range = Some(Range::new(1, 16).unwrap());
    Handle {
        key: Digest([1; 32]),
        graph_digest: Digest([2; 32]),
        range,
        digest: Digest([3; 32]),
        size_bytes: 4096,
        format: ArtifactFormat::Inductor,
        toolchain: Toolchain {
            fingerprint: "f".repeat(64),
            python_version: text("3.11"),
            torch_version: text("2.11.0"),
            torch_git_version: text("abc"),
            triton_version: text(""),
            cuda_version: text(""),
            executable: text("/usr/bin/python3"),
        },
        device: DeviceKind { r#type: text("cpu"), name: text("x86_64"), capability: text("abc") },
        segments: vec![Segment { range, entry: text("r0"), guards: Vec::new() }],
        dispatch_argument: Some(0),
        hint: Some(8),
        returns_tuple: true,
        n_arguments: 2,
        timings: Timings { total_s: 1.5, cpu_s: 2.5, phases: Vec::new() },
        created_unix_ms: 7,
        guard_symbols: Vec::new(),
        verification: Default::default(),
        tuning: Default::default(),
        latencies: Vec::new(),
        key_record: Default::default(),
        signature: None,
    }
}

fn manifest() -> Manifest {
    Manifest {
        program: "backbone".parse().unwrap(),
        toolchain: handle().toolchain,
        devices: vec![handle().device],
        pieces: vec![ManifestPiece { index: 0, entries: vec![Range::new(1, 16).unwrap()], handles: vec![handle()] }],
        n_distinct_pieces: 1,
        created_unix_ms: 7,
        signature: None,
    }
}

fn accepted() -> v1::Accepted {
    let range = Some(v1::Range { start: 1, end: 16 });
    let entries = vec![v1::AcceptedEntry { range, keys: vec![vec![1; 32], vec![2; 32]] }];
    v1::Accepted { request_digest: vec![5; 32], entries, signature: None }
}

fn snapshot() -> Statement {
    let name = SnapshotName::new("vllm".into(), "aot".into(), "ab".into()).unwrap();
    Statement::of_snapshot(&name, 600, &Digest([6; 32]))
}

#[test]
fn statements_and_signatures_stay_what_they_are() {
    let signer = Signer::from_seed(&[7; 32]);
    let signed = |statement: Statement| {
        let signature = signer.sign(&statement);
        assert!(verify(&signature, &statement));
        let text = serde_json::to_value(signature).unwrap();
        text["value"].as_str().unwrap()[..32].to_owned()
    };
    let found = format!(
        "key {}\nhandle {}\nrequest {}\nmanifest {}\nsnapshot {}\n",
        signer.public_key(),
        signed(Statement::of_handle(&handle())),
        signed(Statement::of_accepted(&accepted())),
        signed(Statement::of_manifest(&manifest())),
        signed(snapshot()),
    );
    expect![[r#"
        key ed25519:ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c
        handle dc46262e30bc7e900b4846e923f96e22
        request d81048566a00b0d878df3361734c0b5d
        manifest 8818a48e2e40f2346d21cf0eddee8587
        snapshot 136f0bceb711402e222a9596dbe516ac
    "#]]
    .assert_eq(&found);
}

#[test]
fn a_signature_is_of_one_statement_by_one_key() {
    let (signer, other) = (Signer::from_seed(&[7; 32]), Signer::from_seed(&[8; 32]));
    let statements = [
        Statement::of_handle(&handle()),
        Statement::of_accepted(&accepted()),
        Statement::of_manifest(&manifest()),
        snapshot(),
    ];
    for (at, statement) in statements.iter().enumerate() {
        let signature = signer.sign(statement);
        for (position, against) in statements.iter().enumerate() {
            assert_eq!(verify(&signature, against), at == position);
        }
        let under_another = piecewised_graph::Signature { public_key: other.public_key(), ..signature };
        assert!(!verify(&under_another, statement));
        for bit in 0..512 {
            let mut flipped = signature;
            flipped.value[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify(&flipped, statement), "bit {bit}");
        }
    }
    // A key of small order verifies nothing.
    let mut weak = signer.sign(&statements[0]);
    weak.public_key = piecewised_graph::PublicKey([0; 32]);
    assert!(!verify(&weak, &statements[0]));
}

#[test]
fn a_handed_out_handle_has_the_signature_of_what_is_in_it() {
    let signer = Signer::from_seed(&[7; 32]);
    let stale = Handle { signature: Some(Signer::from_seed(&[8; 32]).sign(&snapshot())), ..handle() };
    let (first, again) = (signer.signed_handle(&handle()), signer.signed_handle(&stale));
    // Whatever signature it had; and the second time as the first.
    assert_eq!(first, again);
    let signature = piecewised_wire::signature_from_proto(first.signature.unwrap()).unwrap();
    assert!(verify(&signature, &Statement::of_handle(&handle())));
}

#[test]
fn keys_are_written_and_read() {
    let signer = Signer::from_seed(&[7; 32]);
    let pem = signer.to_pem().unwrap();
    assert_eq!(Signer::from_pem(&pem).unwrap().public_key(), signer.public_key());
    assert!(!format!("{signer:?}").contains("PRIVATE") && format!("{signer:?}").contains("ed25519:"));
    let text = format!("{}, {}", signer.public_key(), Signer::from_seed(&[8; 32]).public_key());
    assert_eq!(public_keys(&text).unwrap().len(), 2);
    for wrong in [
        "",
        "# nothing\n",
        "ed25519:1",
        "-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----",
        "-----BEGIN PUBLIC KEY-----",
        &pem,
    ] {
        assert!(public_keys(wrong).is_err(), "{wrong:?}");
    }
}
