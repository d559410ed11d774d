//! The daemon's half: a private key, and the signatures that are asked for again and again.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
};

use ed25519_dalek::{
    Signer as _, SigningKey,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, spki::der::pem::LineEnding},
};
use piecewised_graph::{Handle, PublicKey, Signature};
use piecewised_proto::v1;
use piecewised_wire as wire;

use crate::{BadKey, Statement};

/// Signatures that are kept, in two generations: those of the older one that are not asked for go. Some 100 bytes each.
const MAX_KEPT: usize = 16_384;

/// A private key that signs what a daemon hands out.
pub struct Signer {
    key: SigningKey,
    kept: Mutex<[HashMap<Statement, [u8; 64]>; 2]>,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.public_key())
    }
}

impl Signer {
    /// The signer of 32 random bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self { key: SigningKey::from_bytes(seed), kept: Mutex::default() }
    }

    /// The signer of a PEM file (PKCS #8), as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// [`BadKey::PrivatePem`].
    pub fn from_pem(pem: &str) -> Result<Self, BadKey> {
        let key = SigningKey::from_pkcs8_pem(pem).map_err(|error| BadKey::PrivatePem(error.to_string()))?;
        Ok(Self { key, kept: Mutex::default() })
    }

    /// The PEM file of this key. Secret.
    ///
    /// # Errors
    /// [`BadKey::PrivatePem`], which does not happen to a key that is one.
    pub fn to_pem(&self) -> Result<String, BadKey> {
        let pem = self.key.to_pkcs8_pem(LineEnding::LF).map_err(|error| BadKey::PrivatePem(error.to_string()))?;
        Ok(pem.to_string())
    }

    /// What others verify with.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.key.verifying_key().to_bytes())
    }

    /// The message of a handle, signed, whatever signature the handle had.
    pub fn signed_handle(&self, handle: &Handle) -> v1::Handle {
        let mut message = wire::handle_to_proto(handle);
        message.signature = None;
        let statement = Statement::of_handle_message(&message);
        message.signature = Some(wire::signature_to_proto(&self.sign(&statement)));
        message
    }

    /// Signs; what has been signed a while ago without doing so again, for Ed25519 gives the same signature.
    pub fn sign(&self, statement: &Statement) -> Signature {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = {
            let [young, old] = &*lock();
            young.get(statement).or_else(|| old.get(statement)).copied()
        };
        let value = found.unwrap_or_else(|| self.key.sign(&statement.0).to_bytes());
        let [young, old] = &mut *lock();
        if young.len() >= MAX_KEPT / 2 {
            *old = std::mem::take(young);
        }
        young.insert(*statement, value);
        Signature { public_key: self.public_key(), value }
    }
}
