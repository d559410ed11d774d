//! What daemons sign and clients verify: statements as bytes, Ed25519 keys, signing and verifying. docs/signatures.md is its specification.
//!
//! Pure: no I/O, and no policy. Where the daemon's key lies is the binary's business, and whose keys are trusted the client's.

mod key;
mod signer;
mod statement;

pub use key::{BadKey, public_keys, verify};
pub use signer::Signer;
pub use statement::Statement;
