//! What is in the store, a page at a time, for people who look into it: nothing is dropped or counts as used for that.

use piecewised_graph::{Digest, Handle, Snapshot};

use crate::{
    FailureRecord, StoreError,
    engine::Engine,
    record::{Record, Stored},
};

/// What is stored under a key.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// The key.
    pub key: Digest,
    /// What it names.
    pub item: ListedItem,
    /// When it was last handed out, or stored: Unix time in milliseconds.
    pub used_unix_ms: u64,
    /// Whether a manifest names its artifact.
    pub is_pinned: bool,
}

/// The two kinds of things that have keys.
#[derive(Debug, Clone, PartialEq)]
pub enum ListedItem {
    /// Compiled code.
    Handle(Box<Handle>),
    /// A frontend's own bytes.
    Snapshot(Snapshot),
}

impl Engine {
    /// Up to `limit` of what is stored under keys behind `after`, by key.
    pub(crate) fn list(&self, after: Option<Digest>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        // Not in the loop's head, where its lock would be held for the whole loop.
        let keys = first(self.catalogue().keys().copied(), after, usize::MAX);
        let mut listed = Vec::new();
        for key in keys {
            if listed.len() == limit {
                break;
            }
            listed.extend(self.peek(&key)?);
        }
        Ok(listed)
    }

    /// What is stored under the keys that begin with these hexadecimal digits, up to `limit`, by key.
    pub(crate) fn list_by_prefix(&self, digits: &str, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let keys =
            self.catalogue().keys().copied().filter(|key| key.to_string().starts_with(digits)).collect::<Vec<_>>();
        first(keys.into_iter(), None, limit).iter().filter_map(|key| self.peek(key).transpose()).collect()
    }

    /// Up to `limit` failures of keys behind `after`, by key.
    pub(crate) fn list_failures(
        &self,
        after: Option<Digest>,
        limit: usize,
    ) -> Result<Vec<(Digest, FailureRecord)>, StoreError> {
        let keys = self.failed_keys();
        let mut listed = Vec::new();
        for key in first(keys.into_iter(), after, usize::MAX) {
            if listed.len() == limit {
                break;
            }
            listed.extend(self.get_failure(&key)?.map(|record| (key, record)));
        }
        Ok(listed)
    }

    /// `None` also where it is being written, or does not verify: whoever wants it will find out.
    fn peek(&self, key: &Digest) -> Result<Option<Listed>, StoreError> {
        let known = {
            let catalogue = self.catalogue();
            catalogue.key(key).and_then(|digest| Some((digest, catalogue.artifact(&digest)?.accessed)))
        };
        let (Some((digest, accessed)), Some(bytes)) = (known, self.index.record(key)?) else { return Ok(None) };
        let Some(record) = Record::decode(key, &bytes).filter(|record| record.digest == digest) else {
            return Ok(None);
        };
        let json = self.json(key, &record)?;
        let item = match json.and_then(|json| Stored::parse_of(key, &digest, record.size_bytes, &json)) {
            Some(Stored::Handle(handle)) => ListedItem::Handle(handle),
            Some(Stored::Snapshot(snapshot)) => ListedItem::Snapshot(snapshot),
            None => return Ok(None),
        };
        let is_pinned = self.shared.programs().is_pinned(&digest);
        Ok(Some(Listed { key: *key, item, used_unix_ms: accessed / 1_000_000, is_pinned }))
    }
}

fn first(keys: impl Iterator<Item = Digest>, after: Option<Digest>, limit: usize) -> Vec<Digest> {
    let mut keys: Vec<Digest> = keys.filter(|key| after.is_none_or(|after| *key > after)).collect();
    keys.sort_unstable();
    keys.truncate(limit);
    keys
}
