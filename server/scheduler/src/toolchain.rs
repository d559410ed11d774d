//! What is known of the toolchain that compiles.

use std::{collections::BTreeMap, sync::Arc};

use piecewised_executor::{Gpu, Hello, Launcher};
use piecewised_graph::{
    AllowList,
    request::{DeviceKind, Toolchain},
};

/// Whether there is a toolchain. Finding out takes seconds (importing torch), and the daemon serves meanwhile.
#[derive(Debug, Clone)]
pub enum ToolchainStatus {
    /// Being found out.
    Probing,
    /// There is one.
    Ready(Arc<ToolchainInfo>),
    /// There is none.
    Unusable {
        /// A sentence for the operator: what was tried and why it would not do.
        reason: String,
    },
}

/// A toolchain that works.
#[derive(Debug, Clone)]
pub struct ToolchainInfo {
    /// Versions and fingerprint.
    pub toolchain: Toolchain,
    /// What it compiles for, CPU included.
    pub devices: Vec<DeviceKind>,
    /// What graphs may name.
    pub allow: AllowList,
    /// The names of Inductor's configuration; true: reserved for the operator.
    pub options: BTreeMap<String, bool>,
    /// The frontends that it has.
    pub frontends: Vec<String>,
    /// Its GPUs, each by itself.
    pub gpus: Vec<Gpu>,
    /// Starts executors of it.
    pub launcher: Launcher,
}

impl ToolchainInfo {
    /// From what an executor of the toolchain said of itself.
    pub fn new(hello: Hello, launcher: Launcher) -> Self {
        Self {
            toolchain: hello.toolchain,
            devices: hello.devices,
            allow: AllowList::new(hello.functions, hello.methods, hello.attributes),
            options: hello.options.into_iter().map(|option| (option.name, option.reserved)).collect(),
            frontends: hello.frontends,
            gpus: hello.gpus,
            launcher,
        }
    }
}
