//! Where an executor runs and what it may take: decided by the scheduler, for each executor apart.

use std::path::Path;

use piecewised_graph::request::DeviceKind;
use serde::{Deserialize, Serialize};

/// One of them is there where there is a GPU for CUDA: on Linux, and on Linux under Windows.
const NVIDIA_DEVICES: [&str; 2] = ["/dev/nvidiactl", "/dev/dxg"];

/// Whether this machine, or container, has a GPU for CUDA.
pub(crate) fn is_for_cuda() -> bool {
    NVIDIA_DEVICES.iter().any(|path| Path::new(path).exists())
}

/// One GPU of this machine, as a process with the daemon's environment sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Gpu {
    /// Its position among the GPUs that are visible to the daemon. It names the GPU for people; [`Gpu::uuid`] is what does not move.
    pub index: u32,
    /// "GPU-…" or "MIG-…", as `CUDA_VISIBLE_DEVICES` takes it.
    pub uuid: String,
    /// What it is to a key.
    pub kind: DeviceKind,
    /// All of its memory, in bytes, free or not.
    pub memory_bytes: u64,
}

/// Where an executor runs, and what it may take. The default restricts nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Placement {
    /// The only GPU that it sees, as its `cuda:0`; none: those that the daemon sees.
    pub gpu: Option<Gpu>,
    /// What it imports before its first job, and the only frontend that it then has jobs of: importing one changes torch in ways that other
    /// code must not depend on. None: it has jobs without a frontend.
    pub frontend: Option<String>,
    /// Processes that Inductor compiles kernels with; none: as the config has it.
    pub n_compile_threads: Option<usize>,
    /// What its whole process group may hold of the machine's memory, in bytes, with shared pages counted in shares; none: no limit.
    /// A group that holds more is killed.
    pub max_memory_bytes: Option<u64>,
}
