//! One artifact, seen from the entries of a plan that it serves.

use piecewised_plan::Range;

use crate::{
    Digest, GuardSymbol, Handle, KeyRecord, Latency, Segment, Timings, check_segments,
    model::{SymExpr, SymFunction},
    request::{ArtifactFormat, CompileOptions, DeviceKind, Toolchain},
    unproven,
};

fn r(start: i64, end: i64) -> Range {
    Range::new(start, end).unwrap()
}

/// A handle for `range` with these segments, named "e0", "e1", ...
fn handle(range: Option<Range>, segments: &[Option<Range>]) -> Handle {
    let text = String::new;
    let segments = segments.iter().enumerate();
    Handle {
        key: Digest([1; 32]),
        graph_digest: Digest([2; 32]),
        range,
        digest: Digest([3; 32]),
        size_bytes: 1,
        format: ArtifactFormat::Inductor,
        toolchain: Toolchain {
            fingerprint: text(),
            python_version: text(),
            torch_version: text(),
            torch_git_version: text(),
            triton_version: text(),
            cuda_version: text(),
            executable: text(),
        },
        device: DeviceKind { r#type: "cpu".into(), name: text(), capability: text() },
        segments: segments.map(|(at, &range)| Segment { range, entry: format!("e{at}"), guards: Vec::new() }).collect(),
        dispatch_argument: range.map(|_| 0),
        hint: range.map(Range::end),
        returns_tuple: true,
        n_arguments: 1,
        timings: Timings::default(),
        created_unix_ms: 0,
        guard_symbols: Vec::new(),
        verification: Default::default(),
        tuning: Default::default(),
        latencies: Vec::new(),
        key_record: Default::default(),
        signature: None,
    }
}

/// What of a handle for [1, 512], proven as [1, 1], [2, 128] and [200, 512], is left for `entry`.
fn clip(entry: Range) -> Option<Vec<(String, Range)>> {
    let whole = handle(Some(r(1, 512)), &[Some(r(1, 1)), Some(r(2, 128)), Some(r(200, 512))]);
    let record = KeyRecord::new(&CompileOptions::default(), None, &[], "llama/0");
    let clipped = Handle { key_record: record, ..whole.clone() }.clipped(Some(entry))?;
    assert_eq!(clipped.range, Some(entry));
    // Beside range and segments nothing is another than the compile's.
    let rest = Handle { range: whole.range, segments: whole.segments.clone(), ..clipped.clone() };
    assert_eq!(rest, whole);
    Some(clipped.segments.into_iter().map(|segment| (segment.entry, segment.range.unwrap())).collect())
}

#[test]
fn an_entry_gets_what_of_the_segments_lies_in_it() {
    let check = |entry, expected: &[(&str, Range)]| {
        let expected: Vec<_> = expected.iter().map(|(name, range)| ((*name).to_owned(), *range)).collect();
        assert_eq!(clip(entry), Some(expected), "{entry}");
    };
    check(r(1, 16), &[("e0", r(1, 1)), ("e1", r(2, 16))]);
    check(r(17, 128), &[("e1", r(17, 128))]);
    check(r(100, 300), &[("e1", r(100, 128)), ("e2", r(200, 300))]);
    check(r(129, 512), &[("e2", r(200, 512))]);
    check(r(1, 512), &[("e0", r(1, 1)), ("e1", r(2, 128)), ("e2", r(200, 512))]);
}

#[test]
fn guards_and_what_gives_them_their_values_are_every_entrys() {
    let even = SymExpr::Call(SymFunction::Mod, vec![SymExpr::Symbol("s1".into()), SymExpr::Int(2)]);
    let even = SymExpr::Call(SymFunction::Eq, vec![even, SymExpr::Int(0)]);
    let mut whole = handle(Some(r(1, 512)), &[Some(r(2, 512)), Some(r(1, 64))]);
    whole.segments[0].guards = vec![even.clone()];
    whole.guard_symbols = vec![GuardSymbol { name: "s1".into(), argument: 1, dimension: Some(0) }];
    let clipped = whole.clipped(Some(r(17, 128))).unwrap();
    assert_eq!(clipped.guard_symbols, whole.guard_symbols);
    let segments: Vec<_> = clipped.segments.iter().map(|it| (it.range, it.entry.as_str(), it.guards.len())).collect();
    assert_eq!(segments, [(Some(r(17, 128)), "e0", 1), (Some(r(17, 64)), "e1", 0)]);
    assert_eq!(check_segments(&clipped.segments, &clipped.guard_symbols, clipped.range), Ok(()));
    assert!(unproven(clipped.range, &clipped.segments).is_some());
    let proven = whole.clipped(Some(r(1, 64))).unwrap();
    assert_eq!(unproven(proven.range, &proven.segments), None);
}

#[test]
fn an_entry_that_the_code_was_not_proven_for_gets_nothing() {
    assert_eq!(clip(r(129, 199)), None);
    assert_eq!(clip(r(513, 600)), None);
}

#[test]
fn without_a_symbolic_input_there_is_nothing_to_clip() {
    let whole = handle(None, &[None]);
    assert_eq!(whole.clipped(None), Some(whole.clone()));
    assert_eq!(whole.clipped(Some(r(1, 16))), Some(whole));
}

#[test]
fn measured_numbers_are_the_same_after_json() {
    let latency = Latency { size: Some(16), median_us: 1.166_834_729_762_243_8e-7 };
    let text = serde_json::to_string(&latency).unwrap();
    assert_eq!(serde_json::from_str::<Latency>(&text).unwrap(), latency);
}

#[test]
fn what_earlier_versions_stored_is_read_and_what_is_kept_comes_back() {
    let plain = handle(Some(r(1, 16)), &[Some(r(1, 16))]);
    let text = serde_json::to_string(&plain).unwrap();
    assert!(!text.contains("key_record"), "as earlier versions write it");
    assert_eq!(serde_json::from_str::<Handle>(&text).unwrap(), plain);
    let record = KeyRecord::new(&CompileOptions::default(), None, std::slice::from_ref(&plain.device), "llama/0");
    let kept = Handle { key_record: record, ..plain };
    let text = serde_json::to_string(&kept).unwrap();
    assert_eq!(serde_json::from_str::<Handle>(&text).unwrap(), kept);
}
