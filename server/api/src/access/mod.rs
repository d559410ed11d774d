//! Who calls, and what he may do: decided once for each call, before anything of it is read.
//!
//! A caller is known by what its connection proves (the process at the other end of the Unix socket, a client certificate) and by the token that it
//! sends. What these allow adds up. Who is known by nothing is refused, where anything is asked for; loopback without TLS and tokens asks for nothing.

mod certificate;
mod layer;
mod limits;
mod local;
mod roles;
mod tokens;
mod watched;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{Extensions, HeaderMap, header::AUTHORIZATION};
use piecewised_executor::Confinement;
use piecewised_scheduler::Peer;
use tokio::net::UnixStream;
use tonic::{
    Code,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};

use crate::{sparing::Sparing, status::ApiError, trust::TrustedPeers};

pub(crate) use layer::AccessLayer;
pub use limits::PeerLimits;
pub use roles::{BadRole, Role, Roles};
pub use tokens::BadTokens;
pub(crate) use watched::Watched;
pub use watched::check_private;

use certificate::Certificate;
use limits::{TooMuch, Usage};
use local::LocalInfo;
use tokens::{Presented, Tokens};

/// Whom an entry of the operator's list is about, on the Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// A user.
    Uid(u32),
    /// A process's effective group.
    Gid(u32),
    /// Whoever can connect.
    Anybody,
}

/// The operator's choices.
#[derive(Debug, Clone)]
pub struct AccessConfig {
    /// The daemon's own user.
    pub uid: u32,
    /// Who may use the Unix socket, and what for. What several entries allow adds up.
    pub unix: Vec<(Who, Roles)>,
    /// Which client certificates may, by one of their names; empty: every one that the CA has signed may what a worker may.
    pub certificates: Vec<(String, Roles)>,
    /// Whether who comes by TCP has to show a certificate or a token.
    pub is_tcp_guarded: bool,
    /// Who may send what executors unpickle, beside those who have the role.
    pub trusted_frontend_peers: TrustedPeers,
    /// Who may change what the daemon has, beside those who have the role.
    pub admin_peers: TrustedPeers,
    /// What one peer may use.
    pub limits: PeerLimits,
    /// What executors are kept from; where they are kept from anything, they may not call either.
    pub confinement: Arc<Confinement>,
}

/// Who calls, in the request's extensions.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// For taking turns, and for the log: "process 4711 of user 1000", "token nightly from 10.0.0.7:5000".
    pub(crate) peer: Peer,
    pub(crate) roles: Roles,
    /// Where it comes through the Unix socket.
    pub(crate) uid: Option<u32>,
    /// Whether anything proves who it is.
    pub(crate) is_known: bool,
}

/// Decides who may.
#[derive(Debug)]
pub struct Access {
    config: AccessConfig,
    tokens: Option<Watched<Tokens>>,
    usage: Arc<Usage>,
    /// Of calls that are refused: who may not call may try as often as it likes.
    lines: Sparing,
}

/// A second; more refused calls are counted only.
const REFUSALS_SAID: u32 = 20;

/// What a connection or a header proves.
struct Proven {
    /// "token nightly".
    name: String,
    roles: Roles,
}

impl Access {
    /// With these choices, and the tokens of a file, which is read again when it changes.
    ///
    /// # Errors
    /// [`BadTokens`].
    pub fn new(config: AccessConfig, tokens: Option<&Path>) -> Result<Self, BadTokens> {
        let tokens = tokens
            .map(Path::to_owned)
            .map(|path| Watched::start("the tokens", vec![path.clone()], move || Tokens::load(&path)));
        let usage = Usage::new(config.limits);
        Ok(Self { config, tokens: tokens.transpose()?, usage, lines: Sparing::new(REFUSALS_SAID) })
    }

    /// The operator's choices.
    pub(crate) fn config(&self) -> &AccessConfig {
        &self.config
    }

    /// Who is at the other end of a connection of the Unix socket.
    pub(crate) fn local(&self, stream: &UnixStream) -> LocalInfo {
        LocalInfo::of(stream, &self.config.confinement, self.config.uid)
    }

    /// Who calls, if it may call at all, and the call, until it has ended.
    fn admit(
        &self,
        path: &str,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<(Caller, limits::Open), ApiError> {
        let (caller, shared) = self.identify(headers, extensions)?;
        let needed = match path.rsplit('/').next() {
            Some("Compile" | "ReportFallbacks") => Role::Compile,
            _ => Role::Read,
        };
        if !caller.roles.has(needed) {
            let message = format!(
                "this needs the role {needed}, and {} has: {}; the operator gives roles",
                caller.peer, caller.roles
            );
            return Err(ApiError::new(Code::PermissionDenied, "ROLE_MISSING", message).with("role", needed.to_string()));
        }
        let open = self.usage.begin(&shared, std::time::Instant::now()).map_err(|too_much| match too_much {
            TooMuch::Streams { limit } => {
                let message = format!(
                    "{limit} calls of {shared} are open already, and more of one peer are not served; end some first"
                );
                let error = ApiError::new(Code::ResourceExhausted, "PEER_STREAMS_FULL", message);
                error.with("limit", limit.to_string()).retry_after(Duration::from_secs(1))
            }
            TooMuch::Requests { limit, retry_after } => {
                let message = format!("{shared} has begun more than {limit} calls in a second; wait a moment");
                let error = ApiError::new(Code::ResourceExhausted, "PEER_RATE_FULL", message);
                error.with("limit", limit.to_string()).retry_after(retry_after)
            }
        })?;
        Ok((caller, open))
    }

    /// Who calls, and the name under which its use is counted: that of all its connections.
    fn identify(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<(Caller, Arc<str>), ApiError> {
        let token = self.token(headers)?;
        if let Some(info) = extensions.get::<LocalInfo>() {
            return self.unix(info, token);
        }
        let (address, certificate) =
            match (extensions.get::<TlsConnectInfo<TcpConnectInfo>>(), extensions.get::<TcpConnectInfo>()) {
                (Some(tls), _) => (tls.get_ref().remote_addr(), self.certificate(tls)?),
                (None, Some(tcp)) => (tcp.remote_addr(), None),
                (None, None) => (None, None),
            };
        let address = address.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        let proven: Vec<Proven> = certificate.into_iter().chain(token).collect();
        if proven.is_empty() && self.config.is_tcp_guarded {
            let message = "who comes by TCP has to show a certificate or a token here; clients: PIECEWISED_CERT and PIECEWISED_KEY, or PIECEWISED_TOKEN";
            return Err(ApiError::new(Code::Unauthenticated, "UNAUTHENTICATED", message));
        }
        let (who, roles) = match &proven[..] {
            [] => (None, Roles::WORKER),
            proven => {
                let names: Vec<&str> = proven.iter().map(|one| one.name.as_str()).collect();
                (Some(names.join(" and ")), proven.iter().fold(Roles::NONE, |roles, one| roles.and(one.roles)))
            }
        };
        let is_known = who.is_some();
        let peer = who.as_ref().map_or_else(|| address.clone(), |who| format!("{who} from {address}"));
        // Who proves nothing is known by its machine, not by its connection.
        let shared =
            who.unwrap_or_else(|| address.rsplit_once(':').map_or(address.as_str(), |(machine, _)| machine).to_owned());
        Ok((Caller { peer: Peer::new(peer), roles: self.with_all(roles, false), uid: None, is_known }, shared.into()))
    }

    fn unix(&self, info: &LocalInfo, token: Option<Proven>) -> Result<(Caller, Arc<str>), ApiError> {
        let credentials = info.credentials.ok_or_else(|| {
            ApiError::new(
                Code::PermissionDenied,
                "PEER_NOT_ALLOWED",
                "the system does not say who is at the other end of the socket",
            )
        })?;
        let (uid, gid) = (credentials.uid(), credentials.gid());
        if info.is_executor {
            let pid = credentials.pid().unwrap_or_default();
            let message = format!(
                "process {pid} of user {uid} is one of this daemon's executors, or was started by one; they compile what they are given, and may not call"
            );
            return Err(ApiError::new(Code::PermissionDenied, "PEER_IS_EXECUTOR", message).with("pid", pid.to_string()));
        }
        let is_of = |who: &Who| match *who {
            Who::Uid(allowed) => allowed == uid,
            Who::Gid(allowed) => allowed == gid,
            Who::Anybody => true,
        };
        let entries = self.config.unix.iter().filter(|(who, _)| is_of(who));
        let listed = entries.map(|(_, roles)| *roles).reduce(Roles::and);
        let mut name = match credentials.pid() {
            Some(pid) if pid > 0 => format!("process {pid} of user {uid}"),
            _ => format!("user {uid}"),
        };
        let roles = match (listed, &token) {
            (Some(roles), _) => self.with_all(roles, uid == self.config.uid),
            (None, Some(_)) => Roles::NONE,
            (None, None) => {
                let message = format!(
                    "you are user {uid} of group {gid}, and the operator lets others use this socket; have user:{uid} or group:{gid} added to \
                     allowed_peers, or call as one who is"
                );
                return Err(
                    ApiError::new(Code::PermissionDenied, "PEER_NOT_ALLOWED", message).with("uid", uid.to_string())
                );
            }
        };
        let roles = match token {
            None => roles,
            Some(token) => {
                name = format!("{} of {name}", token.name);
                self.masked(roles.and(token.roles))
            }
        };
        let shared: Arc<str> = name.as_str().into();
        Ok((Caller { peer: Peer::new(Arc::clone(&shared)), roles, uid: Some(uid), is_known: true }, shared))
    }

    /// With what the operator gives by where somebody comes from.
    fn with_all(&self, roles: Roles, is_same_uid: bool) -> Roles {
        let gives = |peers| match peers {
            TrustedPeers::All => true,
            TrustedPeers::SameUid => is_same_uid,
            TrustedPeers::None => false,
        };
        let choices = [(self.config.trusted_frontend_peers, Role::Frontend), (self.config.admin_peers, Role::Admin)];
        let roles =
            choices.into_iter().filter(|(peers, _)| gives(*peers)).fold(roles, |roles, (_, role)| roles.with(role));
        self.masked(roles)
    }

    /// Without what nobody has, whoever gave it.
    fn masked(&self, roles: Roles) -> Roles {
        let choices = [(self.config.trusted_frontend_peers, Role::Frontend), (self.config.admin_peers, Role::Admin)];
        let denied = choices.into_iter().filter(|(peers, _)| *peers == TrustedPeers::None);
        denied.fold(roles, |roles, (_, role)| roles.without(role))
    }

    fn certificate(&self, tls: &TlsConnectInfo<TcpConnectInfo>) -> Result<Option<Proven>, ApiError> {
        let refused = |reason, message: String| ApiError::new(Code::Unauthenticated, reason, message);
        let Some(certificates) = tls.peer_certs() else { return Ok(None) };
        let Some(certificate) = certificates.first().and_then(|der| Certificate::of_der(der)) else {
            return Err(refused("BAD_CERTIFICATE", "your certificate cannot be read".into()));
        };
        let shown = certificate.names.first().map(String::as_str).unwrap_or_default();
        if SystemTime::now() > certificate.not_after {
            return Err(refused(
                "CERTIFICATE_EXPIRED",
                format!("the certificate of {shown} has expired; connect with a new one"),
            ));
        }
        let listed = self.config.certificates.iter().filter(|(name, _)| certificate.names.contains(name));
        let roles = match (self.config.certificates.is_empty(), listed.map(|(_, roles)| *roles).reduce(Roles::and)) {
            (true, _) => Roles::WORKER,
            (false, Some(roles)) => roles,
            (false, None) => {
                let message =
                    format!("the certificate of {shown} is none that the operator lists in certificate_peers");
                return Err(ApiError::new(Code::PermissionDenied, "PEER_NOT_ALLOWED", message));
            }
        };
        Ok(Some(Proven { name: format!("certificate {shown}"), roles }))
    }

    fn token(&self, headers: &HeaderMap) -> Result<Option<Proven>, ApiError> {
        let Some(header) = headers.get(AUTHORIZATION) else { return Ok(None) };
        let refused = |reason, message: String| ApiError::new(Code::Unauthenticated, reason, message);
        // A daemon without tokens takes one for no proof of anything.
        let Some(tokens) = &self.tokens else { return Ok(None) };
        let bytes = header.as_bytes();
        let presented = match bytes.split_at_checked(7) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token,
            _ => return Err(refused("UNKNOWN_TOKEN", "the authorization header is no \"Bearer\" and a token".into())),
        };
        match tokens.get().find(presented, SystemTime::now()) {
            Presented::Valid(token) => Ok(Some(Proven { name: format!("token {}", token.name), roles: token.roles })),
            Presented::Expired(token) => Err(refused(
                "TOKEN_EXPIRED",
                format!("the token {} has expired; get a new one from the operator", token.name),
            )),
            Presented::Unknown => {
                Err(refused("UNKNOWN_TOKEN", "this daemon does not know your token; get one from the operator".into()))
            }
        }
    }
}
