//! What callers last sent under a label, to say where two of them differ: ranks whose graphs are not alike share nothing, and somebody wonders
//! why.
//!
//! Bounded, in memory, and forgotten after a while. The graphs themselves are kept a while longer, by digest, for explaining misses. Left out: whether a difference is a mistake (often it is none: the part of a vocabulary that a
//! rank has is written into its graph).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use piecewised_graph::{Digest, first_difference, model::Graph};

use crate::Peer;

const MAX_LABELS: usize = 4096;
const MAX_BYTES: usize = 64 << 20;
/// Who asks later is another start of an engine, and not another rank of the same.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// How a caller's graph differs from what another one sent under its label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelDifference {
    /// The caller's name for the first node that differs; empty: it is not in a node.
    pub node: String,
    /// What is different there, as a sentence.
    pub what: String,
    /// The other caller.
    pub peer: Peer,
}

/// The last graph of each label.
#[derive(Debug, Default)]
pub struct Labels {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_label: HashMap<Arc<str>, Sent>,
    bytes: usize,
    graphs: Graphs,
}

/// The graphs that were sent last, whatever they were called. Most are those of `by_label` too, and then cost nothing.
#[derive(Debug, Default)]
struct Graphs {
    by_digest: HashMap<Digest, (Arc<str>, Instant)>,
    bytes: usize,
}

#[derive(Debug, Clone)]
struct Sent {
    peer: Peer,
    digest: Digest,
    graph: Arc<str>,
    at: Instant,
}

impl Labels {
    /// Notes what a peer sends under a label, and what another peer sent last, if that is something else. `graph`: canonical JSON.
    pub fn note(&self, label: &Arc<str>, peer: &Peer, (digest, graph): (Digest, &Arc<str>)) -> Option<Unlike> {
        let sent = Sent { peer: peer.clone(), digest, graph: Arc::clone(graph), at: Instant::now() };
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.graphs.insert(&sent);
        if label.is_empty() {
            return None;
        }
        let before = inner.insert(label, sent)?;
        drop(inner);
        if before.peer == *peer || before.digest == digest || before.at.elapsed() > FORGOTTEN_AFTER {
            return None;
        }
        Some(Unlike { ours: Arc::clone(graph), theirs: before.graph, peer: before.peer })
    }
}

/// Two graphs of one label.
#[derive(Debug)]
pub struct Unlike {
    ours: Arc<str>,
    theirs: Arc<str>,
    peer: Peer,
}

impl Unlike {
    /// Where they differ. `names`: the nodes' own, in order. Takes as long as parsing both.
    pub fn difference(self, names: &[String]) -> Option<LabelDifference> {
        let [ours, theirs] = [&self.ours, &self.theirs].map(|text| serde_json::from_str::<Graph>(text).ok());
        let found = first_difference(&ours?, &theirs?)?;
        let node = found.position.and_then(|position| names.get(position)).cloned().unwrap_or_default();
        Some(LabelDifference { node, what: found.what, peer: self.peer })
    }
}

impl Labels {
    /// The canonical JSON of a graph that is remembered.
    pub fn graph(&self, digest: &Digest) -> Option<Arc<str>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.graphs.by_digest.get(digest).map(|(graph, _)| Arc::clone(graph))
    }
}

impl Graphs {
    /// Keeps a graph, and lets the oldest go where there is too much.
    fn insert(&mut self, sent: &Sent) {
        if let Some((_, at)) = self.by_digest.get_mut(&sent.digest) {
            *at = sent.at;
            return;
        }
        self.bytes += sent.graph.len();
        self.by_digest.insert(sent.digest, (Arc::clone(&sent.graph), sent.at));
        while self.by_digest.len() > MAX_LABELS || (self.bytes > MAX_BYTES && self.by_digest.len() > 1) {
            let oldest = self.by_digest.iter().min_by_key(|(_, (_, at))| *at).map(|(digest, _)| *digest);
            let gone = oldest.and_then(|digest| self.by_digest.remove(&digest));
            self.bytes -= gone.map_or(0, |(graph, _)| graph.len());
        }
    }
}

impl Inner {
    /// Puts it in place of what was there, and lets the oldest go where there is too much.
    fn insert(&mut self, label: &Arc<str>, sent: Sent) -> Option<Sent> {
        self.bytes += sent.graph.len();
        let before = self.by_label.insert(Arc::clone(label), sent);
        self.bytes -= before.as_ref().map_or(0, |before| before.graph.len());
        while self.by_label.len() > MAX_LABELS || (self.bytes > MAX_BYTES && self.by_label.len() > 1) {
            let oldest = self.by_label.iter().min_by_key(|(_, sent)| sent.at).map(|(label, _)| Arc::clone(label));
            let gone = oldest.and_then(|label| self.by_label.remove(&label));
            self.bytes -= gone.map_or(0, |gone| gone.graph.len());
        }
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(value: i64) -> (Digest, Arc<str>) {
        let text: Arc<str> = format!(
            r#"{{"nodes":[{{"name":"n0","op":{{"call_function":{{"target":"f","args":[{{"int":{value}}}]}}}}}},{{"name":"n1","op":{{"output":{{"value":"none"}}}}}}]}}"#
        )
        .into();
        (Digest::of(text.as_bytes()), text)
    }

    #[test]
    fn another_peers_other_graph_is_a_difference() {
        let labels = Labels::default();
        let [one, two] = ["one", "two"].map(Peer::new);
        let note = |label: &str, peer: &Peer, value| {
            let (digest, text) = graph(value);
            let names = ["node0", "node1"].map(str::to_owned);
            labels.note(&label.into(), peer, (digest, &text)).and_then(|unlike| unlike.difference(&names))
        };
        assert_eq!(note("a", &one, 1), None);
        assert_eq!(note("a", &two, 1), None, "the same");
        assert_eq!(note("a", &two, 2), None, "its own");
        assert_eq!(note("b", &one, 3), None, "another label");
        assert_eq!(note("", &one, 3), None);
        assert_eq!(note("", &two, 4), None, "no label");
        // Also what was sent without a label, or in whose place another one came.
        for value in 1..=4 {
            let (digest, text) = graph(value);
            assert_eq!(labels.graph(&digest), Some(text));
        }
        assert_eq!(labels.graph(&graph(5).0), None);
        let found = note("a", &one, 1).unwrap();
        assert_eq!((found.node.as_str(), &found.peer), ("node0", &two));
        assert_eq!(found.what, r#"argument 0 of f is {"int":1}, the other's is {"int":2}"#);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let labels = Labels::default();
        let peer = Peer::new("one");
        let large: Arc<str> = "x".repeat(MAX_BYTES / 4).into();
        for n in 0..10 {
            labels.note(&format!("large {n}").into(), &peer, (Digest([n; 32]), &large));
        }
        let bytes = labels.inner.lock().unwrap().bytes;
        assert_eq!(bytes, MAX_BYTES / 4 * 4);
        let (digest, small) = graph(1);
        for n in 0..MAX_LABELS + 10 {
            labels.note(&format!("small {n}").into(), &peer, (digest, &small));
        }
        let inner = labels.inner.lock().unwrap();
        assert_eq!(inner.by_label.len(), MAX_LABELS);
        let graphs = &inner.graphs.by_digest;
        assert!(graphs.contains_key(&digest) && graphs.len() == 4, "a graph is kept once, and three of the large ones");
        assert_eq!(inner.graphs.bytes, graphs.values().map(|(graph, _)| graph.len()).sum::<usize>());
        assert!(inner.graphs.bytes <= MAX_BYTES);
        assert_eq!(inner.bytes, inner.by_label.values().map(|sent| sent.graph.len()).sum::<usize>());
    }
}
