//! Bearer tokens: a file of them, each with a name, roles, and perhaps an end.
//!
//! ```toml
//! [[token]]
//! name = "nightly"
//! # Of the token, without a line's end: printf %s "$TOKEN" | sha256sum
//! sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
//! roles = ["compile"]
//! expires = "2027-01-01T00:00:00Z"
//! ```
//!
//! The file has no token in it, only what tells one: who reads it can call nobody. Comparing takes as long whatever is compared. Tokens are never logged,
//! their names are.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use thiserror::Error;

use super::{
    roles::{BadRole, Roles},
    watched::check_private,
};

/// A file of tokens that cannot be used.
#[derive(Debug, Error)]
#[error("the tokens in {} cannot be used: {problem}", .path.display())]
pub struct BadTokens {
    path: PathBuf,
    problem: String,
}

/// The tokens of a file.
#[derive(Debug)]
pub(crate) struct Tokens(Vec<Token>);

/// One of them, as far as it is known.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) name: String,
    pub(crate) roles: Roles,
    sha256: [u8; 32],
    expires: Option<SystemTime>,
}

/// What somebody sent.
#[derive(Debug)]
pub(crate) enum Presented<'a> {
    Valid(&'a Token),
    Expired(&'a Token),
    Unknown,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    sha256: String,
    roles: Vec<String>,
    expires: Option<String>,
}

impl Tokens {
    pub(crate) fn load(path: &Path) -> Result<Self, BadTokens> {
        let bad = |problem: String| BadTokens { path: path.to_owned(), problem };
        check_private(path).map_err(bad)?;
        let text = fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        Self::parse(&text).map_err(bad)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: File =
            toml::from_str(text).map_err(|error| format!("it is not as docs/security.md says: {}", error.message()))?;
        let mut tokens: Vec<Token> = Vec::with_capacity(file.token.len());
        for Entry { name, sha256, roles, expires } in file.token {
            if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
                return Err("a token's name has 1 to 64 bytes without control characters".into());
            }
            let of = |problem: String| format!("token {name}: {problem}");
            if tokens.iter().any(|token| token.name == name) {
                return Err(of("there is another of that name".into()));
            }
            let digest = sha256.parse::<piecewised_graph::Digest>();
            let sha256 = digest
                .map_err(|_| of("sha256 is 64 lower-case hexadecimal digits, as sha256sum writes them".into()))?
                .0;
            let roles = Roles::of(roles.iter().map(String::as_str)).map_err(|error: BadRole| of(error.to_string()))?;
            let expires = expires.map(|text| {
                humantime::parse_rfc3339(&text)
                    .map_err(|error| of(format!("expires: {error}; write 2027-01-01T00:00:00Z")))
            });
            tokens.push(Token { roles, sha256, expires: expires.transpose()?, name });
        }
        Ok(Self(tokens))
    }

    /// Which token it is. All of them are compared, whichever it is.
    pub(crate) fn find(&self, presented: &[u8], now: SystemTime) -> Presented<'_> {
        let digest = Sha256::digest(presented);
        let mut found = None;
        for token in &self.0 {
            if bool::from(token.sha256.ct_eq(digest.as_slice())) {
                found = Some(token);
            }
        }
        match found {
            None => Presented::Unknown,
            Some(token) if token.expires.is_some_and(|end| now >= end) => Presented::Expired(token),
            Some(token) => Presented::Valid(token),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::Duration};

    use super::*;

    /// Of "secret".
    const SHA256: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    fn text(roles: &str, more: &str) -> String {
        format!("[[token]]\nname = \"ci\"\nsha256 = \"{SHA256}\"\nroles = {roles}\n{more}")
    }

    #[test]
    fn a_token_is_known_until_it_ends() {
        let tokens = Tokens::parse(&text("[\"compile\"]", "expires = \"2027-01-01T00:00:00Z\"")).unwrap();
        let end = humantime::parse_rfc3339("2027-01-01T00:00:00Z").unwrap();
        let second = Duration::from_secs(1);
        assert!(
            matches!(tokens.find(b"secret", end - second), Presented::Valid(token) if token.roles == Roles::WORKER)
        );
        assert!(matches!(tokens.find(b"secret", end), Presented::Expired(token) if token.name == "ci"));
        for other in [&b""[..], b"secre", b"secret ", SHA256.as_bytes()] {
            assert!(matches!(tokens.find(other, end - second), Presented::Unknown));
        }
    }

    #[test]
    fn what_is_no_file_of_tokens_is_refused_with_the_reason() {
        let refused = |text: &str| Tokens::parse(text).unwrap_err();
        assert!(refused("[[token]]\nname = \"ci\"").contains("missing field"));
        assert!(refused(&text("[\"root\"]", "")).contains("token ci: \"root\" is no role"));
        assert!(refused(&text("[]", "expires = \"soon\"")).contains("token ci: expires: "));
        assert!(refused(&text("[]", "token = \"secret\"")).contains("unknown field"));
        assert!(refused(&text("[]", &text("[]", ""))).contains("another of that name"));
        assert!(refused(&text("[]", "").replace(SHA256, "secret")).contains("64 lower-case hexadecimal digits"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        fs::write(&path, text("[]", "")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Tokens::load(&path).unwrap_err().to_string().contains("its mode is 0644"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Tokens::load(&path).unwrap();
    }
}
