//! Public keys and signatures as data: how they are written. Who makes and checks them is `piecewised_sign`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a public key's text begins with: the algorithm, so that there can be another one day.
const PREFIX: &str = "ed25519:";

/// An Ed25519 public key. Text and JSON form: `ed25519:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(pub [u8; 32]);

/// A daemon's word for something. `piecewised/v1/artifact.proto` says for what.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Whose.
    pub public_key: PublicKey,
    /// Ed25519; in JSON 128 hexadecimal digits.
    #[serde(with = "hexadecimal")]
    pub value: [u8; 64],
}

/// Text that is no public key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{found:?} is not a public key: \"{PREFIX}\" and 64 hexadecimal digits are, as `piecewised status` and the daemon's log have it"
)]
pub struct BadPublicKey {
    found: String,
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature(by {})", self.public_key)
    }
}

impl FromStr for PublicKey {
    type Err = BadPublicKey;

    fn from_str(text: &str) -> Result<Self, BadPublicKey> {
        let bad = || BadPublicKey { found: text.chars().take(100).collect() };
        text.strip_prefix(PREFIX).and_then(from_hexadecimal).map(Self).ok_or_else(bad)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = BadPublicKey;

    fn try_from(text: String) -> Result<Self, BadPublicKey> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

/// `N` bytes of twice as many hexadecimal digits, lower case: one text for one value.
fn from_hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

mod hexadecimal {
    use std::fmt::Write as _;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 64], serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(128);
        for byte in bytes {
            write!(text, "{byte:02x}").map_err(serde::ser::Error::custom)?;
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 64], D::Error> {
        let text = String::deserialize(deserializer)?;
        super::from_hexadecimal(&text).ok_or_else(|| D::Error::custom("a signature's value has 128 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_signatures_are_read_as_they_are_written() {
        let signature = Signature { public_key: PublicKey([0xab; 32]), value: [7; 64] };
        let text = serde_json::to_string(&signature).unwrap();
        assert_eq!(serde_json::from_str::<Signature>(&text).unwrap(), signature);
        assert_eq!(signature.public_key.to_string().parse(), Ok(signature.public_key));
        for wrong in ["", "ed25519:", "ed25519:ab", &"ab".repeat(32), &format!("ed25519:{}", "AB".repeat(32))] {
            assert!(wrong.parse::<PublicKey>().is_err(), "{wrong}");
        }
    }
}
