//! One process per store: an advisory lock on a file that says who holds it.
//!
//! The kernel drops the lock with its holder, however that ends; the text in the file is for people only.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    time::SystemTime,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{
    StoreError,
    layout::{Layout, utc_stamp},
};

/// Held for as long as it lives.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Drop for Lock {
    /// Closing the file would not always do: a process that another thread is just forking has a copy of it until it becomes its program, and
    /// the lock is all copies'.
    fn drop(&mut self) {
        if let Err(error) = flock(&self.file, FlockOperation::Unlock) {
            tracing::warn!(%error, "the store's lock could not be given back; it goes with the file");
        }
    }
}

impl Lock {
    /// # Errors
    /// [`StoreError::Locked`] where another open of the same folder holds it.
    pub(crate) fn take(layout: &Layout) -> Result<Self, StoreError> {
        let path = layout.lock_file();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let owner = match Read::take(&mut file, 1000).read_to_string(&mut text) {
                    Ok(n) if n > 0 => text.trim().to_owned(),
                    _ => "another process".to_owned(),
                };
                return Err(StoreError::Locked { path: layout.root().to_owned(), owner });
            }
            Err(error) => return Err(StoreError::io("lock", &path)(error.into())),
        }
        let text = format!(
            "process {} (since {}): {}\n",
            std::process::id(),
            utc_stamp(SystemTime::now()),
            command_line().unwrap_or_else(|| "its command line cannot be read".to_owned())
        );
        if let Err(error) = file.set_len(0).and_then(|()| file.write_all(text.as_bytes())) {
            // As on a full disk. The lock is held all the same.
            tracing::warn!(path = %path.display(), %error, "cannot note who has the store open");
        }
        Ok(Self { file })
    }
}

/// This process's command line, at most some line of text. Noted when the lock is taken and not looked up by those who find
/// it taken: in containers these may not see the process, or see another one under its number.
fn command_line() -> Option<String> {
    const MAX_CHARS: usize = 200;
    let bytes = std::fs::read("/proc/self/cmdline").ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let words: Vec<_> = text.trim_end_matches('\0').split('\0').collect();
    let line: String = words.join(" ").chars().filter(|char| !char.is_control()).collect();
    let is_long = line.chars().count() > MAX_CHARS;
    let line: String = line.chars().take(MAX_CHARS).collect();
    (!line.is_empty()).then(|| if is_long { line + "..." } else { line })
}
