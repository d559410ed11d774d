//! Binding the daemon's sockets.
//!
//! The Unix socket is private (mode 0600 from its first moment, if the operator does not choose another, in a folder that nobody else can write to) and belongs to one
//! daemon: a lock file beside it is held as long as it is served, so two daemons that start at once cannot take it from each other, and
//! a socket file without a lock is a dead daemon's and removed.
//!
//! Left out: accepting, and who may call beyond file modes, which is the services' business.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Gid, Mode, OFlags, Uid},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};

use crate::{access::SocketAccess, exit::Exit};

/// What the system keeps waiting for us.
const BACKLOG: i32 = 1024;

/// An address that cannot be served.
#[derive(Debug, Error)]
pub(crate) enum ListenError {
    /// Somebody else serves it.
    #[error("{address} is in use{by}; end that one first, or name another address")]
    InUse { address: String, by: String },
    /// The path will not do for a socket.
    #[error("cannot listen on {}: {problem}", .path.display())]
    Unfit { path: PathBuf, problem: String },
    /// The system refused.
    #[error("cannot {action} {address}: {source}")]
    Io { action: &'static str, address: String, source: io::Error },
}

impl ListenError {
    /// The exit code that it means.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::InUse { .. } => Exit::InUse,
            Self::Unfit { .. } => Exit::Usage,
            Self::Io { .. } => Exit::Failure,
        }
    }

    fn io(action: &'static str, address: impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        let address = address.to_string();
        move |source| Self::Io { action, address, source }
    }
}

/// Removes the socket's file, and gives up its lock, when dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode: a file that somebody put there since is not ours to remove.
    identity: (u64, u64),
    _lock: File,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds the Unix socket at `path`, making its folder where it is missing.
///
/// # Errors
/// [`ListenError`]; the messages are for the operator.
pub(crate) fn unix(path: &Path, access: SocketAccess) -> Result<(UnixListener, SocketFile), ListenError> {
    let path = std::path::absolute(path).map_err(ListenError::io("find", path.display()))?;
    let address = SocketAddrUnix::new(&path).map_err(|_| ListenError::Unfit {
        path: path.clone(),
        problem: "the path is too long for a socket (107 bytes); name a shorter one with --socket".into(),
    })?;
    prepare_folder(&path, access)?;
    let lock = lock(&path)?;
    remove_stale(&path, &address)?;

    let listener = bind(&address, access).map_err(ListenError::io("listen on", path.display()))?;
    let identity = identity(&path).map_err(ListenError::io("look at", path.display()))?;
    let file = SocketFile { path: path.clone(), identity, _lock: lock };
    Ok((listener, file))
}

/// Binds TCP.
///
/// # Errors
/// [`ListenError::InUse`], [`ListenError::Io`].
pub(crate) async fn tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { address: format!("http://{address}"), by: String::new() },
        _ => ListenError::Io { action: "listen on", address: format!("http://{address}"), source },
    })
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Makes the folder, private, or sees to it that nobody else can put a socket of his own into it.
fn prepare_folder(path: &Path, access: SocketAccess) -> Result<(), ListenError> {
    let Some(folder) = path.parent() else {
        return Err(ListenError::Unfit { path: path.to_owned(), problem: "it names no file".into() });
    };
    let action = ListenError::io("make the folder", folder.display());
    // Whoever may use the socket has to get to it.
    let mode = if access.mode & 0o077 == 0 { 0o700 } else { 0o755 };
    DirBuilder::new().recursive(true).mode(mode).create(folder).map_err(action)?;
    let found = fs::metadata(folder).map_err(ListenError::io("look at", folder.display()))?;
    let unfit = |problem| Err(ListenError::Unfit { path: path.to_owned(), problem });
    if found.uid() != 0 && found.uid() != rustix::process::geteuid().as_raw() {
        return unfit(format!("its folder belongs to another user (number {})", found.uid()));
    }
    // Others may write into a folder with the sticky bit, such as /tmp, but not replace what is there.
    if found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0 {
        return unfit(format!("others can write to its folder (mode {:04o}); chmod go-w it", found.mode() & 0o7777));
    }
    Ok(())
}

/// Takes the lock beside the socket and writes our process number into it. The file stays when we end: removing a lock file
/// that another daemon has just opened would let two of them hold "the" lock.
fn lock(path: &Path) -> Result<File, ListenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let failed = |action| ListenError::io(action, name.display());
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&name)
        .map_err(failed("open"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = (&mut file).take(32).read_to_string(&mut owner);
            let by = match owner.trim() {
                "" => " by another daemon".to_owned(),
                pid => format!(" by another daemon, process {pid}"),
            };
            return Err(ListenError::InUse { address: format!("unix://{}", path.display()), by });
        }
        Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed("write"))?;
    Ok(file)
}

/// Removes the socket file of a daemon that is gone. We hold the lock, so no living daemon of this version has it; but something
/// else may.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ListenError::io("look at", path.display())(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::Unfit {
                path: path.to_owned(),
                problem: "there is a file of that name that is no socket, and it is not ours to remove".into(),
            });
        }
        Ok(_) => {}
    }
    let probe = socket().map_err(ListenError::io("make a socket for", path.display()))?;
    match rustix::net::connect(&probe, address) {
        Err(rustix::io::Errno::CONNREFUSED) => {
            tracing::info!(socket = %path.display(), "removing the socket of a daemon that is gone");
            fs::remove_file(path).map_err(ListenError::io("remove", path.display()))
        }
        // Also with a full queue (EAGAIN) there is somebody.
        _ => Err(ListenError::InUse {
            address: format!("unix://{}", path.display()),
            by: " by a process that is no piecewised daemon".into(),
        }),
    }
}

fn socket() -> io::Result<rustix::fd::OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

fn bind(address: &SocketAddrUnix, access: SocketAccess) -> io::Result<UnixListener> {
    let socket = socket()?;
    // Before the bind: Linux gives the file the mode of the socket, so there is no moment at which others can connect whom it is not for.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, address)?;
    if let Some(path) = address.path() {
        let uid = access.uid.map(Uid::from_raw);
        rustix::fs::chown(&*path, uid, access.gid.map(Gid::from_raw))?;
        // After its owner, whom it is for. Nobody can connect before it listens.
        rustix::fs::chmod(&*path, Mode::from_raw_mode(access.mode))?;
    }
    rustix::net::listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tokio::{io::AsyncReadExt, net::UnixStream};

    use super::*;

    fn private(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
        unix(path, SocketAccess { mode: 0o600, uid: None, gid: None })
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[tokio::test]
    async fn it_is_private_and_gone_afterwards() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/er/piecewised.sock");
        let (listener, file) = private(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let (client, server) = tokio::join!(UnixStream::connect(&path), listener.accept());
        drop(server.unwrap());
        assert_eq!(client.unwrap().read(&mut [0]).await.unwrap(), 0);
        drop((listener, file));
        assert!(!path.exists());
        private(&path).unwrap();
    }

    #[tokio::test]
    async fn a_living_daemons_socket_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        let (_listener, _file) = private(&path).unwrap();
        let error = private(&path).unwrap_err();
        assert_eq!(error.exit(), Exit::InUse);
        let words = format!("unix://{} is in use by another daemon, process {}", path.display(), std::process::id());
        assert!(error.to_string().starts_with(&words), "{error}");
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_dead_daemons_socket_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap()); // The file stays.
        let (listener, _file) = private(&path).unwrap();
        let (client, _server) = tokio::join!(UnixStream::connect(&path), listener.accept());
        client.unwrap();
    }

    #[tokio::test]
    async fn what_is_not_ours_is_not_removed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        let _theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(private(&path).unwrap_err().to_string().contains("by a process that is no piecewised daemon"));

        let path = root.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(private(&path).unwrap_err().to_string().contains("is no socket"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");

        let path = root.path().join("linked");
        symlink(root.path().join("file"), root.path().join("linked.lock")).unwrap();
        assert!(private(&path).unwrap_err().to_string().starts_with("cannot open"));
        assert_eq!(fs::read(root.path().join("file")).unwrap(), b"precious");

        let path = root.path().join("new");
        let (listener, file) = private(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        drop((listener, file));
        assert!(path.exists());
    }

    #[tokio::test]
    async fn places_that_will_not_do_are_refused_with_a_reason() {
        let root = tempfile::tempdir().unwrap();
        let error = private(&root.path().join("x".repeat(120))).unwrap_err();
        assert!(error.to_string().contains("too long for a socket") && error.exit() == Exit::Usage, "{error}");

        let open = root.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(
            private(&open.join("s")).unwrap_err().to_string().contains("others can write to its folder (mode 0777)")
        );
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
        private(&open.join("s")).unwrap();
    }

    #[tokio::test]
    async fn a_tcp_address_in_use_is_told() {
        let first = tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = tcp(first.local_addr().unwrap()).await.unwrap_err();
        assert_eq!(error.exit(), Exit::InUse);
    }
}
