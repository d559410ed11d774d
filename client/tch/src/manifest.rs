//! What `manifest.json` says about the packages of an artifact. docs/artifact.md describes each field.
//!
//! client/core has checked the container's own rules (paths, checksums) before an artifact is a folder; what is checked here is what a
//! load relies on.

use std::{fs, path::Path};

use piecewised_graph::{
    model::SymExpr,
    request::{DeviceKind, Toolchain},
};
use serde::Deserialize;

use crate::{Error, Result};

/// The part of a manifest that packages are loaded by.
#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) toolchain: Toolchain,
    pub(crate) device: DeviceKind,
    pub(crate) entries: Vec<Entry>,
}

/// One package.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// The member that is the package.
    pub(crate) program: String,
    /// Positions among the graph's placeholders: the tensors that the package takes.
    pub(crate) arguments: Vec<u32>,
    /// Every tensor placeholder of the graph, in order.
    pub(crate) inputs: Vec<Input>,
    #[serde(default)]
    pub(crate) symbols: Vec<SymbolSource>,
    /// Which of the symbols is the dispatched one; `None`: nothing is dispatched on.
    #[serde(default)]
    pub(crate) dispatch_symbol: Option<String>,
    #[serde(default)]
    pub(crate) constants: Vec<Constant>,
    /// Arguments that a call changes in place.
    #[serde(default)]
    pub(crate) mutated: Vec<u32>,
    pub(crate) n_outputs: usize,
    pub(crate) output: Structure,
    /// Operators outside of torch's own.
    #[serde(default)]
    pub(crate) operators: Vec<String>,
}

/// A tensor placeholder.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Input {
    /// Among the graph's placeholders.
    pub(crate) argument: u32,
    pub(crate) dtype: String,
    /// "cpu", "cuda".
    pub(crate) device: String,
    pub(crate) sizes: Vec<SymExpr>,
    pub(crate) strides: Vec<SymExpr>,
}

/// Where a call carries a symbol's value.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SymbolSource {
    pub(crate) name: String,
    pub(crate) argument: u32,
    /// `None`: the argument is the integer itself.
    pub(crate) dimension: Option<u32>,
}

/// A tensor that the artifact brings along.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Constant {
    pub(crate) path: String,
    pub(crate) dtype: String,
    pub(crate) sizes: Vec<i64>,
    pub(crate) device: ConstantDevice,
}

/// By its type, or as the graph's model has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum ConstantDevice {
    Type(String),
    Device { r#type: String },
}

impl ConstantDevice {
    pub(crate) fn r#type(&self) -> &str {
        match self {
            Self::Type(name) | Self::Device { r#type: name } => name,
        }
    }
}

/// The structure that the graph returns, over the values that the package returns.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Structure {
    Leaf(usize),
    Tuple(Vec<Structure>),
    List(Vec<Structure>),
    Dict(Vec<(serde_json::Value, Structure)>),
    Constant(serde_json::Value),
}

impl Manifest {
    /// Reads the manifest of a materialised artifact.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("manifest.json");
        let bad = |problem: String| Error::Artifact { path: path.clone(), problem };
        let text = fs::read(&path).map_err(|error| bad(error.to_string()))?;
        // The format first: the entries of another format are others.
        #[derive(Deserialize)]
        struct Format {
            format: String,
        }
        let Format { format } = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if format != "aoti" {
            return Err(bad(format!(
                "its format is {format:?}, and this client runs \"aoti\"; ask the daemon for that format"
            )));
        }
        let manifest: Self = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        for entry in &manifest.entries {
            entry.check().map_err(|problem| bad(format!("entry {:?}: {problem}", entry.name)))?;
        }
        Ok(manifest)
    }

    pub(crate) fn entry(&self, folder: &Path, name: &str) -> Result<&Entry> {
        self.entries.iter().find(|entry| entry.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.entries.iter().map(|entry| entry.name.as_str()).collect();
            let problem = format!("it has no entry {name:?}; there is {}", names.join(", "));
            Error::Artifact { path: folder.into(), problem }
        })
    }
}

impl Entry {
    fn check(&self) -> std::result::Result<(), String> {
        if let Some(argument) = self.arguments.iter().find(|argument| self.tensor(**argument).is_none()) {
            return Err(format!("the package takes argument {argument}, which is not among the inputs"));
        }
        for input in &self.inputs {
            if input.sizes.len() != input.strides.len() {
                let (argument, n, m) = (input.argument, input.sizes.len(), input.strides.len());
                return Err(format!("argument {argument} has {n} sizes and {m} strides"));
            }
        }
        Ok(())
    }

    /// Position among the tensors of a call.
    pub(crate) fn tensor(&self, argument: u32) -> Option<usize> {
        self.inputs.iter().position(|input| input.argument == argument)
    }
}
