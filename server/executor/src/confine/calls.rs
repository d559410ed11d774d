//! The filter of system calls: no sockets but Unix and netlink ones.
//!
//! `socket` answers EAFNOSUPPORT for every other family, as a kernel without that family does: programs that look for a network know it, and go on without.
//! io_uring, which makes sockets without calling `socket`, answers ENOSYS, as where there is none; who uses it falls back. System calls of another
//! architecture than the daemon's end the process (32-bit programs, whose calls have other numbers); those of x32, which has the architecture of
//! x86-64, are in the filter by their own numbers.
//!
//! Netlink stays: CUDA asks the kernel for its devices by it, and C libraries for addresses. Unix sockets stay: CUDA's MPS, and pairs of sockets between
//! processes.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// The bit that x32 adds to numbers of x86-64.
const X32: i64 = 0x4000_0000;

/// Two, since a filter has one answer to what it matches.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filters(Vec<BpfProgram>);

impl Filters {
    /// For this machine's architecture.
    pub(crate) fn new() -> Result<Self, String> {
        let architecture = TargetArch::try_from(std::env::consts::ARCH)
            .map_err(|_| format!("there is no filter of system calls for {}", std::env::consts::ARCH))?;
        let not = |family: libc::c_int| {
            let family = u64::from(family.unsigned_abs());
            SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
                .map_err(|error| error.to_string())
        };
        let others =
            SeccompRule::new(vec![not(libc::AF_UNIX)?, not(libc::AF_NETLINK)?]).map_err(|error| error.to_string())?;
        Ok(Self(vec![
            filter(libc::SYS_socket, vec![others], libc::EAFNOSUPPORT, architecture)?,
            filter(libc::SYS_io_uring_setup, Vec::new(), libc::ENOSYS, architecture)?,
        ]))
    }

    /// Binds the calling thread, and what it starts.
    pub(crate) fn apply(&self) -> Result<(), String> {
        self.0.iter().try_for_each(|filter| seccompiler::apply_filter(filter).map_err(|error| error.to_string()))
    }
}

/// Answers a call with an error where one of `rules` holds, or always where there is none.
fn filter(
    call: libc::c_long,
    rules: Vec<SeccompRule>,
    error: libc::c_int,
    architecture: TargetArch,
) -> Result<BpfProgram, String> {
    let mut calls = BTreeMap::from([(call, rules.clone())]);
    if matches!(architecture, TargetArch::x86_64) {
        calls.insert(call | X32, rules);
    }
    let answer = SeccompAction::Errno(error.unsigned_abs());
    let filter =
        SeccompFilter::new(calls, SeccompAction::Allow, answer, architecture).map_err(|error| error.to_string())?;
    BpfProgram::try_from(filter).map_err(|error| error.to_string())
}
