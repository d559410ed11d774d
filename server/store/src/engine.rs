//! The store's operations, blocking: one index, its catalogue, and the artifact files. What they do is in the files beside:
//! lookups, puts, evictions, failures and manifests.
//!
//! Order of a write: file (temporary, fsync, rename, fsync of the folder), record, flush, fsync, and only then the
//! catalogue, from which everything is answered. A removal goes the other way round. At any moment in between, a crash
//! leaves either nothing or a whole file that the next open takes over.
//!
//! Locks, in this order: the manifests' turn; the evictions' turn; an artifact's lock (for everything that changes its file;
//! held across the commit; only an eviction takes several, in order); the commit's turn; the catalogue's; the failures'; the
//! programs'; the pins'; the held artifacts'. The last five are never held while sled or a file is touched.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use piecewised_graph::Digest;

use crate::{
    StoreConfig, StoreError,
    blobs::Blobs,
    catalogue::Catalogue,
    commit::Committer,
    counters::Counters,
    failures::{Failures, Remembered},
    held::Held,
    index::{Fingerprint, Index},
    layout::Layout,
    pins::Pins,
    programs::Programs,
    record::Record,
};

/// What outlives an index that had to be reopened.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: StoreConfig,
    pub(crate) layout: Layout,
    pub(crate) blobs: Blobs,
    pub(crate) counters: Counters,
    /// A file could not be brought into line with the index: the next open has to look at all of them.
    pub(crate) is_untidy: AtomicBool,
    /// An artifact's lock is the one of its first byte.
    locks: [Mutex<()>; 256],
    manifest_turn: Mutex<()>,
    /// With the first bytes of evicted artifacts whose folders were not synced since.
    eviction_turn: Mutex<BTreeSet<u8>>,
    programs: Mutex<Programs>,
    pins: Mutex<Pins>,
    held: Mutex<Held>,
    /// The last write found no room.
    pub(crate) is_full: AtomicBool,
    /// The last write failed otherwise.
    pub(crate) is_failing: AtomicBool,
    /// It was said that manifests and operators pin more than there may be.
    pub(crate) warned_of_pins: AtomicBool,
    /// Long work in the background ends early.
    pub(crate) is_closing: AtomicBool,
    last_stamp: AtomicU64,
}

impl Shared {
    pub(crate) fn new(config: StoreConfig, layout: Layout) -> Self {
        Self {
            blobs: Blobs::new(layout.clone()),
            config,
            layout,
            counters: Counters::default(),
            is_untidy: AtomicBool::new(false),
            locks: std::array::from_fn(|_| Mutex::new(())),
            manifest_turn: Mutex::new(()),
            eviction_turn: Mutex::default(),
            programs: Mutex::default(),
            pins: Mutex::default(),
            held: Mutex::default(),
            is_full: AtomicBool::new(false),
            is_failing: AtomicBool::new(false),
            warned_of_pins: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            last_stamp: AtomicU64::new(0),
        }
    }

    pub(crate) fn lock(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        guard(&self.locks[usize::from(digest.0[0])])
    }

    /// The locks of several artifacts. Under the evictions' turn only.
    pub(crate) fn lock_all<'a>(&self, digests: impl Iterator<Item = &'a Digest>) -> Vec<MutexGuard<'_, ()>> {
        let first_bytes: BTreeSet<u8> = digests.map(|digest| digest.0[0]).collect();
        first_bytes.into_iter().map(|first| guard(&self.locks[usize::from(first)])).collect()
    }

    pub(crate) fn manifest_turn(&self) -> MutexGuard<'_, ()> {
        guard(&self.manifest_turn)
    }

    pub(crate) fn eviction_turn(&self) -> MutexGuard<'_, BTreeSet<u8>> {
        guard(&self.eviction_turn)
    }

    pub(crate) fn programs(&self) -> MutexGuard<'_, Programs> {
        guard(&self.programs)
    }

    pub(crate) fn pins(&self) -> MutexGuard<'_, Pins> {
        guard(&self.pins)
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, Held> {
        guard(&self.held)
    }

    /// Unix time in nanoseconds, but always later than any before.
    pub(crate) fn stamp(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let next = |last: u64| Some(now.max(last.saturating_add(1)));
        match self.last_stamp.fetch_update(Relaxed, Relaxed, next) {
            Ok(last) | Err(last) => now.max(last.saturating_add(1)),
        }
    }

    /// Makes later stamps later than this one, whatever the clock says.
    pub(crate) fn saw_stamp(&self, stamp: u64) {
        self.last_stamp.fetch_max(stamp, Relaxed);
    }
}

/// A change of the index.
pub(crate) enum Op {
    /// `held`: meant only if that is still what is held under the key, since this stamp.
    Put {
        key: Digest,
        digest: Digest,
        size_bytes: u64,
        stamp: u64,
        record: Vec<u8>,
        held: bool,
    },
    Remove {
        key: Digest,
        when: When,
    },
    Fail {
        key: Digest,
        failure: Vec<u8>,
        remembered: Remembered,
    },
    Forget {
        keys: Vec<Digest>,
    },
    /// Keys, and the artifacts that they name.
    Evict {
        handles: Vec<(Digest, Digest)>,
    },
}

/// Which record a removal is meant for, so that it never hits a newer one.
pub(crate) enum When {
    Always,
    Names(Digest),
    Undecodable,
}

/// An open store.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) index: Index,
    catalogue: Mutex<Catalogue>,
    failures: Mutex<Failures>,
    /// The effect of a change is the artifact that its key does not name, or no longer.
    pub(crate) committer: Committer<Op, Option<Digest>>,
}

impl Engine {
    pub(crate) fn new(shared: Arc<Shared>, index: Index, catalogue: Catalogue, failures: Failures) -> Self {
        let (catalogue, failures) = (Mutex::new(catalogue), Mutex::new(failures));
        Self { shared, index, catalogue, failures, committer: Committer::new() }
    }

    pub(crate) fn catalogue(&self) -> MutexGuard<'_, Catalogue> {
        guard(&self.catalogue)
    }

    pub(crate) fn failures(&self) -> MutexGuard<'_, Failures> {
        guard(&self.failures)
    }

    pub(crate) fn n_flushes(&self) -> u64 {
        self.index.n_flushes()
    }

    pub(crate) fn submit(&self, op: Op, n_bytes: usize) -> Result<Option<Digest>, StoreError> {
        self.committer.submit(op, n_bytes, |ops| self.apply(ops))
    }

    fn apply(&self, ops: &[Op]) -> Result<Vec<Option<Digest>>, StoreError> {
        let mut is_applied = Vec::with_capacity(ops.len());
        for (i, op) in ops.iter().enumerate() {
            is_applied.push(match op {
                Op::Put { key, stamp, held: true, .. } if !self.is_still_held(key, *stamp, &ops[..i]) => false,
                Op::Put { key, record, .. } => {
                    self.index.put_record(key, record)?;
                    self.index.remove_failure(&key.0)?;
                    true
                }
                Op::Remove { key, when } => {
                    let found = self.index.record(key)?;
                    let is_meant = found.is_some_and(|bytes| match (when, Record::decode(key, &bytes)) {
                        (When::Always, _) | (When::Undecodable, None) => true,
                        (When::Names(digest), Some(record)) => record.digest == *digest,
                        _ => false,
                    });
                    if is_meant {
                        self.index.remove_record(&key.0)?;
                    }
                    is_meant
                }
                Op::Fail { key, failure, .. } => {
                    self.index.put_failure(key, failure)?;
                    true
                }
                Op::Evict { handles } => {
                    for (key, digest) in handles {
                        let found = self.index.record(key)?;
                        let other = found.and_then(|bytes| Record::decode(key, &bytes).map(|record| record.digest));
                        if other.is_none_or(|other| other == *digest) {
                            self.index.remove_record(&key.0)?;
                        }
                    }
                    true
                }
                Op::Forget { keys } => {
                    keys.iter().try_for_each(|key| self.index.remove_failure(&key.0))?;
                    true
                }
            });
        }
        if let Some(totals) = self.shared.counters.due() {
            self.index.put_totals(totals)?;
        }
        self.index.flush()?;

        let (mut catalogue, mut failures) = (self.catalogue(), self.failures());
        let effects = ops.iter().zip(is_applied).map(|(op, is_applied)| match op {
            Op::Put { digest, .. } if !is_applied => Some(*digest),
            Op::Put { key, digest, size_bytes, stamp, .. } => {
                failures.remove(key);
                self.shared.held().remove(key);
                catalogue.insert(*key, *digest, *size_bytes, *stamp)
            }
            Op::Remove { key, .. } if is_applied => catalogue.remove(key),
            Op::Remove { .. } => None,
            Op::Fail { key, remembered, .. } => {
                failures.insert(*key, *remembered);
                None
            }
            Op::Evict { handles } => {
                for (key, digest) in handles {
                    if catalogue.key(key) == Some(*digest) {
                        catalogue.remove(key);
                    }
                }
                None
            }
            Op::Forget { keys } => {
                keys.iter().for_each(|key| failures.remove(key));
                None
            }
        });
        Ok(effects.collect())
    }

    /// Whether an artifact is still held under `key` since that stamp, and no operation before takes its place.
    fn is_still_held(&self, key: &Digest, stamp: u64, before: &[Op]) -> bool {
        let replaces = |op: &Op| matches!(op, Op::Put { key: other, held: false, .. } if other == key);
        self.shared.held().has(key, stamp) && !before.iter().any(replaces)
    }

    /// Makes everything durable, the counters too; returns what tells this state of the index.
    pub(crate) fn finish(&self) -> Result<Fingerprint, StoreError> {
        self.save_uses(0)?;
        self.index.put_totals(self.shared.counters.totals())?;
        self.index.flush()?;
        Ok(self.index.scan()?.fingerprint)
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
