//! Leases of what is timed on: asked for by an executor in the middle of a job, granted by whoever runs the job.
//!
//! Left out: who waits for whom; that is the scheduler's.

use std::future::{Future, ready};

use serde::Deserialize;

/// What an executor is about to do on its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseMode {
    /// It runs kernels there. Others may too, unless they time theirs.
    Shared,
    /// It times kernels: nobody else may run any there meanwhile.
    Exclusive,
}

/// Who runs a job: hears how far it is, and grants its leases.
///
/// An executor holds at most one lease at a time, and gives it back before it asks for another. It asks for one only where the job's
/// device is a GPU, and for exclusive ones also to time code on a CPU while it tunes.
pub trait JobHost: Send {
    /// What a lease is; dropped when the executor releases it, or when its job ends in whatever way.
    type Lease: Send;

    /// A phase of the job begins.
    fn on_phase(&mut self, phase: &str);

    /// Resolves when the executor may go on. The job's deadline stands still meanwhile. Dropped where the executor ends or the job is
    /// abandoned before.
    fn lease(&mut self, mode: LeaseMode) -> impl Future<Output = Self::Lease> + Send;
}

/// A host for an executor that has its device for itself: every lease is granted at once, and the function hears of phases.
#[derive(Debug, Clone, Copy)]
pub struct Unshared<F>(pub F);

impl<F: FnMut(&str) + Send> JobHost for Unshared<F> {
    type Lease = ();

    fn on_phase(&mut self, phase: &str) {
        (self.0)(phase);
    }

    fn lease(&mut self, _mode: LeaseMode) -> impl Future<Output = ()> + Send {
        ready(())
    }
}
