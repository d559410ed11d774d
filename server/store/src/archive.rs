//! The form of an export: a tar that ordinary tools can look into. No I/O but through what it is given.
//!
//! ```text
//! FORMAT                  "piecewised-export 1", and the BLAKE3 digest of B3SUMS: a digest over the whole
//! B3SUMS                  the digest of every entry that follows, as b3sum writes and checks it
//! manifests/NAME.json     one for each program, sorted
//! handles/KEY.json        the handles of the artifact that follows, sorted
//! artifacts/DIGEST        the artifact's bytes as they are; artifacts are sorted
//! ```
//! The list comes first, so that nothing is taken from a file before its digest is known. Owners, times and modes are the
//! same everywhere: one content, one file.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::{self, Read, Write},
};

use piecewised_graph::{Digest, ProgramName};

/// Version of the form. Another one is refused.
pub(crate) const VERSION: u32 = 1;
pub(crate) const FORMAT_NAME: &str = "FORMAT";
pub(crate) const SUMS_NAME: &str = "B3SUMS";
/// The longest list that is read: some two million entries.
pub(crate) const MAX_SUMS_BYTES: u64 = 256 << 20;

/// What an entry is, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    Manifest(ProgramName),
    Handle(Digest),
    Artifact(Digest),
}

impl Name {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Manifest(program) => format!("manifests/{program}.json"),
            Self::Handle(key) => format!("handles/{key}.json"),
            Self::Artifact(digest) => format!("artifacts/{digest}"),
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (folder, name) = text.split_once('/')?;
        match folder {
            "manifests" => name.strip_suffix(".json")?.parse().ok().map(Self::Manifest),
            "handles" => name.strip_suffix(".json")?.parse().ok().map(Self::Handle),
            "artifacts" => name.parse().ok().map(Self::Artifact),
            _ => None,
        }
    }
}

/// The list of entries as text.
pub(crate) fn sums_text(entries: &[(Name, Digest)]) -> String {
    let mut text = String::new();
    for (name, digest) in entries {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{digest}  {}", name.text());
    }
    text
}

/// The list of entries from its text; `None`: it is none.
pub(crate) fn parse_sums(text: &str) -> Option<HashMap<String, Digest>> {
    text.lines()
        .map(|line| line.split_once("  ").and_then(|(digest, name)| Some((name.to_owned(), digest.parse().ok()?))))
        .collect()
}

pub(crate) fn format_text(sums: &str) -> String {
    format!("piecewised-export {VERSION}\n{}  {SUMS_NAME}\n", Digest::of(sums.as_bytes()))
}

/// What the first entry says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// With the digest of the list.
    Ours(Digest),
    Version(u32),
    Foreign,
}

pub(crate) fn parse_format(text: &str) -> Format {
    let parse = || {
        let (claim, rest) = text.split_once('\n')?;
        let version: u32 = claim.strip_prefix("piecewised-export ")?.parse().ok()?;
        if version != VERSION {
            return Some(Format::Version(version));
        }
        let (digest, name) = rest.trim_end().split_once("  ")?;
        (name == SUMS_NAME).then(|| digest.parse().ok().map(Format::Ours)).flatten()
    };
    parse().unwrap_or(Format::Foreign)
}

/// Adds an entry.
pub(crate) fn append(
    tar: &mut tar::Builder<impl Write>,
    name: &str,
    n_bytes: u64,
    source: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(n_bytes);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, name, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_lists_come_back_and_others_are_refused() {
        let digest = Digest::of(b"x");
        let names = [Name::Manifest("model".parse().unwrap()), Name::Handle(digest), Name::Artifact(digest)];
        for name in &names {
            assert_eq!(Name::parse(&name.text()).as_ref(), Some(name));
        }
        for text in ["", "x", "artifacts/", "artifacts/../x", "handles/1.json", "manifests/a/b.json", "/artifacts/x"] {
            assert_eq!(Name::parse(text), None, "{text}");
        }
        let sums = sums_text(&names.clone().map(|name| (name, digest)));
        let parsed = parse_sums(&sums).unwrap();
        assert!(parsed.len() == 3 && names.iter().all(|name| parsed[&name.text()] == digest));
        assert_eq!(parse_format(&format_text(&sums)), Format::Ours(Digest::of(sums.as_bytes())));
        assert_eq!(parse_format("piecewised-export 2\nwhatever"), Format::Version(2));
        for text in ["", "piecewised-export 1\n", "piecewised-store 1\n", "piecewised-export x\n"] {
            assert_eq!(parse_format(text), Format::Foreign, "{text}");
        }
    }
}
