//! What keeps pages of other origins from reading this port through a visitor's browser.
//!
//! Without CORS a page of another origin can send requests and not read the answers, unless its name is made to resolve to this machine (DNS rebinding): then it is the
//! same origin to the browser, and only the `Host` of its requests tells. So this port answers to addresses, to `localhost`, to the machine's
//! own name and to those that the operator lists, and to no other. Prometheus and probes ask pods by their address. A request without any `Host` is no browser's.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

/// What every answer says of itself; a page may have a policy of its own.
const HEADERS: [(HeaderName, HeaderValue); 7] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
];

/// Says that the process lives, and nothing else: whoever asks may have the answer.
const FOR_ALL: &str = "/healthz";

/// The names that this port answers to, beside addresses and `localhost`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hosts(Arc<BTreeSet<String>>);

impl Hosts {
    pub(crate) fn new(names: &[String]) -> Self {
        Self(Arc::new(names.iter().map(|name| plain(name)).collect()))
    }

    /// Whether a request is for us: by all that it says of whom it is for.
    fn are_meant(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let named = headers.get_all(header::HOST).iter().all(|host| host.to_str().is_ok_and(|host| self.has(host)));
        named && uri.authority().is_none_or(|authority| self.has(authority.as_str()))
    }

    fn has(&self, authority: &str) -> bool {
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        let host = plain(authority.host());
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
        address.parse::<IpAddr>().is_ok() || host == "localhost" || self.0.contains(&host)
    }
}

/// Names differ neither by case nor by the dot at the end.
fn plain(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Refuses what is not for us, and sets the headers of all answers.
pub(crate) async fn guard(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    let is_meant = request.uri().path() == FOR_ALL || hosts.are_meant(request.uri(), request.headers());
    let mut response = if is_meant { next.run(request).await } else { refused() };
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(value);
    }
    response
}

fn refused() -> Response {
    let message = "this port answers to addresses, localhost and the machine's own name; list others in http_hosts\n";
    (StatusCode::FORBIDDEN, message).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Hosts {
        Hosts::new(&["gpu-7.Example.org".into(), "gpu-7.".into()])
    }

    #[test]
    fn addresses_and_our_own_names_are_us() {
        for host in [
            "127.0.0.1",
            "10.3.4.5:7411",
            "[::1]:7411",
            "[fd00::1]",
            "localhost",
            "LOCALHOST:1",
            "localhost.:7411",
            "gpu-7:7411",
            "GPU-7.example.org.:7411",
        ] {
            assert!(hosts().has(host), "{host}");
        }
    }

    #[test]
    fn other_names_are_not() {
        for host in [
            "",
            "evil.example",
            "evil.example:7411",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "127.0.0.1@evil.example",
            "evil.example@127.0.0.1",
            "2130706433",
            "127.1",
            "[::1",
            "gpu-7.example.org.evil.example",
            "gpu-7\u{e9}",
            "a b",
        ] {
            assert!(!hosts().has(host), "{host:?}");
        }
    }

    #[test]
    fn each_thing_that_names_a_host_has_to_name_us() {
        let meant = |uri: &str, names: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for name in names {
                headers.append(header::HOST, HeaderValue::from_static(name));
            }
            hosts().are_meant(&uri.parse().expect("an address"), &headers)
        };
        assert!(meant("/", &["127.0.0.1:7411"]));
        assert!(meant("/", &[]), "no browser leaves it out");
        assert!(!meant("/", &["evil.example"]));
        assert!(!meant("/", &["127.0.0.1", "evil.example"]));
        assert!(!meant("http://evil.example/", &["127.0.0.1"]));
        assert!(meant("http://127.0.0.1:7411/", &["127.0.0.1:7411"]));
    }
}
