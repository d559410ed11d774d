//! Who may use a GPU for what: kernels are timed by one job at a time, while nobody else runs any there.
//!
//! A lease is held for single benchmarks and checks, not for whole jobs: the phases of two jobs that need only the CPU overlap. Those
//! who wait are served in the order in which they came, so that an exclusive lease is not put off for ever by shared ones.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use piecewised_executor::LeaseMode;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// The devices that were ever leased.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    locks: Mutex<HashMap<String, Arc<RwLock<()>>>>,
}

/// Given back when dropped.
#[derive(Debug)]
pub(crate) enum Lease {
    #[allow(dead_code, reason = "held, not looked at")]
    Shared(OwnedRwLockReadGuard<()>),
    #[allow(dead_code, reason = "held, not looked at")]
    Exclusive(OwnedRwLockWriteGuard<()>),
}

impl Leases {
    fn lock_of(&self, device: &str) -> Arc<RwLock<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        match locks.get(device) {
            Some(lock) => Arc::clone(lock),
            None => Arc::clone(locks.entry(device.to_owned()).or_default()),
        }
    }

    /// A lease, if nobody is in its way.
    pub(crate) fn try_lease(&self, device: &str, mode: LeaseMode) -> Option<Lease> {
        let lock = self.lock_of(device);
        match mode {
            LeaseMode::Shared => lock.try_read_owned().map(Lease::Shared).ok(),
            LeaseMode::Exclusive => lock.try_write_owned().map(Lease::Exclusive).ok(),
        }
    }

    /// A lease, when everybody who asked before has given back what does not go with it.
    pub(crate) async fn lease(&self, device: &str, mode: LeaseMode) -> Lease {
        let lock = self.lock_of(device);
        match mode {
            LeaseMode::Shared => Lease::Shared(lock.read_owned().await),
            LeaseMode::Exclusive => Lease::Exclusive(lock.write_owned().await),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn timing_is_alone_and_running_is_not() {
        let leases = Leases::default();
        let one = leases.lease("a", LeaseMode::Shared).await;
        let two = leases.lease("a", LeaseMode::Shared).await;
        assert!(leases.try_lease("a", LeaseMode::Exclusive).is_none());
        let other = leases.try_lease("b", LeaseMode::Exclusive).unwrap();
        let mut timing = Box::pin(leases.lease("a", LeaseMode::Exclusive));
        assert!(timing.as_mut().now_or_never().is_none());
        assert!(leases.try_lease("a", LeaseMode::Shared).is_none(), "those who come later do not overtake it");
        drop((one, two));
        let timing = timing.now_or_never().unwrap();
        assert!(leases.try_lease("a", LeaseMode::Shared).is_none());
        drop((timing, other));
        leases.try_lease("a", LeaseMode::Shared).unwrap();
    }

    #[tokio::test]
    async fn who_gives_up_waiting_is_in_nobodys_way() {
        let leases = Leases::default();
        let held = leases.lease("a", LeaseMode::Shared).await;
        {
            let mut timing = Box::pin(leases.lease("a", LeaseMode::Exclusive));
            assert!(timing.as_mut().now_or_never().is_none());
        }
        leases.try_lease("a", LeaseMode::Shared).unwrap();
        drop(held);
        leases.try_lease("a", LeaseMode::Exclusive).unwrap();
    }
}
