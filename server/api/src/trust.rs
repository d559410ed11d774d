//! Whom the operator trusts with a frontend, and with changing what the daemon has.
//!
//! A frontend's payload may be a pickle, which runs code of the sender's choice in an executor, and so decides what workers load. A process of the daemon's own
//! user could do as much by itself.

use tonic::{Code, Request};

use crate::{
    access::{Access, Role},
    peer,
    status::ApiError,
};

/// The operator's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrustedPeers {
    /// Processes of the daemon's own user that come through the Unix socket.
    #[default]
    SameUid,
    /// Whoever can connect.
    All,
    /// Nobody.
    None,
}

/// Whether the sender of a request is trusted.
pub(crate) fn is_trusted<T>(request: &Request<T>) -> bool {
    has(request, Role::Frontend)
}

fn has<T>(request: &Request<T>, role: Role) -> bool {
    peer::caller(request).is_some_and(|caller| caller.roles.has(role))
}

/// Refuses a request that only admins may send.
///
/// # Errors
/// `NOT_ADMIN`, with what to do.
pub(crate) fn check_admin<T>(request: &Request<T>, access: &Access) -> Result<(), ApiError> {
    if has(request, Role::Admin) {
        return Ok(());
    }
    let config = access.config();
    let why = match (config.admin_peers, uid(request)) {
        (TrustedPeers::None, _) => "the operator lets nobody change anything (admin_peers = \"none\")".to_owned(),
        (_, uid) => format!(
            "{}, and only processes of user {} that come through the daemon's Unix socket may change anything, and who has the role admin; call as that \
             user, or have the operator give you the role or set admin_peers = \"all\"",
            uid.map_or_else(|| stranger(request), |uid| format!("you are user {uid}")),
            config.uid
        ),
    };
    Err(ApiError::new(Code::PermissionDenied, "NOT_ADMIN", why))
}

/// Refuses a request that only trusted peers may send.
///
/// # Errors
/// `FRONTEND_NOT_TRUSTED`, with what to do.
pub(crate) fn check<T>(request: &Request<T>, access: &Access) -> Result<(), ApiError> {
    if is_trusted(request) {
        return Ok(());
    }
    let config = access.config();
    let why = match (config.trusted_frontend_peers, uid(request)) {
        (TrustedPeers::None, _) => {
            "the operator trusts nobody with a frontend (trusted_frontend_peers = \"none\")".to_owned()
        }
        (_, Some(uid)) => format!(
            "you are user {uid} and the daemon runs as user {}, which are the only peers that it trusts with a frontend, beside who has the role frontend; \
             run both as one user, or have the operator give you the role, or set trusted_frontend_peers = \"all\" where everybody who can connect may run \
             code as the daemon's user",
            config.uid
        ),
        (_, None) => format!(
            "{}, and it trusts processes of user {} with a frontend, and who has the role frontend; connect through its Unix socket, have the operator \
             give you the role, or have trusted_frontend_peers = \"all\" set where everybody who can connect may run code as the daemon's user",
            stranger(request),
            config.uid
        ),
    };
    Err(ApiError::new(Code::PermissionDenied, "FRONTEND_NOT_TRUSTED", why))
}

/// Who calls by TCP, in words.
fn stranger<T>(request: &Request<T>) -> String {
    match peer::caller(request) {
        Some(caller) if caller.is_known => format!("you are {}", caller.peer),
        _ => "over TCP the daemon cannot tell who you are".to_owned(),
    }
}

fn uid<T>(request: &Request<T>) -> Option<u32> {
    peer::caller(request)?.uid
}
