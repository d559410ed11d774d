//! Where configuration comes from: defaults < file < environment < flags.
//!
//! A key that does not exist is an error that names the nearest one that does, and every error names the place to change: the file,
//! the variable or the flag. Left out: what the keys mean.

use std::{ffi::OsStr, path::Path};

use figment::{
    Figment, Metadata, Profile, Provider,
    providers::{Format, Toml},
    value::{Dict, Map, Value},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{config::KEYS, surroundings::Surroundings};

/// A configuration that cannot be used; the message says which key, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ConfigError(String);

impl ConfigError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Names of the environment, after `PIECEWISED_`, that are not the daemon's: `CONFIG` is read before anything else, the others are
/// the client's and the tests', and Kubernetes sets the last ones in every pod beside a Service called `piecewised`.
const OTHER_NAMES: &[&str] = &[
    "CONFIG",
    "ENDPOINT",
    "CACHE_DIR",
    "TRUSTED_KEYS",
    "CA",
    "CERT",
    "KEY",
    "TOKEN",
    "LIBTORCH",
    "TEST_*",
    "CLIENT_*",
    "SERVICE_*",
    "PORT",
    "PORT_*",
];

/// Keys whose values are text as they stand; those of the others are read as TOML values are.
const TEXT_KEYS: &[&str] = &[
    "socket",
    "listen_tcp",
    "listen_http",
    "otlp_endpoint",
    "otlp_ca",
    "otlp_cert",
    "otlp_key",
    "otlp_headers",
    "socket_mode",
    "socket_user",
    "socket_group",
    "tls_cert",
    "tls_key",
    "tls_client_ca",
    "tokens",
    "runner",
    "signing_key",
    "store_dir",
    "temp_dir",
    "headers_dir",
    "python",
    "trusted_frontend_peers",
    "admin_peers",
    "log",
    "log_format",
];

/// Keys whose values are several words, separated by commas in the environment.
const LIST_KEYS: &[&str] = &[
    "executor_environment",
    "executor_writable_dirs",
    "frontends",
    "http_hosts",
    "allowed_peers",
    "certificate_peers",
];

const FILE: &str = "file ";
const ENVIRONMENT: &str = "environment";
const FLAGS: &str = "flags";

/// One layer.
struct Layer {
    name: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// The layers, the last one on top.
pub(crate) struct Layers(Figment);

impl Layers {
    /// The lowest layer.
    pub(crate) fn from_defaults(defaults: &impl Serialize) -> Result<Self, ConfigError> {
        Ok(Self(Figment::from(Layer { name: "defaults".into(), values: dict(defaults)? })))
    }

    /// A TOML file on top.
    pub(crate) fn with_file(self, path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut profiles = Toml::string(text)
            .data()
            .map_err(|error| ConfigError(format!("{} is not TOML: {}", path.display(), error.kind)))?;
        let values = profiles.remove(&Profile::Default).unwrap_or_default();
        if let Some(key) = values.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(unknown(&format!("{key} in {}", path.display()), key, str::to_owned));
        }
        Ok(self.with(Layer { name: format!("{FILE}{}", path.display()), values }))
    }

    /// `PIECEWISED_*` on top. An empty variable counts as none.
    pub(crate) fn with_environment(self, surroundings: &Surroundings) -> Result<Self, ConfigError> {
        let mut values = Dict::new();
        for (name, value) in &surroundings.variables {
            let Some(rest) = name.to_str().and_then(|name| name.strip_prefix("PIECEWISED_")) else { continue };
            let is_other = |other: &str| match other.strip_suffix('*') {
                Some(start) => rest.starts_with(start),
                None => rest == other,
            };
            if OTHER_NAMES.iter().any(|other| is_other(other)) {
                continue;
            }
            let key = rest.to_lowercase();
            if !KEYS.contains(&key.as_str()) {
                return Err(unknown(&format!("PIECEWISED_{rest}"), &key, |key| {
                    format!("PIECEWISED_{}", key.to_uppercase())
                }));
            }
            if !value.is_empty() {
                values.insert(key.clone(), environment_value(&key, value)?);
            }
        }
        Ok(self.with(Layer { name: ENVIRONMENT.into(), values }))
    }

    /// The flags on top.
    pub(crate) fn with_flags(self, flags: &impl Serialize) -> Result<Self, ConfigError> {
        Ok(self.with(Layer { name: FLAGS.into(), values: dict(flags)? }))
    }

    /// The result.
    pub(crate) fn extract<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        self.0.extract().map_err(|error| match error.path.first() {
            Some(key) => self.wrong(key, &error.kind.to_string()),
            None => ConfigError(error.kind.to_string()),
        })
    }

    /// The error for a key whose value will not do.
    pub(crate) fn wrong(&self, key: &str, problem: &str) -> ConfigError {
        let place = match self.0.find_metadata(key).map(|metadata| metadata.name.as_ref()) {
            Some(FLAGS) => format!("--{}", key.replace('_', "-")),
            Some(ENVIRONMENT) => format!("PIECEWISED_{}", key.to_uppercase()),
            Some(name) => match name.strip_prefix(FILE) {
                Some(path) => format!("{key} in {path}"),
                None => key.to_owned(),
            },
            None => key.to_owned(),
        };
        ConfigError(format!("{place}: {problem}"))
    }

    fn with(self, layer: Layer) -> Self {
        Self(self.0.merge(layer))
    }
}

fn dict(values: &impl Serialize) -> Result<Dict, ConfigError> {
    let value = Value::serialize(values).map_err(|error| ConfigError(error.to_string()))?;
    value.into_dict().ok_or_else(|| ConfigError("the layer is not a table".into()))
}

fn environment_value(key: &str, value: &OsStr) -> Result<Value, ConfigError> {
    let Some(text) = value.to_str() else {
        return Err(ConfigError(format!("PIECEWISED_{}: its value is not UTF-8", key.to_uppercase())));
    };
    if LIST_KEYS.contains(&key) {
        return Ok(text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect::<Vec<_>>().into());
    }
    if TEXT_KEYS.contains(&key) {
        return Ok(text.into());
    }
    text.parse().map_err(|never: std::convert::Infallible| match never {})
}

fn unknown(place: &str, key: &str, written: impl Fn(&str) -> String) -> ConfigError {
    let similarity = |known: &str| strsim::normalized_damerau_levenshtein(key, known);
    let nearest = KEYS.iter().copied().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    let hint = match nearest.filter(|known| similarity(known) > 0.5) {
        Some(known) => format!("did you mean {}?", written(known)),
        None => "`piecewised serve --help` lists the keys".into(),
    };
    ConfigError(format!("{place}: there is no such key; {hint}"))
}
