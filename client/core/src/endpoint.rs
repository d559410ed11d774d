//! Where the daemon is: parsing what people write, and the default when they write nothing.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use thiserror::Error;

/// The variable that names the daemon's address where no option does.
const ENDPOINT_VARIABLE: &str = "PIECEWISED_ENDPOINT";

/// The address of a daemon.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// Plain HTTP/2: `host:port`.
    Http(String),
    /// HTTP/2 over TLS: `host:port`.
    Https(String),
}

/// Text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{text:?} is not a daemon's address ({problem}); write unix:///path/to/socket, https://node:7410, http://127.0.0.1:7410 or 127.0.0.1:7410"
)]
pub struct EndpointError {
    text: String,
    problem: &'static str,
}

impl Endpoint {
    /// The endpoint to use: what was given, else `PIECEWISED_ENDPOINT`, else the default socket.
    ///
    /// The default socket is the first of [`Endpoint::default_sockets`] that exists, and where none does the first of them,
    /// so that the error that follows names a path.
    ///
    /// # Errors
    /// [`EndpointError`] where what was given is no address.
    pub fn resolve(
        given: Option<&str>,
        environment: impl Fn(&str) -> Option<String>,
        uid: u32,
    ) -> Result<Self, EndpointError> {
        let from_environment = || environment(ENDPOINT_VARIABLE).filter(|text| !text.is_empty());
        if let Some(text) = given.map(str::to_owned).or_else(from_environment) {
            return text.parse();
        }
        let mut sockets = Self::default_sockets(&environment, uid);
        let first_that_exists = sockets.iter().position(|path| path.exists()).unwrap_or(0);
        Ok(Self::Unix(sockets.swap_remove(first_that_exists)))
    }

    /// Whether nobody on the way sees what is sent.
    pub(crate) fn is_private(&self) -> bool {
        match self {
            Self::Unix(_) | Self::Https(_) => true,
            Self::Http(authority) => {
                let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
                is_this_machine(host)
            }
        }
    }

    /// Where a daemon listens by default: the session's runtime folder, the system's, and a folder of the user's in `/tmp`.
    /// Never empty.
    pub fn default_sockets(environment: impl Fn(&str) -> Option<String>, uid: u32) -> Vec<PathBuf> {
        let runtime = environment("XDG_RUNTIME_DIR").filter(|folder| Path::new(folder).is_absolute());
        runtime
            .map(|folder| Path::new(&folder).join("piecewised/piecewised.sock"))
            .into_iter()
            .chain([
                PathBuf::from("/run/piecewised/piecewised.sock"),
                PathBuf::from(format!("/tmp/piecewised-{uid}/piecewised.sock")),
            ])
            .collect()
    }
}

/// Whether a URL's host, with the brackets of an IPv6 address, is the machine that the program runs on.
pub fn is_this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let bad = |problem| EndpointError { text: text.into(), problem };
        if let Some(rest) = text.strip_prefix("unix:") {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            return if path.is_empty() {
                Err(bad("the socket's path is missing"))
            } else if path.contains('\0') {
                Err(bad("a path holds no NUL"))
            } else if rest.starts_with("//") && !path.starts_with('/') {
                Err(bad("unix:// is followed by an absolute path"))
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        let of_tls = text.strip_prefix("https://");
        let authority = of_tls.or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if authority.contains("://") {
            return Err(bad("the scheme is none of unix, https, http"));
        }
        let Some((host, port)) = authority.rsplit_once(':') else {
            return Err(bad("the port is missing"));
        };
        let host_is_plain = !host.is_empty()
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']'));
        if !host_is_plain || (host.contains(':') && !(host.starts_with('[') && host.ends_with(']'))) {
            return Err(bad("the host is missing or has characters that no host has"));
        }
        if port.parse::<u16>().map_or(true, |port| port == 0) {
            return Err(bad("the port is not a number from 1 to 65535"));
        }
        Ok(if of_tls.is_some() { Self::Https(authority.into()) } else { Self::Http(authority.into()) })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(authority) => write!(f, "http://{authority}"),
            Self::Https(authority) => write!(f, "https://{authority}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let check = |text: &str, expected: Endpoint| assert_eq!(text.parse(), Ok(expected), "{text}");
        check("unix:///run/x.sock", Endpoint::Unix("/run/x.sock".into()));
        check("unix:/run/x.sock", Endpoint::Unix("/run/x.sock".into()));
        check("unix:x.sock", Endpoint::Unix("x.sock".into()));
        check("http://127.0.0.1:7410", Endpoint::Http("127.0.0.1:7410".into()));
        check("http://127.0.0.1:7410/", Endpoint::Http("127.0.0.1:7410".into()));
        check("https://node.example:7410/", Endpoint::Https("node.example:7410".into()));
        check("localhost:1", Endpoint::Http("localhost:1".into()));
        check("[::1]:7410", Endpoint::Http("[::1]:7410".into()));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "unix:",
            "unix://",
            "unix://relative",
            "http://",
            "127.0.0.1",
            ":80",
            "host:0",
            "host:65536",
            "host:x",
            "https://host",
            "ftp://host:1",
            "ho st:1",
            "::1:80",
            "user@host:1",
            "http://host:1/path",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_sent_in_clear_to_others_is_told_apart() {
        let is_private = |text: &str| text.parse::<Endpoint>().unwrap().is_private();
        for text in ["unix:/s", "https://host:1", "localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1"] {
            assert!(is_private(text), "{text}");
        }
        for text in ["host:1", "10.0.0.1:1", "[fd00::1]:1", "localhost.evil:1"] {
            assert!(!is_private(text), "{text}");
        }
    }

    #[test]
    fn what_is_given_beats_the_environment_which_beats_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = folder.path().to_str().unwrap().to_owned();
        let environment = |name: &str| match name {
            ENDPOINT_VARIABLE => Some("host:1".into()),
            _ => None,
        };
        let resolve = |given: Option<&str>| Endpoint::resolve(given, environment, 7).unwrap();
        assert_eq!(resolve(Some("host:2")), Endpoint::Http("host:2".into()));
        assert_eq!(resolve(None), Endpoint::Http("host:1".into()));

        let with_runtime = |name: &str| (name == "XDG_RUNTIME_DIR").then(|| runtime.clone());
        let socket = folder.path().join("piecewised/piecewised.sock");
        std::fs::create_dir(folder.path().join("piecewised")).unwrap();
        std::fs::write(&socket, "").unwrap();
        assert_eq!(Endpoint::resolve(None, with_runtime, 7), Ok(Endpoint::Unix(socket)));
    }
}
