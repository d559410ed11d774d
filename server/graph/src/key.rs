//! From everything that code depends on to the key of an artifact.
//!
//! The key digests named components, each with its length, under a context string of its own, so that no component can run
//! into the next and no other digest of the project can be mistaken for a key. [`KeyParts::components`] gives each component's
//! own digest: comparing two such tables says which of them made a miss.

use std::collections::BTreeMap;

use piecewised_plan::Range;
use serde::Serialize;

use crate::{
    Digest, KEY_VERSION,
    request::{ArtifactFormat, CompileOptions, DeviceKind},
};

/// Everything that the code of one (graph, range) depends on.
#[derive(Debug, Clone)]
pub struct KeyParts<'a> {
    /// Of the canonical graph.
    pub graph: &'a Digest,
    /// `None`: the graph has no symbolic input, and one compile serves every call.
    pub range: Option<Range>,
    /// Which placeholder the range narrows.
    pub dispatch_argument: Option<u32>,
    /// The size that heuristics think of.
    pub hint: Option<i64>,
    /// As [`options_for_key`] leaves them.
    pub options: &'a CompileOptions,
    /// Digest of a frontend's configuration.
    pub frontend: Option<&'a Digest>,
    /// How the artifact is packed.
    pub format: ArtifactFormat,
    /// The toolchain's fingerprint.
    pub toolchain: &'a str,
    /// Every kind of device that occurs in the graph.
    pub devices: &'a [DeviceKind],
}

impl KeyParts<'_> {
    /// The key.
    pub fn key(&self) -> Digest {
        let mut hasher = hasher("piecewised artifact key");
        for (name, text) in self.texts() {
            for part in [name, &text] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part.as_bytes());
            }
        }
        Digest(hasher.finalize().into())
    }

    /// Each component's digest by its name.
    pub fn components(&self) -> BTreeMap<&'static str, Digest> {
        let digest = |text: String| {
            let mut hasher = hasher("piecewised key component");
            hasher.update(text.as_bytes());
            Digest(hasher.finalize().into())
        };
        self.texts().into_iter().map(|(name, text)| (name, digest(text))).collect()
    }

    /// The components as JSON texts. Taken apart by hand so that a component that is added and forgotten here does not compile.
    fn texts(&self) -> [(&'static str, String); 9] {
        let Self { graph, range, dispatch_argument, hint, options, frontend, format, toolchain, devices } = self;
        [
            ("devices", text(devices)),
            ("dispatch_argument", text(dispatch_argument)),
            ("format", text(format)),
            ("frontend", text(frontend)),
            ("graph", text(graph)),
            ("hint", text(hint)),
            ("options", text(options)),
            ("range", text(range)),
            ("toolchain", text(toolchain)),
        ]
    }
}

fn text(component: &impl Serialize) -> String {
    serde_json::to_string(component).expect("every component has string keys and no fallible serializer")
}

fn hasher(context: &str) -> blake3::Hasher {
    blake3::Hasher::new_derive_key(&format!("{context} v{KEY_VERSION}"))
}

/// Options without what cannot influence the code of this graph: the number of CPU threads where there are no CPU tensors.
pub fn options_for_key(options: &CompileOptions, device_types: &[String]) -> CompileOptions {
    let mut options = options.clone();
    if !device_types.iter().any(|r#type| r#type == "cpu") {
        options.torch.num_threads = 0;
    }
    options
}
