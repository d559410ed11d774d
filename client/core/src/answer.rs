//! That an answer is for what was asked: the daemon's signed word for which keys a request asks for, and handles that are held against it.

use piecewised_graph::{Digest, Handle};
use piecewised_plan::Range;
use piecewised_proto::v1;
use piecewised_sign::Statement;
use piecewised_wire::{range_from_proto, signature_from_proto};

use crate::{ClientError, Endpoint, Keyring, TrustError};

/// What is known of the answer to one request.
#[derive(Debug)]
pub(crate) struct Answer {
    request_digest: Digest,
    keyring: Keyring,
    endpoint: Endpoint,
    /// By the plan's entries: its range, and the keys that a handle for it may have. `None`: the daemon has not said yet.
    accepted: Option<Vec<(Option<Range>, Vec<Digest>)>>,
}

impl Answer {
    /// Nothing yet, to a request of these bytes.
    pub(crate) fn new(request: &[u8], keyring: Keyring, endpoint: Endpoint) -> Self {
        Self { request_digest: Digest::of(request), keyring, endpoint, accepted: None }
    }

    /// Takes the daemon's word for what the request asks for.
    pub(crate) fn accept(&mut self, mut accepted: v1::Accepted, entries: &[Range]) -> Result<(), ClientError> {
        let signature = accepted.signature.take().map(signature_from_proto).transpose()?;
        let statement = Statement::of_accepted(&accepted);
        self.keyring.of_daemon(&self.endpoint, "answer", signature.as_ref(), &statement)?;
        if accepted.request_digest != self.request_digest.0 {
            let problem = "what the daemon was asked is not what this client sent: somebody altered the request, or gave the answer to another one";
            return Err(other(problem.into()));
        }
        let bad = |problem: String| ClientError::BadResponse { problem };
        let mut found = Vec::with_capacity(entries.len());
        for entry in accepted.entries {
            let range = entry.range.map(range_from_proto).transpose()?;
            let keys = entry.keys.iter().map(|key| Digest::from_slice(key));
            found.push((range, keys.collect::<Result<Vec<_>, _>>().map_err(|error| bad(error.to_string()))?));
        }
        let is_like = |((range, _), entry): (&(Option<Range>, _), &Range)| range.is_none_or(|range| range == *entry);
        if found.len() != entries.len() || !found.iter().zip(entries).all(is_like) {
            return Err(bad("what it has accepted has other entries than the plan".into()));
        }
        self.accepted = Some(found);
        Ok(())
    }

    /// Refuses a handle that is not signed, or not for this entry of this request.
    pub(crate) fn check(&self, index: usize, handle: &Handle) -> Result<(), ClientError> {
        let statement = Statement::of_handle(handle);
        self.keyring.of_daemon(&self.endpoint, "handle", handle.signature.as_ref(), &statement)?;
        let (range, keys) =
            self.accepted.as_ref().ok_or(TrustError::Unsigned { what: "answer" })?.get(index).ok_or_else(|| {
                ClientError::BadResponse {
                    problem: format!("a handle for entry {index}, which the plan does not have"),
                }
            })?;
        if !keys.contains(&handle.key) {
            return Err(other(format!(
                "a handle of key {} came for entry {index}, which has another",
                handle.key.short()
            )));
        }
        if handle.range != *range {
            return Err(other(format!("a handle for other sizes came for entry {index}")));
        }
        Ok(())
    }
}

fn other(problem: String) -> ClientError {
    TrustError::OtherRequest { problem }.into()
}
