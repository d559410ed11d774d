//! That a signature covers all of a handle: each of its values is changed, one at a time, and found out.
#![allow(clippy::unwrap_used)]

mod common;

use common::{handle, keyring, signed};
use piecewised_graph::{
    Candidate, CheckedSize, GuardSymbol, Handle, Latency, PhaseTiming, Segment,
    model::{SymExpr, SymFunction},
};
use piecewised_plan::Range;

/// A handle in which every field has a value.
fn full() -> Handle {
    let even = SymExpr::Call(SymFunction::Eq, vec![SymExpr::Symbol("s0".into()), SymExpr::Int(4)]);
    let mut full = handle(Some((1, 16)), &[Some((1, 16))]);
    full.hint = Some(8);
    full.segments
        .insert(0, Segment { range: Some(Range::new(2, 8).unwrap()), entry: "guarded".into(), guards: vec![even] });
    full.guard_symbols = vec![GuardSymbol { name: "s0".into(), argument: 1, dimension: Some(0) }];
    full.timings.phases = vec![PhaseTiming { phase: "compile".into(), seconds: 1.5 }];
    full.verification.sizes = vec![CheckedSize {
        size: Some(4),
        entry: "r0".into(),
        max_absolute_error: 0.5,
        max_relative_error: 0.25,
        tolerance: 0.75,
    }];
    full.tuning.candidates = vec![Candidate {
        name: "range".into(),
        hint: Some(8),
        compile_s: 1.5,
        latencies: vec![Latency { size: Some(4), median_us: 7.5 }],
        entries: vec!["r0".into()],
        failure: "none".into(),
    }];
    full.latencies = vec![Latency { size: Some(4), median_us: 8.5 }];
    full
}

/// Every way to change one value of a JSON document, or to leave out one member of a list.
fn changed(value: &serde_json::Value) -> Vec<serde_json::Value> {
    use serde_json::Value;
    match value {
        Value::Null => vec![serde_json::json!(1)],
        Value::Bool(value) => vec![Value::Bool(!value)],
        Value::Number(number) if number.is_f64() => vec![serde_json::json!(number.as_f64().unwrap() + 1.0)],
        Value::Number(number) => vec![serde_json::json!(number.as_i64().unwrap() + 1)],
        // Of digits too, and of what names one of a few: another that is there.
        Value::String(text) => {
            let mut others = vec![format!("{text}x")];
            others.extend(text.strip_prefix(['0', '1', '2', '3']).map(|rest| format!("4{rest}")));
            others.extend(match text.as_str() {
                "inductor" => Some("aoti".to_owned()),
                "fast" => Some("full".to_owned()),
                "not_done" => Some("passed".to_owned()),
                "none" => Some("executor".to_owned()),
                "eq" => Some("ne".to_owned()),
                _ => None,
            });
            others.into_iter().map(Value::String).collect()
        }
        Value::Array(items) => {
            let without = (0..items.len()).map(|at| {
                let mut fewer = items.clone();
                fewer.remove(at);
                Value::Array(fewer)
            });
            let within = items.iter().enumerate().flat_map(|(at, item)| {
                changed(item).into_iter().map(move |other| {
                    let mut items = items.clone();
                    items[at] = other;
                    Value::Array(items)
                })
            });
            without.chain(within).collect()
        }
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, field)| {
                changed(field).into_iter().map(move |other| {
                    let mut fields = fields.clone();
                    fields.insert(name.clone(), other);
                    Value::Object(fields)
                })
            })
            .collect(),
    }
}

#[test]
fn no_field_of_a_handle_can_be_changed() {
    let whole = signed(full());
    keyring().check_handle(&whole).unwrap();
    let value = serde_json::to_value(&whole).unwrap();
    let mut n_refused = 0;
    for other in changed(&value) {
        // Some are no handles at all, which is as well.
        let Ok(handle) = serde_json::from_value::<Handle>(other) else { continue };
        assert_ne!(handle, whole);
        let error = keyring().check_handle(&handle).unwrap_err();
        assert!(["BAD_SIGNATURE", "KEY_NOT_TRUSTED"].contains(&error.reason()), "{handle:?}: {error}");
        n_refused += 1;
    }
    // So many that none was passed over.
    assert!(n_refused > 60, "{n_refused}");
    let unsigned = Handle { signature: None, ..whole };
    assert_eq!(keyring().check_handle(&unsigned).unwrap_err().reason(), "UNSIGNED");
}
