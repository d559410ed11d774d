//! Which components of a key differ from another key's, in words: what tells a person why something was compiled again.
//!
//! Most components stand in a handle anyway; the rest is its [`KeyRecord`], which nothing else reads. What an older handle lacks is unknown, not
//! different.

use std::collections::{BTreeMap, BTreeSet};

use piecewised_plan::Range;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Digest, Frontend, Handle, KEY_VERSION,
    request::{ArtifactFormat, CompileOptions, DeviceKind, OptionValue, Toolchain},
};

/// Options beyond this are not kept: a handle has to stay small.
const MAX_OPTIONS_BYTES: usize = 8 << 10;

const UNSET: &str = "unset";

/// What a key was derived from, as far as a handle does not say it. JSON by name, so that what a later version adds is no error to an earlier one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyRecord(BTreeMap<String, Value>);

impl KeyRecord {
    /// The record of a key. `label`: what the caller that asked first calls the piece; it is in no key, but people know it.
    pub fn new(options: &CompileOptions, frontend: Option<&Frontend>, devices: &[DeviceKind], label: &str) -> Self {
        let frontend = frontend.map(|Frontend { name, version, identity }| {
            // The identity itself may be long.
            let identity = Digest::of(identity.as_bytes()).to_string();
            BTreeMap::from([("name", name.clone()), ("version", version.clone()), ("identity", identity)])
        });
        let options = json(options);
        let mut record = BTreeMap::from([
            ("key_version".to_owned(), json(&KEY_VERSION)),
            ("frontend".to_owned(), json(&frontend)),
            ("devices".to_owned(), json(&devices)),
        ]);
        if options.to_string().len() <= MAX_OPTIONS_BYTES {
            record.insert("options".to_owned(), options);
        }
        if !label.is_empty() {
            record.insert("label".to_owned(), json(&label));
        }
        Self(record)
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the piece was called; empty: nothing.
    pub fn label(&self) -> &str {
        self.0.get("label").and_then(Value::as_str).unwrap_or_default()
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Option<T> {
        T::deserialize(self.0.get(name)?).ok()
    }
}

/// Everything that a key was derived from.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "documented once, at KeyParts")]
pub struct KeyComponents {
    pub graph: Digest,
    pub range: Option<Range>,
    pub dispatch_argument: Option<u32>,
    pub hint: Option<i64>,
    pub format: ArtifactFormat,
    pub toolchain: Toolchain,
    pub record: KeyRecord,
}

impl From<&Handle> for KeyComponents {
    fn from(handle: &Handle) -> Self {
        Self {
            graph: handle.graph_digest,
            range: handle.range,
            dispatch_argument: handle.dispatch_argument,
            hint: handle.hint,
            format: handle.format,
            toolchain: handle.toolchain.clone(),
            record: handle.key_record.clone(),
        }
    }
}

/// One component of two keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparedComponent {
    /// As in a key's derivation: "options".
    pub name: &'static str,
    /// Whether they are the same; `None`: it is not known of one of them.
    pub is_equal: Option<bool>,
    /// In words; empty: not known.
    pub ours: String,
    /// In words; empty: not known.
    pub theirs: String,
    /// What differs: "option max_autotune: true against unset". Empty where nothing does.
    pub differences: Vec<String>,
}

/// How far two keys are apart, nearest first: components that differ, the same graph before another, the same label before another, the nearest range, fewest
/// unknown.
///
/// A hint that differs beside its range is not counted: it follows from the range.
pub type Distance = (usize, bool, bool, u64, usize);

/// A component's values by name, in words; `None`: not known.
type Values = Option<BTreeMap<String, String>>;

/// A key's components in words, made once for many comparisons.
#[derive(Debug, Clone)]
pub struct KeyInWords {
    graph: Digest,
    range: Option<Range>,
    label: String,
    /// In the order in which people look at them.
    components: [(&'static str, Values); N_COMPONENTS],
}

const N_COMPONENTS: usize = 10;

impl KeyInWords {
    /// What the piece was called; empty: nothing.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// How far another key is from this one.
    pub fn distance(&self, theirs: &Self) -> Distance {
        let (mut n_different, mut n_unknown, mut follows) = (0, 0, 0);
        for ((name, ours), (_, theirs)) in self.components.iter().zip(&theirs.components) {
            match is_equal(name, ours, theirs) {
                Some(true) => {}
                Some(false) => {
                    n_different += 1;
                    follows += usize::from(matches!(*name, "range" | "hint"));
                }
                None => n_unknown += 1,
            }
        }
        let is_other_label = self.label.is_empty() || self.label != theirs.label;
        let apart = match (self.range, theirs.range) {
            (Some(ours), Some(theirs)) => {
                ours.start().abs_diff(theirs.start()).saturating_add(ours.end().abs_diff(theirs.end()))
            }
            (ours, theirs) if ours == theirs => 0,
            _ => u64::MAX,
        };
        (n_different - usize::from(follows == 2), self.graph != theirs.graph, is_other_label, apart, n_unknown)
    }

    /// Each component of both.
    pub fn compare(&self, theirs: &Self) -> Vec<ComparedComponent> {
        let pairs = self.components.iter().zip(&theirs.components);
        pairs.map(|((name, ours), (_, theirs))| compare(name, ours, theirs)).collect()
    }
}

impl From<&KeyComponents> for KeyInWords {
    fn from(of: &KeyComponents) -> Self {
        Self { graph: of.graph, range: of.range, label: of.record.label().to_owned(), components: components(of) }
    }
}

fn is_equal(name: &str, ours: &Values, theirs: &Values) -> Option<bool> {
    let (ours, theirs) = (ours.as_ref()?, theirs.as_ref()?);
    // The key has a toolchain's fingerprint alone, and a request may say no more of it.
    Some(if name == "toolchain" { ours.get(FINGERPRINT) == theirs.get(FINGERPRINT) } else { ours == theirs })
}

fn compare(name: &'static str, ours: &Values, theirs: &Values) -> ComparedComponent {
    let said = |values: &Values| values.as_ref().map_or_else(String::new, |values| in_one_line(name, values));
    let is_equal = is_equal(name, ours, theirs);
    let differences = match (ours, theirs) {
        (Some(ours), Some(theirs)) if is_equal == Some(false) => differences(ours, theirs),
        _ => Vec::new(),
    };
    ComparedComponent { name, is_equal, ours: said(ours), theirs: said(theirs), differences }
}

fn differences(ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>) -> Vec<String> {
    let names: BTreeSet<&str> = ours.keys().chain(theirs.keys()).map(String::as_str).collect();
    // Of a toolchain that was told by its fingerprint alone, nothing else is unset.
    let is_alone = [ours, theirs].iter().any(|it| it.len() == 1 && it.contains_key(FINGERPRINT));
    let differing: Vec<&str> = names
        .into_iter()
        .filter(|name| ours.get(*name) != theirs.get(*name) && (!is_alone || *name == FINGERPRINT))
        .collect();
    let value = |values: &BTreeMap<String, String>, name: &str| values.get(name).cloned().unwrap_or(UNSET.to_owned());
    // A fingerprint says less than what it is one of.
    let told = differing.iter().filter(|name| **name != FINGERPRINT || differing.len() == 1);
    told.map(|name| format!("{name} {} against {}", value(ours, name), value(theirs, name))).collect()
}

const FINGERPRINT: &str = "toolchain fingerprint";

fn in_one_line(component: &str, values: &BTreeMap<String, String>) -> String {
    let is_named = values.len() > 1 || component == "options";
    let one = |(name, value): (&String, &String)| if is_named { format!("{name} {value}") } else { value.clone() };
    match values.is_empty() {
        true => "none".to_owned(),
        false => values.iter().map(one).collect::<Vec<_>>().join(", "),
    }
}

/// The components in words.
fn components(of: &KeyComponents) -> [(&'static str, Values); N_COMPONENTS] {
    let KeyComponents { graph, range, dispatch_argument, hint, format, toolchain, record } = of;
    let single = |name: &str, value: String| Some(BTreeMap::from([(name.to_owned(), value)]));
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    [
        ("graph", single("graph", graph.short())),
        ("range", single("range", range.map_or_else(|| "any".to_owned(), |range| range.to_string()))),
        ("hint", single("hint", or_none(hint.map(|hint| hint.to_string())))),
        ("dispatch_argument", single("dispatched argument", or_none(dispatch_argument.map(|at| at.to_string())))),
        ("options", record.read("options").map(|options| options_in_words(&options))),
        ("format", single("format", word(&json(format)))),
        ("frontend", record.read::<Option<BTreeMap<String, String>>>("frontend").map(frontend_in_words)),
        ("devices", record.read("devices").map(|devices: Vec<DeviceKind>| devices_in_words(&devices))),
        ("toolchain", Some(toolchain_in_words(toolchain))),
        (
            "key_version",
            record.read("key_version").and_then(|version: u32| single("version of keys", version.to_string())),
        ),
    ]
}

fn options_in_words(options: &Value) -> BTreeMap<String, String> {
    let mut words = BTreeMap::new();
    for (name, value) in options.as_object().into_iter().flatten() {
        match (name.as_str(), value.as_object()) {
            ("inductor", Some(inductor)) => {
                for (name, value) in inductor {
                    words.insert(format!("option {name}:"), option_word(value));
                }
            }
            ("torch", Some(torch)) => {
                for (name, value) in torch {
                    words.insert(format!("torch's {name}:"), word(value));
                }
            }
            _ => {
                words.insert(format!("{name}:"), word(value));
            }
        }
    }
    words
}

fn frontend_in_words(frontend: Option<BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let Some(frontend) = frontend else { return BTreeMap::new() };
    let get = |name: &str| frontend.get(name).map_or("", String::as_str);
    BTreeMap::from([
        ("frontend".to_owned(), format!("{} {}", get("name"), get("version"))),
        ("its configuration".to_owned(), get("identity").chars().take(SHORT).collect()),
    ])
}

/// Digits of a digest.
const SHORT: usize = 12;

fn devices_in_words(devices: &[DeviceKind]) -> BTreeMap<String, String> {
    let device = |DeviceKind { r#type, name, capability }: &DeviceKind| {
        let capability: String = capability.chars().take(SHORT).collect();
        (format!("device {}", r#type), format!("{name} ({capability})"))
    };
    devices.iter().map(device).collect()
}

fn toolchain_in_words(toolchain: &Toolchain) -> BTreeMap<String, String> {
    let Toolchain {
        fingerprint,
        python_version,
        torch_version,
        torch_git_version,
        triton_version,
        cuda_version,
        executable: _,
    } = toolchain;
    let short = |text: &str| text.chars().take(SHORT).collect::<String>();
    [
        (FINGERPRINT, short(fingerprint)),
        ("Python", python_version.clone()),
        ("torch", torch_version.clone()),
        ("torch's revision", short(torch_git_version)),
        ("Triton", triton_version.clone()),
        ("CUDA", cuda_version.clone()),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// A value of `torch._inductor.config` as Python writes it, about.
fn option_word(value: &Value) -> String {
    match OptionValue::deserialize(value) {
        Ok(OptionValue::None) => "None".to_owned(),
        Ok(OptionValue::Bool(value)) => value.to_string(),
        Ok(OptionValue::Int(value)) => value.to_string(),
        Ok(OptionValue::Float(value)) => format!("{:?}", value.0),
        Ok(OptionValue::Str(value)) => format!("{value:?}"),
        Ok(OptionValue::Strs(values)) => format!("{values:?}"),
        Err(_) => value.to_string(),
    }
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

fn json(part: &impl Serialize) -> Value {
    serde_json::to_value(part).expect("every component has string keys and no fallible serializer")
}
