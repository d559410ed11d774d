//! From the configuration's words to who may call: users and groups by name, roles, files of certificates and tokens.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;
use nix::unistd::{Group, User};
use piecewised_api::{Access, AccessConfig, PeerLimits, Roles, Tls, TlsFiles, Who};
use piecewised_executor::Confinement;

use crate::{config::Config, layers::ConfigError};

/// The mode, owner and group of the Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SocketAccess {
    pub(crate) mode: u32,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

/// Checks what can be checked without looking at the system or at files.
pub(crate) fn check(config: &Config) -> Result<(), (&'static str, String)> {
    mode(&config.socket_mode).map_err(|problem| ("socket_mode", problem))?;
    for entry in &config.allowed_peers {
        split(entry).map_err(|problem| ("allowed_peers", problem))?;
    }
    for entry in &config.certificate_peers {
        let (name, _) = split(entry).map_err(|problem| ("certificate_peers", problem))?;
        if name.is_empty() {
            return Err(("certificate_peers", format!("{entry:?} names nobody")));
        }
    }
    match (&config.tls_cert, &config.tls_key) {
        (Some(_), None) => return Err(("tls_cert", "a certificate needs its key; set tls_key too".into())),
        (None, Some(_)) => return Err(("tls_key", "a key needs its certificate; set tls_cert too".into())),
        _ => {}
    }
    if config.tls_client_ca.is_some() && config.tls_cert.is_none() {
        return Err(("tls_client_ca", "clients show certificates with TLS only; set tls_cert and tls_key too".into()));
    }
    if !config.certificate_peers.is_empty() && config.tls_client_ca.is_none() {
        return Err(("certificate_peers", "no certificate is asked for; set tls_client_ca too".into()));
    }
    let Some(address) = config.listen_tcp.filter(|address| !address.ip().is_loopback()) else { return Ok(()) };
    let local = format!("or listen on a loopback address such as 127.0.0.1:{}", address.port());
    if config.tls_cert.is_none() {
        let problem = format!(
            "{address} can be reached from other machines, and nothing there says who calls or keeps what is sent from others' eyes; set tls_cert and \
             tls_key, and tls_client_ca or tokens, {local}"
        );
        return Err(("listen_tcp", problem));
    }
    if config.tls_client_ca.is_none() && config.tokens.is_none() {
        let problem = format!(
            "{address} can be reached from other machines, and nothing says who calls; set tls_client_ca or tokens, {local}"
        );
        return Err(("listen_tcp", problem));
    }
    Ok(())
}

/// Who may use the socket's file.
pub(crate) fn socket(config: &Config) -> Result<SocketAccess, ConfigError> {
    let wrong = |key, problem| ConfigError::new(format!("{key}: {problem}"));
    Ok(SocketAccess {
        mode: mode(&config.socket_mode).map_err(|problem| wrong("socket_mode", problem))?,
        uid: config.socket_user.as_deref().map(user).transpose().map_err(|problem| wrong("socket_user", problem))?,
        gid: config.socket_group.as_deref().map(group).transpose().map_err(|problem| wrong("socket_group", problem))?,
    })
}

/// Who may call, by everything that the configuration says of it. Reads the file of tokens.
pub(crate) fn access(config: &Config, confinement: Arc<Confinement>) -> anyhow::Result<Arc<Access>> {
    Ok(Arc::new(Access::new(access_config(config, confinement)?, config.tokens.as_deref())?))
}

/// The same without the tokens.
fn access_config(config: &Config, confinement: Arc<Confinement>) -> Result<AccessConfig, ConfigError> {
    let uid = config.surroundings.uid;
    let wrong = |key: &str, entry: &str, problem: String| ConfigError::new(format!("{key}: {entry:?}: {problem}"));
    let of = |entry: &String| {
        let entry = entry.as_str();
        let wrong = |problem| wrong("allowed_peers", entry, problem);
        let (name, roles) = split(entry).map_err(wrong)?;
        Ok((who(name, uid).map_err(wrong)?, roles))
    };
    let of_certificate = |entry: &String| {
        let (name, roles) = split(entry).map_err(|problem| wrong("certificate_peers", entry, problem))?;
        Ok((name.to_owned(), roles))
    };
    Ok(AccessConfig {
        uid,
        unix: config.allowed_peers.iter().map(of).collect::<Result<_, ConfigError>>()?,
        certificates: config.certificate_peers.iter().map(of_certificate).collect::<Result<_, ConfigError>>()?,
        is_tcp_guarded: config.tls_client_ca.is_some() || config.tokens.is_some(),
        trusted_frontend_peers: config.trusted_peers(),
        admin_peers: config.admin_peers(),
        limits: PeerLimits {
            max_streams: config.max_streams_per_peer,
            max_requests_per_s: config.max_requests_per_s_per_peer,
        },
        confinement,
    })
}

/// What is spoken on the TCP port, where it is TLS.
pub(crate) fn tls(config: &Config) -> anyhow::Result<Option<Tls>> {
    let (Some(certificate), Some(key)) = (&config.tls_cert, &config.tls_key) else { return Ok(None) };
    let files = TlsFiles {
        certificate: PathBuf::clone(certificate),
        key: key.clone(),
        client_ca: config.tls_client_ca.clone(),
        is_certificate_optional: config.tokens.is_some(),
    };
    Tls::new(files).map(Some).context("listen_tcp")
}

/// An entry's name and roles: "user:ci=read+admin".
fn split(entry: &str) -> Result<(&str, Roles), String> {
    match entry.split_once('=') {
        None => Ok((entry, Roles::WORKER)),
        Some((name, roles)) => {
            let roles = Roles::of(roles.split('+')).map_err(|error| format!("{error}; write them as read+compile"))?;
            Ok((name, roles))
        }
    }
}

fn who(name: &str, uid: u32) -> Result<Who, String> {
    match name.split_once(':') {
        Some(("user", name)) => user(name).map(Who::Uid),
        Some(("group", name)) => group(name).map(Who::Gid),
        None if name == "same_uid" => Ok(Who::Uid(uid)),
        None if name == "all" => Ok(Who::Anybody),
        _ => Err("same_uid, all, user:NAME and group:NAME are what there can be, NAME being a number too".into()),
    }
}

fn user(name: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(format!("there is no user {name:?} here")),
        Err(error) => Err(format!("the user {name:?} cannot be looked up: {error}")),
    }
}

fn group(name: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(format!("there is no group {name:?} here")),
        Err(error) => Err(format!("the group {name:?} cannot be looked up: {error}")),
    }
}

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text.trim_start_matches("0o"), 8) {
        // Its owner has to be able to connect, and nobody executes a socket.
        Ok(mode) if mode & !0o666 == 0 && mode & 0o600 == 0o600 => Ok(mode),
        _ => Err(format!("{text:?} is no mode of a socket: 0600, 0660 and 0666 are")),
    }
}

#[cfg(test)]
mod tests {
    use piecewised_api::Role;

    use super::*;

    #[test]
    fn peers_are_read_as_people_write_them() {
        let read = |entry: &str| split(entry).and_then(|(name, roles)| Ok((who(name, 7)?, roles)));
        assert_eq!(read("same_uid"), Ok((Who::Uid(7), Roles::WORKER)));
        assert_eq!(read("all=read"), Ok((Who::Anybody, Roles::NONE.with(Role::Read))));
        assert_eq!(read("user:1000"), Ok((Who::Uid(1000), Roles::WORKER)));
        assert_eq!(read("user:root=admin+frontend"), Ok((Who::Uid(0), Roles::of(["admin", "frontend"]).unwrap())));
        assert_eq!(read("group:100"), Ok((Who::Gid(100), Roles::WORKER)));
        for (wrong, why) in [
            ("1000", "same_uid, all, user:NAME"),
            ("user:", "there is no user"),
            ("user:nobody-of-this-name", "there is no user \"nobody-of-this-name\" here"),
            ("all=root", "\"root\" is no role"),
            ("all=read,admin", "write them as read+compile"),
            ("uid:1", "same_uid, all, user:NAME"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_sockets_mode_is_octal_and_makes_sense() {
        for (text, expected) in [("0600", 0o600), ("660", 0o660), ("0o666", 0o666)] {
            assert_eq!(mode(text), Ok(expected));
        }
        for wrong in ["", "600x", "0400", "0777", "1666", "rw"] {
            assert!(mode(wrong).unwrap_err().contains("is no mode of a socket"), "{wrong}");
        }
    }
}
