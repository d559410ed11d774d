//! Whose code this process loads: the daemons' keys that it was given, or has taken on the first use of a Unix socket.
//!
//! * Keys that were given (pinned) count alone.
//! * Without any, a daemon's key is taken when a Unix socket is used for the first time, and remembered in the cache folder for that address. The
//!   file system has said by then who can be at the other end. It is never so over TCP.
//! * What was kept (in a file, in another cache) is taken from every daemon whose key is pinned or remembered.
//!
//! What does not pass is refused before anything is fetched, unpacked or loaded.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use piecewised_graph::{Handle, Manifest, PublicKey, Signature};
use piecewised_sign::{Statement, public_keys, verify};
use thiserror::Error;

use crate::{ClientError, Endpoint, known::Known};

/// The variable that gives keys where no option does.
const KEYS_VARIABLE: &str = "PIECEWISED_TRUSTED_KEYS";

/// What was verified in this process: a fact, whoever asks. Bounded; what is forgotten is verified again.
static VERIFIED: LazyLock<Mutex<HashSet<(Statement, Signature)>>> = LazyLock::new(Mutex::default);
const MAX_VERIFIED: usize = 1 << 16;

/// What is not taken, and why.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TrustError {
    /// No signature at all.
    #[error(
        "the {what} is not signed: the daemon is older than this client, or somebody has altered it on its way; update the daemon"
    )]
    Unsigned {
        /// "handle", "manifest", "snapshot", "answer".
        what: &'static str,
    },
    /// The signature does not fit.
    #[error("the signature of the {what} is wrong: it, or what it is over, was altered; nothing of it is used")]
    BadSignature {
        /// As above.
        what: &'static str,
    },
    /// The daemon of an address signs with another key than it did.
    #[error(
        "the daemon at {endpoint} signs with {found}, and this user knows it by {}; if its key was replaced on purpose, remove its line from {}, or \
         name the new key in {KEYS_VARIABLE}; if not, somebody else has its place",
        .known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "), .file.display()
    )]
    KeyChanged {
        /// The address.
        endpoint: String,
        /// What it signs with.
        found: PublicKey,
        /// What it is known by.
        known: Vec<PublicKey>,
        /// Where that is written.
        file: PathBuf,
    },
    /// Keys were given, and this is none of them.
    #[error(
        "the {what} is signed with {found}, which is none of the keys that are trusted ({KEYS_VARIABLE}, trusted_keys); add it if it is your daemon's"
    )]
    NotPinned {
        /// As above.
        what: &'static str,
        /// Whose signature it is.
        found: PublicKey,
    },
    /// No key was given, and none can be taken here.
    #[error(
        "the key {found} of the {what} is not known here: {why}; name it in {KEYS_VARIABLE} if it is your daemon's (`piecewised status` there has it)"
    )]
    NotKnown {
        /// As above.
        what: &'static str,
        /// Whose signature it is.
        found: PublicKey,
        /// Why it was not taken.
        why: String,
    },
    /// A genuine answer, and not to this question.
    #[error("the daemon's answer is not for what was asked: {problem}; nothing of it is used")]
    OtherRequest {
        /// What does not fit.
        problem: String,
    },
}

impl TrustError {
    /// A stable name in UPPER_SNAKE_CASE.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unsigned { .. } => "UNSIGNED",
            Self::BadSignature { .. } => "BAD_SIGNATURE",
            Self::KeyChanged { .. } => "KEY_CHANGED",
            Self::NotPinned { .. } | Self::NotKnown { .. } => "KEY_NOT_TRUSTED",
            Self::OtherRequest { .. } => "OTHER_REQUEST",
        }
    }
}

/// The keys that this process trusts. Cheap to clone; clones share what they learn.
#[derive(Debug, Clone, Default)]
pub struct Keyring(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    pinned: Vec<PublicKey>,
    /// Where keys that are taken are remembered; `None`: in this process only.
    known: Option<Known>,
    /// By address, what is in the file or would be.
    learned: Mutex<HashMap<String, PublicKey>>,
}

impl Keyring {
    /// These keys and no others.
    pub fn pinned(keys: Vec<PublicKey>) -> Self {
        Self(Arc::new(Inner { pinned: keys, ..Inner::default() }))
    }

    /// Keys that are taken on the first use of a Unix socket, and remembered in this cache folder.
    pub fn remembering(cache_folder: &Path) -> Self {
        Self(Arc::new(Inner { known: Some(Known::in_folder(cache_folder)), ..Inner::default() }))
    }

    /// What was given, else `PIECEWISED_TRUSTED_KEYS`: keys, separated by commas, or a file of them; else [`Self::remembering`].
    ///
    /// # Errors
    /// [`ClientError::BadTrustedKeys`].
    pub fn resolve(
        given: Option<&str>,
        environment: impl Fn(&str) -> Option<String>,
        cache_folder: &Path,
    ) -> Result<Self, ClientError> {
        let from_environment = || environment(KEYS_VARIABLE);
        let Some(text) = given.map(str::to_owned).or_else(from_environment).filter(|text| !text.trim().is_empty())
        else {
            return Ok(Self::remembering(cache_folder));
        };
        let bad = |problem: String| ClientError::BadTrustedKeys { problem };
        let is_file = !text.trim_start().starts_with("ed25519:");
        let content = if is_file {
            fs::read_to_string(text.trim()).map_err(|error| bad(format!("{:?} can't be read: {error}", text.trim())))?
        } else {
            text.clone()
        };
        let place = |error| if is_file { format!("{:?}: {error}", text.trim()) } else { format!("{error}") };
        public_keys(&content).map(Self::pinned).map_err(|error| bad(place(error)))
    }

    /// Whether nobody has said whom to trust: no key was given, and none is remembered beyond the process.
    pub fn is_unset(&self) -> bool {
        self.0.pinned.is_empty() && self.0.known.is_none()
    }

    /// Refuses a handle, wherever it comes from, that no daemon has signed whose key this process trusts.
    ///
    /// # Errors
    /// [`ClientError::Untrusted`].
    pub fn check_handle(&self, handle: &Handle) -> Result<(), ClientError> {
        self.of_any_daemon("handle", handle.signature.as_ref(), &Statement::of_handle(handle))
    }

    /// The same of a manifest.
    ///
    /// # Errors
    /// [`ClientError::Untrusted`].
    pub fn check_manifest(&self, manifest: &Manifest) -> Result<(), ClientError> {
        self.of_any_daemon("manifest", manifest.signature.as_ref(), &Statement::of_manifest(manifest))
    }

    fn of_any_daemon(
        &self,
        what: &'static str,
        signature: Option<&Signature>,
        statement: &Statement,
    ) -> Result<(), ClientError> {
        let found = signed(what, signature, statement)?;
        let is_known = self.is_pinned(what, found)?
            || self.learned().values().any(|key| *key == found)
            || self.0.known.as_ref().is_some_and(|known| known.has(found));
        if is_known {
            return Ok(());
        }
        let why =
            "no daemon has been used through its Unix socket with this cache folder that signs with it".to_owned();
        Err(TrustError::NotKnown { what, found, why }.into())
    }

    /// Refuses what a daemon has sent and not signed with its key. Takes the key on the first use of a Unix socket.
    pub(crate) fn of_daemon(
        &self,
        endpoint: &Endpoint,
        what: &'static str,
        signature: Option<&Signature>,
        statement: &Statement,
    ) -> Result<(), ClientError> {
        let found = signed(what, signature, statement)?;
        if self.is_pinned(what, found)? {
            return Ok(());
        }
        let path = match endpoint {
            Endpoint::Unix(path) => std::path::absolute(path).unwrap_or_else(|_| path.clone()),
            _ => {
                let why = format!("over TCP ({endpoint}) a key is never taken by itself");
                return Err(TrustError::NotKnown { what, found, why }.into());
            }
        };
        let address = Endpoint::Unix(path.clone()).to_string();
        if self.learned().get(&address) == Some(&found) {
            return Ok(());
        }
        let may_take = || first_use(&path).map_err(|why| TrustError::NotKnown { what, found, why });
        match &self.0.known {
            Some(known) => known.check_or_take(&address, found, may_take)?,
            None => match self.learned().get(&address).copied() {
                Some(before) => {
                    let (known, file) = (vec![before], PathBuf::from("the process's memory"));
                    return Err(TrustError::KeyChanged { endpoint: address, found, known, file }.into());
                }
                None => may_take()?,
            },
        }
        self.learned().insert(address, found);
        Ok(())
    }

    /// Whether a key is among those that were given. `Ok(false)`: none was.
    fn is_pinned(&self, what: &'static str, found: PublicKey) -> Result<bool, TrustError> {
        match &self.0.pinned[..] {
            [] => Ok(false),
            pinned if pinned.contains(&found) => Ok(true),
            _ => Err(TrustError::NotPinned { what, found }),
        }
    }

    fn learned(&self) -> std::sync::MutexGuard<'_, HashMap<String, PublicKey>> {
        self.0.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose signature it is, if it is right.
fn signed(what: &'static str, signature: Option<&Signature>, statement: &Statement) -> Result<PublicKey, TrustError> {
    let signature = signature.ok_or(TrustError::Unsigned { what })?;
    let fact = (*statement, *signature);
    let verified = || VERIFIED.lock().unwrap_or_else(PoisonError::into_inner);
    if !verified().contains(&fact) {
        if !verify(signature, statement) {
            return Err(TrustError::BadSignature { what });
        }
        let mut verified = verified();
        if verified.len() >= MAX_VERIFIED {
            verified.clear();
        }
        verified.insert(fact);
    }
    Ok(signature.public_key)
}

/// Whether the place of a socket says who is at its other end: it is this user's or root's, or lies where nobody else could have put it. Why not.
fn first_use(socket: &Path) -> Result<(), String> {
    let me = rustix::process::geteuid().as_raw();
    let is_ours = |uid| uid == me || uid == 0;
    let owner =
        |path: &Path| fs::metadata(path).map_err(|error| format!("{} can't be looked at: {error}", path.display()));
    let found = owner(socket)?;
    let folder = owner(socket.parent().unwrap_or(Path::new("/")))?;
    if is_ours(found.uid()) || (is_ours(folder.uid()) && folder.mode() & 0o022 == 0) {
        return Ok(());
    }
    Err(format!(
        "the socket {} is user {}'s, who could have put it there, so its key is not taken by itself",
        socket.display(),
        found.uid()
    ))
}
