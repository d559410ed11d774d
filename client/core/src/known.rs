//! The daemons' keys that were taken on first use: a file in the cache folder, one daemon a line, the key and the address.
//!
//! Several processes use it at once: it is read and added to under a lock. People edit it: a line that is removed is a daemon that is not known.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use piecewised_graph::PublicKey;

use crate::{ClientError, cache::check_private, trust::TrustError};

const NAME: &str = "known_daemons";
const HEADER: &str =
    "# Keys of piecewised daemons, taken when their Unix sockets were used first. Remove a line to take a new key.\n";

/// The file.
#[derive(Debug)]
pub(crate) struct Known {
    folder: PathBuf,
    path: PathBuf,
}

impl Known {
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), path: folder.join(NAME) }
    }

    /// Whether some daemon is known by this key. A file that cannot be read, or that others could write, knows none.
    pub(crate) fn has(&self, key: PublicKey) -> bool {
        let read = check_private(&self.folder).ok().and_then(|()| std::fs::read_to_string(&self.path).ok());
        read.is_some_and(|text| lines(&text).any(|(known, _)| known == key))
    }

    /// Refuses another key than the address is known by; where it is not known yet, and `may_take` agrees, it is from now on.
    pub(crate) fn check_or_take(
        &self,
        address: &str,
        found: PublicKey,
        may_take: impl FnOnce() -> Result<(), TrustError>,
    ) -> Result<(), ClientError> {
        let io = |action: &'static str| ClientError::io(action, &self.path);
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.folder).map_err(ClientError::io("creating", &self.folder))?;
        check_private(&self.folder)?;
        let mut file = self.open().map_err(io("opening"))?;
        // Given up when the file is closed.
        file.lock().map_err(io("locking"))?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(io("reading"))?;
        let known: Vec<PublicKey> = lines(&text).filter(|(_, line)| *line == address).map(|(key, _)| key).collect();
        if known.contains(&found) {
            return Ok(());
        }
        if !known.is_empty() {
            let (endpoint, file) = (address.to_owned(), self.path.clone());
            return Err(TrustError::KeyChanged { endpoint, found, known, file }.into());
        }
        may_take()?;
        // What cannot be a line of its own is taken by this process alone.
        if address.contains(['\n', '\r']) {
            return Ok(());
        }
        let mut line = if text.is_empty() { HEADER.to_owned() } else { String::new() };
        if !text.is_empty() && !text.ends_with('\n') {
            line.push('\n');
        }
        line.push_str(&format!("{found} {address}\n"));
        file.write_all(line.as_bytes()).and_then(|()| file.sync_data()).map_err(io("writing"))?;
        tracing::info!(key = %found, daemon = address, "took the daemon's key on first use");
        Ok(())
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path)
    }
}

/// What is no such line does not count.
fn lines(text: &str) -> impl Iterator<Item = (PublicKey, &str)> {
    text.lines().filter_map(|line| {
        let (key, address) = line.trim().split_once(' ')?;
        Some((key.parse().ok()?, address.trim()))
    })
}
