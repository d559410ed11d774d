//! What is compiled beside the graph: options, torch settings, toolchain and device.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::Real;

/// How an artifact is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactFormat {
    /// Inductor's result with every file its load needs.
    Inductor,
    /// An AOTInductor package for each part.
    Aoti,
}

/// What the caller may choose about code generation, and the settings of its process.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompileOptions {
    /// Inductor's configuration by the names of `torch._inductor.config`.
    #[serde(default)]
    pub inductor: BTreeMap<String, OptionValue>,
    /// Process-wide settings baked into code.
    #[serde(default)]
    pub torch: TorchSettings,
    /// What the ranges of a plan are compiled for.
    #[serde(default)]
    pub specialisation: Specialisation,
    /// How hard the compiler tries.
    #[serde(default)]
    pub tuning: Tuning,
}

/// What the ranges of a plan are compiled for; `piecewised/v1/compile_service.proto` says what each one means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "documented once, at the proto's Specialisation")]
pub enum Specialisation {
    #[default]
    Range,
    Generic,
}

/// How hard the compiler tries; `piecewised/v1/artifact.proto` says what each one means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "documented once, at the proto's Tuning")]
pub enum Tuning {
    #[default]
    Fast,
    Full,
}

/// A configuration value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptionValue {
    /// None.
    None,
    /// A bool.
    Bool(bool),
    /// An int.
    Int(i64),
    /// A float.
    Float(Real),
    /// A str.
    Str(String),
    /// A list of str.
    Strs(Vec<String>),
}

/// Settings of the worker's process that change generated code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TorchSettings {
    /// `torch.get_default_dtype()`.
    pub default_dtype: String,
    /// `torch.get_float32_matmul_precision()`.
    pub float32_matmul_precision: String,
    /// `torch.are_deterministic_algorithms_enabled()`.
    pub deterministic_algorithms: bool,
    /// `torch.get_num_threads()`; 0: the executor's default.
    pub num_threads: u32,
    /// Active autocast contexts: device type, dtype.
    pub autocast: Vec<(String, String)>,
}

impl Default for TorchSettings {
    fn default() -> Self {
        Self {
            default_dtype: "float32".into(),
            float32_matmul_precision: "highest".into(),
            deterministic_algorithms: false,
            num_threads: 0,
            autocast: Vec::new(),
        }
    }
}

/// One Python interpreter with torch in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toolchain {
    /// Digest of all that follows but `executable`, hexadecimal.
    pub fingerprint: String,
    /// "3.11".
    pub python_version: String,
    /// "2.11.0+cu130".
    pub torch_version: String,
    /// Commit.
    pub torch_git_version: String,
    /// Empty: none.
    pub triton_version: String,
    /// Empty: a CPU build.
    pub cuda_version: String,
    /// The interpreter's path.
    pub executable: String,
}

/// A device that code is compiled for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeviceKind {
    /// "cpu", "cuda".
    pub r#type: String,
    /// "NVIDIA H200", "x86_64".
    pub name: String,
    /// "9.0"; for CPUs a digest over the sorted instruction set extensions.
    pub capability: String,
}
