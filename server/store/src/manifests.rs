//! Manifests of programs: one small file each, named by the digest of the program's name.
//!
//! Files and not records of the index for the reason that large handles are: beyond some 4 KiB a value of sled's is not synced reliably,
//! and a manifest must be there even where the index had to be rebuilt. The first line is the BLAKE3 of what follows, so that a damaged file
//! is absent, never wrong. Written like artifacts: temporary file, fsync, rename, fsync of the folder.
//!
//! Left out: whether the artifacts that a manifest names are still there. Who fetches one finds out.

use std::{fs, io};

use piecewised_graph::{Digest, Manifest, ProgramName};

use crate::{StoreError, layout::Layout};

/// Stores a manifest under its program's name, in place of any that is there. Returns whether that changed anything but its date.
pub(crate) fn put(layout: &Layout, reserve_bytes: u64, manifest: &Manifest) -> Result<bool, StoreError> {
    if get(layout, &manifest.program)?.0.is_some_and(|stored| stored.digest() == manifest.digest()) {
        return Ok(false);
    }
    let json = serde_json::to_string(manifest)
        .map_err(|error| StoreError::IndexRefused { reason: format!("the manifest has no JSON form: {error}") })?;
    layout.ensure_room(json.len() as u64, reserve_bytes)?;
    let text = format!("{}\n{json}", Digest::of(json.as_bytes()));
    layout.write_manifest(&file_name(&manifest.program), &text)?;
    Ok(true)
}

/// The manifest of that name; the flag says whether one was there that did not verify, and was deleted.
pub(crate) fn get(layout: &Layout, program: &ProgramName) -> Result<(Option<Manifest>, bool), StoreError> {
    let path = layout.manifest(&file_name(program));
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((None, false)),
        Err(error) => return Err(StoreError::io("read", path)(error)),
    };
    match parse(&bytes).filter(|manifest| manifest.program == *program) {
        Some(manifest) => Ok((Some(manifest), false)),
        None => {
            tracing::warn!(%program, path = %path.display(), "a manifest did not verify and was dropped");
            fs::remove_file(&path).map_err(StoreError::io("delete", path))?;
            Ok((None, true))
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Manifest> {
    let newline = bytes.iter().position(|&byte| byte == b'\n')?;
    let (digest, json) = (&bytes[..newline], &bytes[newline + 1..]);
    let digest: Digest = str::from_utf8(digest).ok()?.parse().ok()?;
    (Digest::of(json) == digest).then(|| serde_json::from_slice(json).ok()).flatten()
}

fn file_name(program: &ProgramName) -> String {
    Digest::of(program.as_str().as_bytes()).to_string()
}
