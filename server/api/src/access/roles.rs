//! What a caller may do, in four words.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// One of the things that a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Ask what there is, and fetch it.
    Read = 1,
    /// Have graphs compiled.
    Compile = 2,
    /// Send what executors unpickle, and snapshots that others will: code, with the daemon's rights.
    Frontend = 4,
    /// Change what the daemon has, and end it.
    Admin = 8,
}

impl Role {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Read, "read"), (Self::Compile, "compile"), (Self::Frontend, "frontend"), (Self::Admin, "admin")];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(role, _)| *role == self).map_or("", |(_, name)| name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of roles. Who may compile may read; who may send frontends may compile; who may change things may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles(u8);

/// A word that is no role.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no role: read, compile, frontend and admin are")]
pub struct BadRole(pub(crate) String);

impl Roles {
    /// None.
    pub const NONE: Self = Self(0);
    /// What a worker needs.
    pub const WORKER: Self = Self(Role::Read as u8 | Role::Compile as u8);

    /// Those of this list.
    ///
    /// # Errors
    /// [`BadRole`].
    pub fn of<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, BadRole> {
        words.into_iter().try_fold(Self::NONE, |roles, word| Ok(roles.and(word.parse()?)))
    }

    /// With one more, and what it needs.
    #[must_use]
    pub fn with(self, role: Role) -> Self {
        let needs = match role {
            Role::Read => 0,
            Role::Compile | Role::Admin => Role::Read as u8,
            Role::Frontend => Self::WORKER.0,
        };
        Self(self.0 | role as u8 | needs)
    }

    /// Without one.
    #[must_use]
    pub fn without(self, role: Role) -> Self {
        Self(self.0 & !(role as u8))
    }

    /// Those of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether a role is among them.
    #[must_use]
    pub fn has(self, role: Role) -> bool {
        self.0 & role as u8 != 0
    }
}

impl FromStr for Roles {
    type Err = BadRole;

    /// One word.
    fn from_str(word: &str) -> Result<Self, BadRole> {
        let found = Role::ALL.iter().find(|(_, name)| *name == word);
        found.map(|(role, _)| Self::NONE.with(*role)).ok_or_else(|| BadRole(word.chars().take(80).collect()))
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Role::ALL.iter().filter(|(role, _)| self.has(*role)).map(|(_, name)| *name).collect();
        f.write_str(if names.is_empty() { "none" } else { "" })?;
        f.write_str(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_brings_what_it_needs() {
        let shown = |words: &[&str]| Roles::of(words.iter().copied()).unwrap().to_string();
        assert_eq!(shown(&[]), "none");
        assert_eq!(shown(&["read"]), "read");
        assert_eq!(shown(&["compile"]), "read, compile");
        assert_eq!(shown(&["frontend"]), "read, compile, frontend");
        assert_eq!(shown(&["admin"]), "read, admin");
        assert_eq!(
            Roles::of(["root"]).unwrap_err().to_string(),
            "\"root\" is no role: read, compile, frontend and admin are"
        );
    }
}
