//! What can be wrong with the form of a message.

use thiserror::Error;

/// A message that is decodable but not complete, or holds a value of no meaning.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct WireError {
    reason: &'static str,
    node: Option<String>,
    message: String,
}

impl WireError {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, node: None, message: message.into() }
    }

    /// Says in which node it was. The innermost node wins: it is the one to look at.
    pub(crate) fn in_node(mut self, name: &str) -> Self {
        if self.node.is_none() {
            self.message = format!("node {name:?}: {}", self.message);
            self.node = Some(name.to_owned());
        }
        self
    }

    /// The stable name of this error in `google.rpc.ErrorInfo`.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// The node in which it was found.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }
}
