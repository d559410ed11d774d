//! The conformance vectors as Rust values, for the runners of several crates. README.md says what the fields mean.
//!
//! A field that is not in README.md is refused, so that a misspelt one cannot make a case pass.
#![allow(dead_code, clippy::unwrap_used, reason = "each runner uses a part; a failure here is the test's")]

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

/// A range as the files write it.
pub(crate) type Pair = (i64, i64);

/// What an implementation made of a plan: its entries and the order of compiling them, or reason and message.
pub(crate) type Made = Result<(Vec<Pair>, Vec<Pair>), (&'static str, String)>;

/// One case of plan.json.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanCase {
    pub(crate) name: String,
    plan: Value,
    pub(crate) entries: Option<Vec<Pair>>,
    pub(crate) error: Option<String>,
    #[serde(default)]
    pub(crate) message_has: Vec<String>,
    pub(crate) most_likely_first: Option<Vec<Pair>>,
    #[serde(default)]
    python_only: bool,
}

/// What the caller gives. `None` is "left out".
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Given {
    pub(crate) compile_ranges: Option<Vec<Pair>>,
    pub(crate) compile_range_endpoints: Option<Vec<i64>>,
    pub(crate) compile_sizes: Option<Vec<i64>>,
    #[serde(default)]
    pub(crate) is_encoder: bool,
    pub(crate) max_num_batched_tokens: Option<i64>,
}

/// One case of dispatch.json.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DispatchCase {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) r#static: bool,
    pub(crate) entries: Vec<Pair>,
    #[serde(default)]
    pub(crate) lookups: Vec<Lookup>,
    pub(crate) error: Option<String>,
    #[serde(default)]
    pub(crate) message_has: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lookup {
    pub(crate) size: i64,
    pub(crate) entry: Option<Pair>,
    pub(crate) error: Option<String>,
    pub(crate) considered: Option<Vec<Pair>>,
}

/// One case of segments.json.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SegmentsCase {
    pub(crate) name: String,
    pub(crate) entries: Vec<SegmentsEntry>,
    pub(crate) guard_symbols: Vec<Value>,
    #[serde(default)]
    pub(crate) lookups: Vec<SegmentsLookup>,
    pub(crate) error: Option<String>,
    #[serde(default)]
    pub(crate) message_has: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SegmentsEntry {
    pub(crate) range: Pair,
    pub(crate) segments: Vec<SegmentVector>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SegmentVector {
    pub(crate) range: Pair,
    pub(crate) guards: Vec<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SegmentsLookup {
    pub(crate) size: i64,
    #[serde(default)]
    pub(crate) values: HashMap<String, i64>,
    pub(crate) entry: Option<usize>,
    pub(crate) segment: Option<usize>,
    pub(crate) error: Option<String>,
    #[serde(default)]
    pub(crate) message_has: Vec<String>,
}

/// Each case of segments.json.
pub(crate) fn segments() -> impl Iterator<Item = SegmentsCase> {
    let cases: Vec<SegmentsCase> = serde_json::from_str(include_str!("segments.json")).unwrap();
    cases.into_iter().inspect(|case| {
        assert!(case.lookups.is_empty() == case.error.is_some(), "{}: lookups or an error", case.name);
    })
}

/// Each case of plan.json that is not Python's alone, with what the caller gives.
pub(crate) fn plans() -> impl Iterator<Item = (PlanCase, Given)> {
    let cases: Vec<PlanCase> = serde_json::from_str(include_str!("plan.json")).unwrap();
    cases.into_iter().filter(|case| !case.python_only).map(|case| {
        assert!(case.entries.is_some() != case.error.is_some(), "{}: entries or an error", case.name);
        let given = serde_json::from_value(case.plan.clone()).unwrap();
        (case, given)
    })
}

/// Each case of dispatch.json.
pub(crate) fn dispatches() -> impl Iterator<Item = DispatchCase> {
    let cases: Vec<DispatchCase> = serde_json::from_str(include_str!("dispatch.json")).unwrap();
    cases.into_iter().inspect(|case| {
        assert!(case.lookups.is_empty() == case.error.is_some(), "{}: lookups or an error", case.name);
    })
}

impl PlanCase {
    /// Compares what an implementation made of it with what it should have.
    pub(crate) fn check(&self, made: Made) {
        match made {
            Ok((entries, order)) => {
                assert_eq!(Some(&entries), self.entries.as_ref(), "{}", self.name);
                if let Some(expected) = &self.most_likely_first {
                    assert_eq!(order, *expected, "{}", self.name);
                }
            }
            Err((reason, message)) => {
                assert_eq!(Some(reason), self.error.as_deref(), "{}: {message}", self.name);
                check_message(&self.name, &message, &self.message_has);
            }
        }
    }
}

/// The message holds each of the texts.
pub(crate) fn check_message(name: &str, message: &str, texts: &[String]) {
    for text in texts {
        assert!(message.contains(text.as_str()), "{name}: {text:?} is not in {message:?}");
    }
}
