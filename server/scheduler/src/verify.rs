//! Which artifacts are run against eager before they are handed out. The operator's choice, not the caller's.
//!
//! Decided by the key alone, so that every rank, every restart and every try of a job agree, and so that an answer from the store can
//! be held against the policy of today: what was stored under a laxer one is not good enough, and is compiled again.

use piecewised_graph::{Digest, Handle, VerificationOutcome};

/// Which keys are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VerifyPolicy {
    /// None.
    Off,
    /// This many percent of them, spread evenly.
    Sample {
        /// 0 to 100.
        percent: u8,
    },
    /// Every one.
    #[default]
    Always,
}

impl VerifyPolicy {
    /// Whether what is compiled for `key` has to be verified.
    pub fn wants(self, key: &Digest) -> bool {
        match self {
            Self::Off => false,
            Self::Sample { percent } => {
                let Digest([b0, b1, b2, b3, ..]) = *key;
                u32::from_le_bytes([b0, b1, b2, b3]) % 100 < u32::from(percent)
            }
            Self::Always => true,
        }
    }

    /// Whether a stored handle will do. One that could not be compared will: it would not be the next time either.
    pub fn accepts(self, handle: &Handle) -> bool {
        handle.verification.outcome != VerificationOutcome::NotDone || !self.wants(&handle.key)
    }
}
