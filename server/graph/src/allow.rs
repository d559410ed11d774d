//! Which targets a graph may name.
//!
//! The list is the toolchain's: its executor reports the names of torch's overridable functions, registered operators, the
//! higher-order ops and tensor attributes that it can resolve, and resolves from that same table. What is not in it
//! cannot be named, so nothing that loads files, runs programs or reaches into Python objects needs a rule of its own.

use std::collections::HashSet;

use crate::GraphError;

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

    pub(crate) fn function(&self, target: &str) -> Result<(), GraphError> {
        if self.functions.contains(target) {
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
