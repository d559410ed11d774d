//! Which collector traces are sent to, and what it is sent to know it and to be known: TLS and headers.
//!
//! The configuration's keys go before the variables of OpenTelemetry's specification. Files are read once, at the start.

use std::{
    fs,
    path::{Path, PathBuf},
};

use piecewised_client::is_this_machine;
use tonic::{
    metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue},
    transport::{Certificate, ClientTlsConfig, Identity, Uri},
};

use crate::{config::Config, layers::ConfigError};

/// A collector that takes OTLP over gRPC.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Collector {
    pub(super) endpoint: String,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    headers: Option<PathBuf>,
}

/// The keys that can be wrong without a look at files.
pub(super) fn check(config: &Config) -> Result<(), (&'static str, String)> {
    if let Some(endpoint) = &config.otlp_endpoint {
        let uri = endpoint.parse::<Uri>().ok().filter(|uri| uri.host().is_some());
        match uri.as_ref().and_then(Uri::scheme_str) {
            Some("http") => {
                let of_tls =
                    [("otlp_ca", &config.otlp_ca), ("otlp_cert", &config.otlp_cert), ("otlp_key", &config.otlp_key)];
                if let Some((key, _)) = of_tls.into_iter().find(|(_, path)| path.is_some()) {
                    return Err((key, format!("{endpoint} is spoken to without TLS; set otlp_endpoint to https://…")));
                }
            }
            Some("https") => {}
            _ => {
                let problem = "is not http://HOST:PORT or https://HOST:PORT, where a collector takes OTLP over gRPC";
                return Err(("otlp_endpoint", format!("{endpoint:?} {problem}")));
            }
        }
    }
    match (&config.otlp_cert, &config.otlp_key) {
        (Some(_), None) => Err(("otlp_cert", "a certificate needs its key; set otlp_key too".into())),
        (None, Some(_)) => Err(("otlp_key", "a key needs its certificate; set otlp_cert too".into())),
        _ => Ok(()),
    }
}

impl Collector {
    /// The one that is configured; `None`: there is none. Variables are often set for all programs of a machine: those that mean something that is not done here
    /// are no reason not to start.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let surroundings = &config.surroundings;
        let text = |name: &str| surroundings.variable(name).and_then(|value| value.to_str()).unwrap_or_default();
        if text("OTEL_SDK_DISABLED").eq_ignore_ascii_case("true") || text("OTEL_TRACES_EXPORTER") == "none" {
            return None;
        }
        let of_traces = |name: &str| {
            let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")];
            names.iter().map(|name| text(name)).find(|value| !value.is_empty())
        };
        let file = |key: &Option<PathBuf>, name| key.clone().or_else(|| of_traces(name).map(PathBuf::from));
        let endpoint = match &config.otlp_endpoint {
            Some(endpoint) => endpoint.clone(),
            None => {
                let (endpoint, protocol) = (of_traces("ENDPOINT")?, of_traces("PROTOCOL").unwrap_or("grpc"));
                let is_url = ["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme));
                if !is_url || protocol != "grpc" {
                    tracing::warn!(
                        endpoint,
                        protocol,
                        "OpenTelemetry's variables name a collector that traces are not sent to: OTLP over gRPC, at http://… or https://…, is all that there is; otlp_endpoint \
                         names another"
                    );
                    return None;
                }
                endpoint.to_owned()
            }
        };
        let mut collector = Self { endpoint, headers: config.otlp_headers.clone(), ca: None, cert: None, key: None };
        if collector.is_encrypted() {
            collector.ca = file(&config.otlp_ca, "CERTIFICATE");
            // A pair: one of each place would be none.
            let is_given = config.otlp_cert.is_some();
            collector.cert = if is_given { config.otlp_cert.clone() } else { file(&None, "CLIENT_CERTIFICATE") };
            collector.key = if is_given { config.otlp_key.clone() } else { file(&None, "CLIENT_KEY") };
        }
        Some(collector)
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.endpoint.starts_with("https://")
    }

    /// What is spoken to it; `None`: no TLS.
    pub(super) fn tls(&self) -> Result<Option<ClientTlsConfig>, ConfigError> {
        if !self.is_encrypted() {
            return Ok(None);
        }
        let tls = match &self.ca {
            None => ClientTlsConfig::new().with_native_roots(),
            Some(path) => {
                let pem = read("otlp_ca", path)?;
                // A file without any would trust nobody, and say nothing.
                if !pem.contains("-----BEGIN CERTIFICATE-----") {
                    return Err(wrong("otlp_ca", path, "there is no certificate in it"));
                }
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
            }
        };
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let certificate = read("otlp_cert", cert)?;
                let key = read_private("otlp_key", key)?;
                Ok(Some(tls.identity(Identity::from_pem(certificate, key))))
            }
            (None, None) => Ok(Some(tls)),
            _ => Err(ConfigError::new(
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY belong together; set both, or otlp_cert and otlp_key",
            )),
        }
    }

    /// What is sent along with each call.
    pub(super) fn headers(&self) -> Result<MetadataMap, ConfigError> {
        let Some(path) = &self.headers else { return Ok(MetadataMap::new()) };
        if !self.is_encrypted() && !self.is_near() {
            let problem =
                format!("what is in it would go to {} in clear; set otlp_endpoint to https://…", self.endpoint);
            return Err(wrong("otlp_headers", path, &problem));
        }
        parse(&read_private("otlp_headers", path)?).map_err(|problem| wrong("otlp_headers", path, &problem))
    }

    /// Whether it is on this machine.
    fn is_near(&self) -> bool {
        let uri = self.endpoint.parse::<Uri>().ok();
        uri.as_ref().and_then(Uri::host).is_some_and(is_this_machine)
    }
}

/// A header a line. Values are secrets: no problem tells them.
fn parse(text: &str) -> Result<MetadataMap, String> {
    let mut headers = MetadataMap::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let problem = || format!("line {} is not \"name: value\", as in \"authorization: Bearer TOKEN\"", at + 1);
        let (name, value) = line.split_once(':').ok_or_else(problem)?;
        let name: MetadataKey<Ascii> = name.trim().to_ascii_lowercase().parse().map_err(|_| problem())?;
        let mut value: MetadataValue<Ascii> = value.trim().parse().map_err(|_| problem())?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

fn read(key: &str, path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|error| wrong(key, path, &error.to_string()))
}

fn read_private(key: &str, path: &Path) -> Result<String, ConfigError> {
    piecewised_api::check_private(path).map_err(|problem| wrong(key, path, &problem))?;
    read(key, path)
}

fn wrong(key: &str, path: &Path, problem: &str) -> ConfigError {
    ConfigError::new(format!("{key}: {} cannot be used: {problem}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::surroundings::Surroundings;

    fn found(flag: Option<&str>, variables: &[(&str, &str)]) -> Option<Collector> {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let surroundings = Surroundings { variables, ..Surroundings::default() };
        let config = Config { otlp_endpoint: flag.map(Into::into), ..Config::defaults(&surroundings) };
        Collector::of(&Config { surroundings, ..config })
    }

    fn endpoint(flag: Option<&str>, variables: &[(&str, &str)]) -> Option<String> {
        found(flag, variables).map(|collector| collector.endpoint)
    }

    #[test]
    fn the_flag_goes_before_the_variables_and_nothing_is_sent_where_none_is_set() {
        let both =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:1"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:1")];
        assert_eq!(endpoint(None, &[]), None);
        assert_eq!(endpoint(None, &both[..1]).as_deref(), Some("http://a:1"));
        assert_eq!(endpoint(None, &both).as_deref(), Some("http://b:1"));
        assert_eq!(endpoint(Some("http://c:1"), &both).as_deref(), Some("http://c:1"));
        assert_eq!(endpoint(Some("http://c:1"), &[("OTEL_SDK_DISABLED", "TRUE")]), None);
        assert_eq!(endpoint(Some("http://c:1"), &[("OTEL_TRACES_EXPORTER", "none")]), None);
    }

    #[test]
    fn variables_that_mean_another_way_of_sending_send_nothing() {
        let with =
            |endpoint_, name, value| endpoint(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint_), (name, value)]);
        assert_eq!(with("a:1", "X", ""), None);
        assert_eq!(with("http://a:1", "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"), None);
        assert_eq!(with("http://a:1", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"), None);
        assert_eq!(with("http://a:1", "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc").as_deref(), Some("http://a:1"));
        assert_eq!(with("https://a:1", "X", "").as_deref(), Some("https://a:1"));
    }

    #[test]
    fn the_variables_for_tls_count_where_tls_is_spoken() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/cert"),
            ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "/cert-of-traces"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key"),
        ];
        let collector = found(Some("https://a:1"), &variables).unwrap();
        assert_eq!(collector.ca.as_deref(), Some(Path::new("/ca")));
        assert_eq!(collector.cert.as_deref(), Some(Path::new("/cert-of-traces")));
        assert_eq!(collector.key.as_deref(), Some(Path::new("/key")));
        let plain = found(Some("http://a:1"), &variables).unwrap();
        assert!(plain.ca.is_none() && plain.cert.is_none() && plain.tls().unwrap().is_none());
    }

    #[test]
    fn what_cannot_go_together_is_refused_with_the_key() {
        let surroundings = Surroundings::default();
        let wrong = |change: &dyn Fn(&mut Config)| {
            let mut config = Config::defaults(&surroundings);
            change(&mut config);
            check(&config).unwrap_err().0
        };
        let path = || Some(PathBuf::from("/x"));
        for bad in ["collector:4317", "ftp://collector", "https://", ""] {
            assert_eq!(wrong(&|config| config.otlp_endpoint = Some(bad.into())), "otlp_endpoint", "{bad}");
        }
        assert_eq!(wrong(&|config| config.otlp_cert = path()), "otlp_cert");
        assert_eq!(wrong(&|config| config.otlp_key = path()), "otlp_key");
        let plain = |config: &mut Config| {
            config.otlp_endpoint = Some("http://a:1".into());
            config.otlp_ca = path();
        };
        assert_eq!(wrong(&plain), "otlp_ca");
    }

    #[test]
    fn headers_are_read_line_by_line_and_not_told() {
        let headers = parse("# for the collector\nAuthorization: Bearer a:b\n\n x-scope : team=1,2 \n").unwrap();
        assert_eq!(headers.get("authorization").unwrap().to_str().unwrap(), "Bearer a:b");
        assert_eq!(headers.get("x-scope").unwrap().to_str().unwrap(), "team=1,2");
        assert!(!format!("{headers:?}").contains("Bearer"));
        for bad in ["secret", "a b: secret", "x-bin: secret", ": secret", "x: sec\u{7}ret"] {
            let problem = parse(&format!("a: b\n{bad}")).unwrap_err();
            assert!(problem.starts_with("line 2 is not") && !problem.contains("sec"), "{problem}");
        }
    }

    #[test]
    fn secrets_are_neither_read_from_open_files_nor_sent_in_clear() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "authorization: Bearer abc").unwrap();
        let of = |endpoint: &str| {
            let mut collector = found(Some(endpoint), &[]).unwrap();
            collector.headers = Some(file.path().to_owned());
            collector.headers().map(|headers| headers.len()).map_err(|error| error.to_string())
        };
        assert!(of("http://collector.example:4317").unwrap_err().contains("in clear"));
        for near in ["http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1", "https://collector.example:1"] {
            assert_eq!(of(near), Ok(1), "{near}");
        }
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(of("https://collector.example:1").unwrap_err().contains("chmod 600"));
    }
}
