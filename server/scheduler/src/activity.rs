//! What became of what was asked for, by model part: a part is a label without what follows its last `/`.
//!
//! Counted is what a request needed compiled, each key once: a generic compile that serves all ranges of a request is one. In memory, since the
//! start, and bounded; what is said of a part that was given up for others begins anew.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use piecewised_graph::Digest;

use crate::LabelDifference;

const MAX_PARTS: usize = 256;
/// Labels and keys that one part's are counted apart for.
const MAX_DISTINCT: usize = 1 << 16;
/// Differences that are kept of a part: the latest.
const MAX_DIFFERENCES: usize = 16;

/// What became of one key of one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Became {
    /// Compiled for it; the seconds that took.
    Compiled(f64),
    /// Compiled for another one meanwhile; the seconds that it would have taken.
    Joined(f64),
    /// It was in the store; the seconds that it once took.
    Stored(f64),
    /// It failed.
    Failed,
}

/// Sums.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs, reason = "documented once, at the proto's Activity")]
pub struct Activity {
    pub n_pieces: u64,
    pub n_keys: u64,
    pub n_compiled: u64,
    pub n_joined: u64,
    pub n_from_store: u64,
    pub n_failed: u64,
    pub compile_s: f64,
    pub saved_s: f64,
}

/// One part, and its activity.
#[derive(Debug, Clone, PartialEq)]
pub struct PartActivity {
    /// Empty: what had no label.
    pub part: String,
    /// Its sums.
    pub activity: Activity,
    /// The labels of pieces that were not the same for everybody who sent them, and how: the latest.
    pub differences: Vec<(Arc<str>, LabelDifference)>,
}

/// All parts.
#[derive(Debug, Default)]
pub struct Activities {
    parts: Mutex<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    all: Part,
    by_name: BTreeMap<String, Part>,
    /// Counts up with each change.
    clock: u64,
}

#[derive(Debug, Default)]
struct Part {
    labels: HashSet<Arc<str>>,
    keys: HashSet<Digest>,
    sums: Activity,
    differences: Vec<(Arc<str>, LabelDifference)>,
    changed: u64,
}

impl Activities {
    fn lock(&self) -> MutexGuard<'_, Parts> {
        // Sums of numbers: a panic leaves at worst one of them behind the others.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one key of one request.
    pub fn count(&self, label: &Arc<str>, key: Digest, became: Became) {
        let mut parts = self.lock();
        parts.all.count(label, key, became);
        parts.of(label).count(label, key, became);
    }

    /// Notes how a piece differs from what another peer sent as the same.
    pub fn differs(&self, label: &Arc<str>, difference: LabelDifference) {
        let mut parts = self.lock();
        let differences = &mut parts.of(label).differences;
        differences.retain(|(known, _)| known != label);
        if differences.len() == MAX_DIFFERENCES {
            differences.remove(0);
        }
        differences.push((Arc::clone(label), difference));
    }

    /// The sums of all, and of each part by its name.
    pub fn report(&self) -> (Activity, Vec<PartActivity>) {
        let parts = self.lock();
        let part = |(name, part): (&String, &Part)| PartActivity {
            part: name.clone(),
            activity: part.activity(),
            differences: part.differences.clone(),
        };
        (parts.all.activity(), parts.by_name.iter().map(part).collect())
    }
}

impl Parts {
    fn of(&mut self, label: &str) -> &mut Part {
        let name = label.rsplit_once('/').map_or(label, |(part, _)| part).to_owned();
        self.clock += 1;
        if self.by_name.len() >= MAX_PARTS && !self.by_name.contains_key(&name) {
            let oldest = self.by_name.iter().min_by_key(|(_, part)| part.changed).map(|(name, _)| name.clone());
            oldest.and_then(|name| self.by_name.remove(&name));
        }
        let part = self.by_name.entry(name).or_default();
        part.changed = self.clock;
        part
    }
}

impl Part {
    fn count(&mut self, label: &Arc<str>, key: Digest, became: Became) {
        if self.labels.len() < MAX_DISTINCT && !label.is_empty() {
            self.labels.insert(Arc::clone(label));
        }
        if self.keys.len() < MAX_DISTINCT {
            self.keys.insert(key);
        }
        let sums = &mut self.sums;
        match became {
            Became::Compiled(seconds) => {
                (sums.n_compiled, sums.compile_s) = (sums.n_compiled + 1, sums.compile_s + seconds)
            }
            Became::Joined(seconds) => (sums.n_joined, sums.saved_s) = (sums.n_joined + 1, sums.saved_s + seconds),
            Became::Stored(seconds) => {
                (sums.n_from_store, sums.saved_s) = (sums.n_from_store + 1, sums.saved_s + seconds)
            }
            Became::Failed => sums.n_failed += 1,
        }
    }

    fn activity(&self) -> Activity {
        Activity { n_pieces: self.labels.len() as u64, n_keys: self.keys.len() as u64, ..self.sums.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_labels_without_their_last_word() {
        let activities = Activities::default();
        let key = |n| Digest([n; 32]);
        let count = |label: &str, n, became| activities.count(&label.into(), key(n), became);
        count("llama/backbone/0", 1, Became::Compiled(4.0));
        count("llama/backbone/1", 1, Became::Stored(4.0));
        count("llama/backbone/1", 2, Became::Joined(2.0));
        count("llama/head/0", 3, Became::Failed);
        count("", 4, Became::Compiled(1.0));
        let (all, parts) = activities.report();
        assert_eq!((all.n_pieces, all.n_keys, all.n_compiled, all.compile_s, all.saved_s), (3, 4, 2, 5.0, 6.0));
        let names: Vec<_> = parts.iter().map(|part| part.part.as_str()).collect();
        assert_eq!(names, ["", "llama/backbone", "llama/head"]);
        let backbone = Activity {
            n_pieces: 2,
            n_keys: 2,
            n_compiled: 1,
            n_joined: 1,
            n_from_store: 1,
            n_failed: 0,
            compile_s: 4.0,
            saved_s: 6.0,
        };
        assert_eq!(parts[1].activity, backbone);
        assert_eq!(parts[2].activity.n_failed, 1);
    }

    #[test]
    fn parts_are_bounded_and_the_oldest_goes() {
        let activities = Activities::default();
        for n in 0..MAX_PARTS + 1 {
            activities.count(&format!("part{n}/0").into(), Digest([0; 32]), Became::Failed);
            activities.count(&"part0/1".into(), Digest([0; 32]), Became::Failed);
        }
        let (all, parts) = activities.report();
        assert_eq!((parts.len(), all.n_failed), (MAX_PARTS, 2 * (MAX_PARTS as u64 + 1)));
        assert!(parts.iter().any(|part| part.part == "part0") && !parts.iter().any(|part| part.part == "part1"));
    }
}
