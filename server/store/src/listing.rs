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
    /// Whether an operator pinned the key.
    pub is_pinned_by_operator: bool,
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
        let keys = self.catalogue().keys().copied().collect();
        page(keys, after, limit, |key| self.peek(key))
    }

    /// What is stored under the keys that begin with these hexadecimal digits, up to `limit`, by key.
    pub(crate) fn list_by_prefix(&self, digits: &str, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let keys = self.catalogue().keys().copied().filter(|key| key.to_string().starts_with(digits)).collect();
        page(keys, None, limit, |key| self.peek(key))
    }

    /// Up to `limit` failures of keys behind `after`, by key.
    pub(crate) fn list_failures(
        &self,
        after: Option<Digest>,
        limit: usize,
    ) -> Result<Vec<(Digest, FailureRecord)>, StoreError> {
        page(self.failed_keys(), after, limit, |key| Ok(self.get_failure(key)?.map(|record| (*key, record))))
    }

    /// `None` also where it is being written, or does not verify: whoever wants it will find out.
    pub(crate) fn peek(&self, key: &Digest) -> Result<Option<Listed>, StoreError> {
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
        let is_pinned_by_operator = self.shared.pins().has(key);
        Ok(Some(Listed { key: *key, item, used_unix_ms: accessed / 1_000_000, is_pinned, is_pinned_by_operator }))
    }
}

/// What is found under the first keys behind `after`, by key, until it is `limit`.
fn page<T>(
    mut keys: Vec<Digest>,
    after: Option<Digest>,
    limit: usize,
    find: impl Fn(&Digest) -> Result<Option<T>, StoreError>,
) -> Result<Vec<T>, StoreError> {
    keys.retain(|key| after.is_none_or(|after| *key > after));
    keys.sort_unstable();
    keys.iter().filter_map(|key| find(key).transpose()).take(limit).collect()
}
