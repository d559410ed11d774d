//! What of a request's end counts for its model part, in `GetStatus`.

use std::{collections::HashMap, sync::Arc};

use piecewised_graph::Digest;
use piecewised_plan::Range;
use piecewised_proto::v1::{self, compile_event::Event};
use piecewised_scheduler::{Became, Origin, Scheduler, Ticket};

/// Counts each key of a request once, by the entry that brought it there.
pub(crate) struct Account {
    to: Option<(Scheduler, Arc<str>)>,
    /// By the position of an entry that counts.
    keys: HashMap<usize, Digest>,
}

impl Account {
    /// For the entries of a request with this label. Without a scheduler nothing is counted.
    pub(crate) fn new(to: Option<(Scheduler, Arc<str>)>, tickets: &[(Option<Range>, Ticket)]) -> Self {
        let mut positions: HashMap<Digest, usize> = HashMap::new();
        for (position, (_, ticket)) in tickets.iter().enumerate() {
            let (key, is_first) = match ticket {
                Ticket::Stored(handle) => (handle.key, false),
                Ticket::Failed { key, .. } => (*key, false),
                // Of the entries that one compile serves, the one that it was begun for.
                Ticket::Running(watcher) => (watcher.key(), matches!(watcher.origin(), Origin::Queued { .. })),
            };
            if is_first {
                positions.insert(key, position);
            } else {
                positions.entry(key).or_insert(position);
            }
        }
        Self { to, keys: positions.into_iter().map(|(key, position)| (position, key)).collect() }
    }

    /// What became of an entry.
    pub(crate) fn note(&mut self, position: usize, event: &Event) {
        let became = match event {
            Event::Ready(ready) => {
                let timings = ready.handle.as_ref().and_then(|handle| handle.timings.as_ref());
                let seconds = timings.map_or(0.0, |timings| timings.total_s);
                match ready.source() {
                    v1::Source::Store => Became::Stored(seconds),
                    v1::Source::Joined => Became::Joined(seconds),
                    v1::Source::Compiled | v1::Source::Unspecified => Became::Compiled(seconds),
                }
            }
            Event::Failed(_) => Became::Failed,
            _ => return,
        };
        if let (Some((scheduler, label)), Some(key)) = (&self.to, self.keys.remove(&position)) {
            scheduler.activities().count(label, key, became);
        }
    }
}
