//! Frontends: what made a graph and takes part in its compile, such as an inference engine with passes and operators of its own.
//!
//! A frontend is known here by name, version and identity. What it needs to do its part (its payload) is read by executors only and is
//! no part of a key: two requests whose identities are equal make the same code, whatever their payloads.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Digest, KEY_VERSION};

/// Longest name and version, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// Longest identity, in bytes.
pub const MAX_IDENTITY_BYTES: usize = 1 << 20;

/// Which frontend takes part, and everything of it that the code depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frontend {
    /// "vllm", or a module that the operator named.
    pub name: String,
    /// Its own: "0.26.0".
    pub version: String,
    /// JSON text that names everything that the code depends on.
    pub identity: String,
}

/// A frontend that is not usable as it is.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the request's frontend is not usable: {0}")]
pub struct BadFrontend(String);

impl Frontend {
    /// A frontend whose texts are of a form that can be digested and told to people.
    ///
    /// # Errors
    /// [`BadFrontend`] where a name is empty, too long or holds other characters, or the identity is not JSON or too long.
    pub fn new(name: String, version: String, identity: Vec<u8>) -> Result<Self, BadFrontend> {
        if !is_word(&name, b"._") {
            return Err(BadFrontend(format!("its name is 1 to {MAX_NAME_BYTES} of A-Z, a-z, 0-9, '.' and '_'")));
        }
        if !is_word(&version, b"._+-") {
            return Err(BadFrontend(format!(
                "its version is 1 to {MAX_NAME_BYTES} of A-Z, a-z, 0-9, '.', '_', '+' and '-'"
            )));
        }
        if identity.len() > MAX_IDENTITY_BYTES {
            let n_bytes = identity.len();
            return Err(BadFrontend(format!("its identity has {n_bytes} bytes, the limit is {MAX_IDENTITY_BYTES}")));
        }
        let identity = String::from_utf8(identity).map_err(|_| BadFrontend("its identity is not UTF-8".into()))?;
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&identity) {
            return Err(BadFrontend(format!("its identity is not JSON: {error}")));
        }
        Ok(Self { name, version, identity })
    }

    /// What a key has of it.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key(&format!("piecewised frontend v{KEY_VERSION}"));
        // Taken apart by hand so that a field that is added and forgotten here does not compile.
        let Self { name, version, identity } = self;
        for part in [name, version, identity] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Digest(hasher.finalize().into())
    }
}

/// Whether a text is 1 to 128 letters and digits of ASCII, and characters in `also`.
pub(crate) fn is_word(text: &str, also: &[u8]) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || also.contains(&byte))
}
