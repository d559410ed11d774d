//! Notes that the daemon leaves for the next one: a small file each, for what is no great loss when it is gone.
//!
//! The first line is the BLAKE3 of what follows, as with manifests: a damaged note is no note. Written whole, and on the disk when it is
//! written, so that a crash leaves the old one or the new one.

use std::{fs, io};

use piecewised_graph::Digest;

use crate::{StoreError, layout::Layout, manifests::json_of};

/// Which note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// What was found out about the toolchain.
    Toolchain,
    /// Which keys an operator pinned. It is read and written here alone, and not by the daemon.
    Pins,
}

impl Note {
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Self::Toolchain => "toolchain",
            Self::Pins => "pins",
        }
    }
}

/// The note, if there is one that verifies.
pub(crate) fn read(layout: &Layout, note: Note) -> Result<Option<String>, StoreError> {
    let path = layout.note(note);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("read", path)(error)),
    };
    Ok(json_of(&bytes).and_then(|text| String::from_utf8(text.to_vec()).ok()))
}

/// Puts the note in place of any that is there.
pub(crate) fn write(layout: &Layout, note: Note, text: &str) -> Result<(), StoreError> {
    layout.write_note(note, &format!("{}\n{text}", Digest::of(text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_comes_back_or_is_none() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        layout.make_dirs().unwrap();
        assert_eq!(read(&layout, Note::Toolchain).unwrap(), None);
        for text in ["first", "second,\nwith two lines"] {
            write(&layout, Note::Toolchain, text).unwrap();
            assert_eq!(read(&layout, Note::Toolchain).unwrap().as_deref(), Some(text));
        }
        let path = layout.note(Note::Toolchain);
        let whole = fs::read(&path).unwrap();
        for i in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[i / 8] ^= 1 << (i % 8);
            fs::write(&path, flipped).unwrap();
            // Only the case of a digit of the digest does not count.
            assert!(
                read(&layout, Note::Toolchain).unwrap().is_none_or(|text| text == "second,\nwith two lines"),
                "bit {i}"
            );
        }
    }
}
