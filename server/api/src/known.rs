//! Requests that were checked a while ago: ranks, replicas and restarts ask for the same, and checking a graph takes longer than all else of a hit.
//!
//! What a request is known by is all of it that a check looks at: without its program and its run, which each start has anew, and its priority. A check also
//! depends on the toolchain, so that another one forgets everything.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use piecewised_graph::Digest;
use piecewised_proto::v1;
use piecewised_scheduler::ToolchainInfo;
use prost::Message as _;

use crate::{
    ApiConfig,
    request::{Checked, check},
    status::ApiError,
};

/// What may be kept, in two generations: what of the older one is not asked for goes.
const MAX_BYTES: usize = 32 << 20;
/// A request up to this length is looked up at once: digesting it takes a few microseconds.
const MAX_BYTES_AT_ONCE: usize = 64 << 10;

/// Checked requests, in memory.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// What they were checked against.
    toolchain: Option<Arc<ToolchainInfo>>,
    young: HashMap<Digest, Arc<Checked>>,
    young_bytes: usize,
    old: HashMap<Digest, Arc<Checked>>,
}

/// What a request is known by.
fn name(request: &mut v1::CompileRequest) -> Digest {
    let (program, priority) = (request.program.take(), std::mem::take(&mut request.priority));
    let name = Digest::of(&request.encode_to_vec());
    (request.program, request.priority) = (program, priority);
    name
}

impl Known {
    /// A request that is short and known, without blocking.
    pub(crate) fn at_once(&self, request: &mut v1::CompileRequest, info: &Arc<ToolchainInfo>) -> Option<Arc<Checked>> {
        if request.encoded_len() > MAX_BYTES_AT_ONCE { None } else { self.find(&name(request), info) }
    }

    /// Checks a request, unless it is known. Not for an async thread: it takes milliseconds for large graphs.
    pub(crate) fn check(
        &self,
        mut request: v1::CompileRequest,
        info: &Arc<ToolchainInfo>,
        config: &ApiConfig,
    ) -> Result<Arc<Checked>, ApiError> {
        let name = name(&mut request);
        if let Some(found) = self.find(&name, info) {
            return Ok(found);
        }
        let checked = Arc::new(check(request, info, config)?);
        self.keep(name, info, &checked);
        Ok(checked)
    }

    fn find(&self, name: &Digest, info: &Arc<ToolchainInfo>) -> Option<Arc<Checked>> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.is_of(info) {
            return None;
        }
        if let Some(found) = inner.young.get(name) {
            return Some(Arc::clone(found));
        }
        let found = inner.old.remove(name)?;
        inner.insert(*name, Arc::clone(&found));
        Some(found)
    }

    fn keep(&self, name: Digest, info: &Arc<ToolchainInfo>, checked: &Arc<Checked>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.is_of(info) {
            *inner = Inner { toolchain: Some(Arc::clone(info)), ..Inner::default() };
        }
        inner.insert(name, Arc::clone(checked));
    }
}

impl Inner {
    fn is_of(&self, info: &Arc<ToolchainInfo>) -> bool {
        self.toolchain.as_ref().is_some_and(|toolchain| Arc::ptr_eq(toolchain, info))
    }

    fn insert(&mut self, name: Digest, checked: Arc<Checked>) {
        let n_bytes = checked.n_bytes();
        if n_bytes > MAX_BYTES / 2 {
            return;
        }
        if self.young_bytes + n_bytes > MAX_BYTES / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if self.young.insert(name, checked).is_none() {
            self.young_bytes += n_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(n_bytes: usize) -> Arc<Checked> {
        Arc::new(Checked {
            entries: Vec::new(),
            specs: Vec::new(),
            tuned: Vec::new(),
            order: Vec::new(),
            is_strict: false,
            label: "".into(),
            graph_digest: Digest([0; 32]),
            graph: "x".repeat(n_bytes).into(),
            names: Vec::new(),
        })
    }

    #[test]
    fn what_is_not_asked_for_goes_and_there_is_never_too_much() {
        let mut inner = Inner::default();
        let third = MAX_BYTES / 6;
        for n in 0..4 {
            inner.insert(Digest([n; 32]), checked(third));
            assert!(inner.young_bytes <= MAX_BYTES / 2);
        }
        let there = |inner: &Inner| {
            let is_there = |n: &u8| [&inner.young, &inner.old].iter().any(|all| all.contains_key(&Digest([*n; 32])));
            (0..8).filter(is_there).collect::<Vec<u8>>()
        };
        assert_eq!(there(&inner), [0, 1, 2, 3]);
        inner.insert(Digest([4; 32]), checked(third));
        inner.insert(Digest([4; 32]), checked(third));
        assert_eq!(inner.young_bytes, third * 2, "the same again counts once");
        inner.insert(Digest([5; 32]), checked(third));
        inner.insert(Digest([6; 32]), checked(third));
        assert_eq!(there(&inner), [3, 4, 5, 6]);
        inner.insert(Digest([7; 32]), checked(MAX_BYTES));
        assert_eq!(there(&inner), [3, 4, 5, 6], "what is too large is not kept");
    }

    #[test]
    fn a_request_is_known_whoever_starts_and_however_urgent_it_is() {
        let request = |label: &str, program: Option<&str>, priority| v1::CompileRequest {
            label: label.into(),
            priority,
            program: program.map(|run| v1::ProgramPiece { run: run.into(), ..v1::ProgramPiece::default() }),
            ..v1::CompileRequest::default()
        };
        let mut first = request("a", Some("run 1"), 1);
        let known = name(&mut first);
        assert_eq!(first, request("a", Some("run 1"), 1), "it is as it was");
        assert_eq!(name(&mut request("a", Some("run 2"), 2)), known);
        assert_eq!(name(&mut request("a", None, 0)), known);
        assert_ne!(name(&mut request("b", None, 0)), known);
    }
}
