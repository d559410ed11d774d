//! Which targets a graph may name.
//!
//! The list is the toolchain's: its executor reports the names of torch's overridable functions, registered operators, the
//! higher-order ops and tensor attributes that it can resolve, and resolves from that same table. What is not in it
//! cannot be named, so nothing that loads files, runs programs or reaches into Python objects needs a rule of its own.
//! The one exception is a request with a frontend, whose sender is trusted ([`Trust`]): it may name any operator.

use std::collections::HashSet;

use crate::{GraphError, Trust};

/// Names of functions, tensor methods and tensor attributes.
#[derive(Debug, Clone, Default)]
pub struct AllowList {
    functions: HashSet<String>,
    methods: HashSet<String>,
    attributes: HashSet<String>,
}

impl AllowList {
    /// A list of these names.
    pub fn new(
        functions: impl IntoIterator<Item = String>,
        methods: impl IntoIterator<Item = String>,
        attributes: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            functions: functions.into_iter().collect(),
            methods: methods.into_iter().collect(),
            attributes: attributes.into_iter().collect(),
        }
    }

    pub(crate) fn function(&self, target: &str, trust: Trust) -> Result<(), GraphError> {
        if self.functions.contains(target) || (trust == Trust::Frontend && is_operator(target)) {
            return Ok(());
        }
        Err(GraphError::TargetNotAllowed { target: target.chars().take(200).collect() })
    }

    pub(crate) fn method(&self, method: &str) -> Result<(), GraphError> {
        if self.methods.contains(method) {
            return Ok(());
        }
        Err(GraphError::TargetNotAllowed { target: format!("Tensor.{}", method.chars().take(200).collect::<String>()) })
    }

    pub(crate) fn attribute(&self, attribute: &str) -> Result<(), GraphError> {
        if self.attributes.contains(attribute) {
            return Ok(());
        }
        Err(GraphError::AttributeNotAllowed { attribute: attribute.chars().take(200).collect() })
    }
}

/// `torch.ops.<namespace>.<operator>[.<overload>]`. Whether there is such an operator is the executor's to say.
fn is_operator(target: &str) -> bool {
    let is_name = |part: &str| {
        !part.is_empty()
            && !part.as_bytes()[0].is_ascii_digit()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let Some(rest) = target.strip_prefix("torch.ops.").filter(|_| target.len() <= 512) else { return false };
    let parts: Vec<&str> = rest.split('.').collect();
    matches!(parts.len(), 2 | 3) && parts.into_iter().all(is_name)
}
