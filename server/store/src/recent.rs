//! Handles that were looked up a moment ago. Workers that start together ask for the same ones, again and again, and each lookup goes through the index,
//! the file system and JSON.
//!
//! A change of a key is seen at once, since whoever changes the catalogue forgets the key here. What changes behind the store's back, an
//! artifact's file that somebody removes, is seen when the moment is over.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use piecewised_graph::{Digest, Handle};

/// The moment.
const KEPT_FOR: Duration = Duration::from_secs(1);
/// Some kilobytes each.
const MAX_HANDLES: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Recent {
    handles: HashMap<Digest, (Handle, Instant)>,
    n_changes: u64,
}

/// The state that a lookup began in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark(u64);

impl Recent {
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.n_changes)
    }

    /// Keeps what a lookup found, unless something changed while it looked: that may have been this key.
    pub(crate) fn keep(&mut self, mark: Mark, handle: &Handle) {
        if mark != self.mark() {
            return;
        }
        if self.handles.len() >= MAX_HANDLES {
            self.handles.retain(|_, (_, at)| at.elapsed() < KEPT_FOR);
        }
        if self.handles.len() < MAX_HANDLES {
            self.handles.insert(handle.key, (handle.clone(), Instant::now()));
        }
    }

    pub(crate) fn get(&self, key: &Digest) -> Option<&Handle> {
        self.handles.get(key).filter(|(_, at)| at.elapsed() < KEPT_FOR).map(|(handle, _)| handle)
    }

    /// What is stored under a key changes.
    pub(crate) fn forget(&mut self, key: &Digest) {
        self.n_changes += 1;
        self.handles.remove(key);
    }
}
