//! Public keys: verifying with them, and reading lists of them.

use ed25519_dalek::{VerifyingKey, pkcs8::DecodePublicKey as _};
use piecewised_graph::{BadPublicKey, PublicKey, Signature};
use thiserror::Error;

use crate::Statement;

/// Text that should be keys and is not.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BadKey {
    /// A word or a line that is no public key.
    #[error(transparent)]
    Public(#[from] BadPublicKey),
    /// A PEM block that is no Ed25519 public key.
    #[error("a PEM block in it is no Ed25519 public key ({0}); `openssl pkey -in signing.pem -pubout` writes one")]
    PublicPem(String),
    /// There is none.
    #[error("there is no public key in it")]
    Empty,
    /// A PEM file that is no Ed25519 private key.
    #[error("it is no Ed25519 private key in PEM ({0}); `openssl genpkey -algorithm ed25519` makes one")]
    PrivatePem(String),
}

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// The public keys of a text: one a line or separated by commas, as [`PublicKey`] writes them, or PEM blocks; what follows a `#` does not count.
///
/// # Errors
/// [`BadKey`], also where there is none.
pub fn public_keys(text: &str) -> Result<Vec<PublicKey>, BadKey> {
    let mut keys = Vec::new();
    let mut block: Option<String> = None;
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(lines) = &mut block {
            lines.push_str(line);
            lines.push('\n');
            if line == END {
                keys.push(from_pem(lines)?);
                block = None;
            }
        } else if line == BEGIN {
            block = Some(format!("{BEGIN}\n"));
        } else {
            let words = line.split(',').map(str::trim).filter(|word| !word.is_empty());
            for word in words {
                keys.push(word.parse()?);
            }
        }
    }
    if block.is_some() {
        return Err(BadKey::PublicPem("it has no end".into()));
    }
    if keys.is_empty() { Err(BadKey::Empty) } else { Ok(keys) }
}

fn from_pem(block: &str) -> Result<PublicKey, BadKey> {
    let key = VerifyingKey::from_public_key_pem(block).map_err(|error| BadKey::PublicPem(error.to_string()))?;
    Ok(PublicKey(key.to_bytes()))
}

/// Whether a signature is that of its public key over a statement. Whether that key is to be trusted is another question.
#[must_use]
pub fn verify(signature: &Signature, statement: &Statement) -> bool {
    let value = ed25519_dalek::Signature::from_bytes(&signature.value);
    VerifyingKey::from_bytes(&signature.public_key.0).is_ok_and(|key| key.verify_strict(&statement.0, &value).is_ok())
}
