//! The file of the daemon's signing key: made at the first start, and refused where others could have read or put it there.
//!
//! Who has the key can have workers run code. So the file is of this user alone from its first moment, written whole and durable before it is
//! used, and nothing that looks odd is mended silently.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use piecewised_sign::{BadKey, Signer};
use rustix::rand::{GetRandomFlags, getrandom};
use thiserror::Error;

/// More than any key's file has.
const MAX_BYTES: u64 = 16 << 10;

/// A signing key that cannot be used.
#[derive(Debug, Error)]
pub(crate) enum SigningKeyError {
    /// The file's mode, owner or kind.
    #[error("the signing key {} will not do: {problem}", .path.display())]
    Unfit { path: PathBuf, problem: String },
    /// What is in it.
    #[error("the signing key {} cannot be used: {source}; put the right file back, or remove it to have a new key made, which clients then have to be told",
        .path.display())]
    Bad { path: PathBuf, source: BadKey },
    /// The system refused.
    #[error("cannot {action} the signing key {}: {source}", .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl SigningKeyError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// The key of the file, which is made where there is none and `may_make`.
///
/// # Errors
/// [`SigningKeyError`]; the messages are for the operator.
pub(crate) fn load(path: &Path, may_make: bool) -> Result<Signer, SigningKeyError> {
    match read(path) {
        Err(SigningKeyError::Io { source, .. }) if may_make && source.kind() == io::ErrorKind::NotFound => {
            make(path)?;
            read(path)
        }
        result => result,
    }
}

fn read(path: &Path) -> Result<Signer, SigningKeyError> {
    let file = File::open(path).map_err(SigningKeyError::io("open", path))?;
    // Of the open file: it cannot be another one by now.
    let found = file.metadata().map_err(SigningKeyError::io("look at", path))?;
    let unfit = |problem: String| Err(SigningKeyError::Unfit { path: path.to_owned(), problem });
    if !found.is_file() {
        return unfit("it is no file".into());
    }
    let uid = rustix::process::geteuid().as_raw();
    if found.uid() != uid && found.uid() != 0 {
        return unfit(format!("it belongs to user {}, and this is user {uid}; chown it, or name another", found.uid()));
    }
    // A group may read it where an orchestrator has mounted it so, for a user that is not its owner. Nobody else, and nobody writes.
    let allowed = if found.uid() == uid { 0o600 } else { 0o640 };
    if found.mode() & 0o777 & !allowed != 0 {
        let mode = found.mode() & 0o777;
        return unfit(format!(
            "its mode is {mode:04o}, so others may have read it or can change it; make a new key if they may have, and chmod {allowed:o} it"
        ));
    }
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(SigningKeyError::io("read", path))?;
    Signer::from_pem(&text).map_err(|source| SigningKeyError::Bad { path: path.to_owned(), source })
}

/// Makes the file with a new key. Where another process does so at once, the first one's stays.
fn make(path: &Path) -> Result<(), SigningKeyError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(SigningKeyError::io("make the folder of", path))?;
    let mut seed = [0; 32];
    let filled = getrandom(&mut seed, GetRandomFlags::empty())
        .map_err(|error| SigningKeyError::io("make", path)(error.into()))?;
    if filled != seed.len() {
        return Err(SigningKeyError::io("make", path)(io::Error::other("the system gave no random bytes")));
    }
    let pem =
        Signer::from_seed(&seed).to_pem().map_err(|source| SigningKeyError::Bad { path: path.to_owned(), source })?;
    // Mode 0600, as tempfile makes them.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(SigningKeyError::io("make", path))?;
    file.write_all(pem.as_bytes())
        .and_then(|()| file.as_file().sync_all())
        .map_err(SigningKeyError::io("write", path))?;
    match file.persist_noclobber(path) {
        Ok(_) => tracing::info!(path = %path.display(), "made a signing key"),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(SigningKeyError::io("write", path)(error.error)),
    }
    // The name too has to survive a power cut: clients remember the key.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(SigningKeyError::io("make durable", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/signing-key.pem");
        let made = load(&path, true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(load(&path, true).unwrap().public_key(), made.public_key());
        let other = load(&folder.path().join("other.pem"), true).unwrap();
        assert_ne!(other.public_key(), made.public_key());
        // Nothing is left beside it.
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn two_that_start_at_once_have_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signing-key.pem");
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || load(&path, true).unwrap().public_key())
            })
            .collect();
        let keys: std::collections::BTreeSet<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(keys.len(), 1);
    }

    #[test]
    fn what_others_may_have_had_or_is_no_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signing-key.pem");
        let refused = |may_make| load(&path, may_make).unwrap_err().to_string();
        assert!(refused(false).starts_with("cannot open the signing key "), "{}", refused(false));
        load(&path, true).unwrap();
        for mode in [0o644, 0o640, 0o620, 0o606] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(refused(true).contains(&format!("its mode is {mode:04o}")), "{}", refused(true));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let whole = fs::read(&path).unwrap();
        for wrong in [&b""[..], b"no key", &whole[..whole.len() / 2]] {
            fs::write(&path, wrong).unwrap();
            assert!(refused(true).contains("it is no Ed25519 private key in PEM"), "{}", refused(true));
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(refused(true).contains("it is no file"), "{}", refused(true));
    }

    #[test]
    #[allow(clippy::print_stderr, reason = "says why it was skipped")]
    fn of_another_user_it_is_refused() {
        if !rustix::process::geteuid().is_root() {
            // Nobody else can give a file away.
            eprintln!("skipped: not root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signing-key.pem");
        load(&path, true).unwrap();
        std::os::unix::fs::chown(&path, Some(4711), None).unwrap();
        let error = load(&path, true).unwrap_err().to_string();
        assert!(error.contains("it belongs to user 4711, and this is user 0"), "{error}");
    }
}
