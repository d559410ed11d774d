//! The daemon's configuration: every key, its default, and what values will do.
//!
//! Left out: where values come from ([`crate::layers`]).

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use piecewised_api::TrustedPeers;
use piecewised_graph::Limits;
use piecewised_scheduler::{Abandoned, VerifyPolicy};
use piecewised_store::{HEADERS_FOLDER, StoreConfig};
use serde::{Deserialize, Serialize};

use crate::{
    access,
    choices::{AbandonedJobs, ConfineExecutors, LogFormat, Trusted, Verify},
    cli::ServeArguments,
    confinement,
    layers::{ConfigError, Layers},
    surroundings::Surroundings,
    traces,
};

/// Every key, as in the file.
pub(crate) const KEYS: &[&str] = &[
    "socket",
    "socket_mode",
    "socket_user",
    "socket_group",
    "allowed_peers",
    "listen_tcp",
    "tls_cert",
    "tls_key",
    "tls_client_ca",
    "certificate_peers",
    "tokens",
    "listen_http",
    "http_hosts",
    "otlp_endpoint",
    "otlp_ca",
    "otlp_cert",
    "otlp_key",
    "otlp_headers",
    "signing_key",
    "store_dir",
    "store_max_bytes",
    "store_reserve_bytes",
    "store_max_held_bytes",
    "failure_ttl_s",
    "temp_dir",
    "headers_dir",
    "python",
    "n_executors",
    "n_compile_threads",
    "max_executor_memory_bytes",
    "max_jobs_per_gpu",
    "executor_nice",
    "executor_environment",
    "confine_executors",
    "executor_writable_dirs",
    "runner",
    "frontends",
    "trusted_frontend_peers",
    "admin_peers",
    "executor_ready_deadline_s",
    "executor_idle_timeout_s",
    "gpu_idle_timeout_s",
    "job_deadline_s",
    "max_attempts",
    "abandoned_jobs",
    "max_queued_jobs",
    "max_queued_jobs_per_peer",
    "max_queued_bytes_per_peer",
    "max_connections",
    "max_connections_per_peer",
    "message_timeout_s",
    "max_streams_per_peer",
    "max_requests_per_s_per_peer",
    "verify",
    "verify_sample_percent",
    "drain_deadline_s",
    "max_message_bytes",
    "max_nodes",
    "max_nesting",
    "max_symbols",
    "max_constant_bytes",
    "max_ranges",
    "max_artifact_bytes",
    "log",
    "log_format",
];

/// The configuration; [`crate::cli::ServeArguments`] says what each key means.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) socket: PathBuf,
    /// Octal.
    pub(crate) socket_mode: String,
    pub(crate) socket_user: Option<String>,
    pub(crate) socket_group: Option<String>,
    pub(crate) allowed_peers: Vec<String>,
    pub(crate) listen_tcp: Option<SocketAddr>,
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) tls_client_ca: Option<PathBuf>,
    pub(crate) certificate_peers: Vec<String>,
    pub(crate) tokens: Option<PathBuf>,
    pub(crate) listen_http: Option<SocketAddr>,
    pub(crate) http_hosts: Vec<String>,
    pub(crate) otlp_endpoint: Option<String>,
    pub(crate) otlp_ca: Option<PathBuf>,
    pub(crate) otlp_cert: Option<PathBuf>,
    pub(crate) otlp_key: Option<PathBuf>,
    pub(crate) otlp_headers: Option<PathBuf>,
    /// None: in the store's folder.
    pub(crate) signing_key: Option<PathBuf>,
    pub(crate) store_dir: PathBuf,
    pub(crate) store_max_bytes: Option<u64>,
    pub(crate) store_reserve_bytes: u64,
    pub(crate) store_max_held_bytes: u64,
    pub(crate) failure_ttl_s: u64,
    pub(crate) temp_dir: PathBuf,
    /// None: below `store_dir`.
    pub(crate) headers_dir: Option<PathBuf>,
    pub(crate) python: Option<PathBuf>,
    pub(crate) n_executors: usize,
    /// Filled in by [`Config::load`].
    pub(crate) n_compile_threads: Option<usize>,
    pub(crate) max_executor_memory_bytes: u64,
    /// None: by the GPU's memory.
    pub(crate) max_jobs_per_gpu: Option<usize>,
    pub(crate) executor_nice: u8,
    pub(crate) executor_environment: Vec<String>,
    pub(crate) confine_executors: ConfineExecutors,
    pub(crate) executor_writable_dirs: Vec<PathBuf>,
    /// "none": none.
    pub(crate) runner: Option<PathBuf>,
    pub(crate) frontends: Vec<String>,
    pub(crate) trusted_frontend_peers: Trusted,
    pub(crate) admin_peers: Trusted,
    pub(crate) executor_ready_deadline_s: u64,
    pub(crate) executor_idle_timeout_s: u64,
    pub(crate) gpu_idle_timeout_s: u64,
    pub(crate) job_deadline_s: u64,
    pub(crate) max_attempts: u32,
    pub(crate) abandoned_jobs: AbandonedJobs,
    pub(crate) max_queued_jobs: usize,
    pub(crate) max_queued_jobs_per_peer: usize,
    pub(crate) max_queued_bytes_per_peer: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_connections_per_peer: usize,
    pub(crate) message_timeout_s: u64,
    pub(crate) max_streams_per_peer: usize,
    pub(crate) max_requests_per_s_per_peer: u32,
    pub(crate) verify: Verify,
    pub(crate) verify_sample_percent: u8,
    pub(crate) drain_deadline_s: u64,
    pub(crate) max_message_bytes: usize,
    pub(crate) max_nodes: usize,
    pub(crate) max_nesting: usize,
    pub(crate) max_symbols: usize,
    pub(crate) max_constant_bytes: usize,
    pub(crate) max_ranges: usize,
    pub(crate) max_artifact_bytes: u64,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,

    /// What the process found itself in; not a key.
    #[serde(skip)]
    pub(crate) surroundings: Surroundings,
}

impl Config {
    /// The defaults in these surroundings.
    pub(crate) fn defaults(surroundings: &Surroundings) -> Self {
        let limits = Limits::default();
        Self {
            socket: surroundings.default_socket(),
            socket_mode: "0600".into(),
            socket_user: None,
            socket_group: None,
            allowed_peers: vec!["same_uid".into()],
            listen_tcp: None,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            certificate_peers: Vec::new(),
            tokens: None,
            listen_http: None,
            http_hosts: Vec::new(),
            otlp_endpoint: None,
            otlp_ca: None,
            otlp_cert: None,
            otlp_key: None,
            otlp_headers: None,
            signing_key: None,
            store_dir: surroundings.default_store_dir(),
            store_max_bytes: None,
            store_reserve_bytes: 64 << 20,
            store_max_held_bytes: 256 << 20,
            failure_ttl_s: 3600,
            temp_dir: surroundings.default_temp_dir(),
            headers_dir: None,
            python: None,
            n_executors: (surroundings.n_cores / 2).max(1),
            n_compile_threads: None,
            max_executor_memory_bytes: surroundings.memory_bytes / 4 * 3,
            max_jobs_per_gpu: None,
            executor_nice: 5,
            executor_environment: Vec::new(),
            confine_executors: ConfineExecutors::Auto,
            executor_writable_dirs: vec![confinement::PACKAGES.into()],
            runner: None,
            frontends: Vec::new(),
            trusted_frontend_peers: Trusted::SameUid,
            admin_peers: Trusted::SameUid,
            executor_ready_deadline_s: 120,
            executor_idle_timeout_s: 60,
            gpu_idle_timeout_s: 2,
            job_deadline_s: 1800,
            max_attempts: 3,
            abandoned_jobs: AbandonedJobs::Finish,
            max_queued_jobs: 1024,
            max_queued_jobs_per_peer: 512,
            max_queued_bytes_per_peer: 256 << 20,
            max_connections: 1024,
            max_connections_per_peer: 256,
            message_timeout_s: 60,
            max_streams_per_peer: 1024,
            max_requests_per_s_per_peer: 10_000,
            verify: Verify::Always,
            verify_sample_percent: 10,
            // Kubernetes kills after 30 s; the store has to be closed within that too.
            drain_deadline_s: 25,
            max_message_bytes: 64 << 20,
            max_nodes: limits.max_nodes,
            max_nesting: limits.max_nesting,
            max_symbols: limits.max_symbols,
            max_constant_bytes: limits.max_constant_bytes,
            max_ranges: 256,
            max_artifact_bytes: 1 << 30,
            log: "info".into(),
            log_format: LogFormat::Auto,
            surroundings: Surroundings::default(),
        }
    }

    /// Reads every layer and checks the result.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key, where its value comes from, and what is wrong with it.
    pub(crate) fn load(arguments: &ServeArguments, surroundings: &Surroundings) -> Result<Self, ConfigError> {
        let mut layers = Layers::from_defaults(&Self::defaults(surroundings))?;
        if let Some((path, text)) = file(arguments, surroundings)? {
            layers = layers.with_file(&path, &text)?;
        }
        let layers = layers.with_environment(surroundings)?.with_flags(arguments)?;
        let mut config: Self = layers.extract()?;
        config.check().map_err(|(key, problem)| layers.wrong(key, &problem))?;
        let n_threads = (surroundings.n_cores / config.n_executors).max(1);
        config.n_compile_threads.get_or_insert(n_threads);
        config.surroundings = surroundings.clone();
        Ok(config)
    }

    /// The bounds on graphs.
    pub(crate) fn graph_limits(&self) -> Limits {
        Limits {
            max_nodes: self.max_nodes,
            max_nesting: self.max_nesting,
            max_symbols: self.max_symbols,
            max_constant_bytes: self.max_constant_bytes,
            ..Limits::default()
        }
    }

    /// Where the store is, and what it may use.
    pub(crate) fn store_config(&self) -> StoreConfig {
        StoreConfig {
            max_bytes: self.store_max_bytes,
            reserve_bytes: self.store_reserve_bytes,
            max_held_bytes: self.store_max_held_bytes,
            failure_ttl: Duration::from_secs(self.failure_ttl_s),
            ..StoreConfig::new(&self.store_dir)
        }
    }

    /// Where the signing key is, and whether one is made there. One that is named has to be there: a typing error must not change the key.
    pub(crate) fn signing_key(&self) -> (PathBuf, bool) {
        match &self.signing_key {
            Some(path) => (path.clone(), false),
            None => (self.store_dir.join("signing-key.pem"), true),
        }
    }

    /// Which artifacts are verified.
    pub(crate) fn verify_policy(&self) -> VerifyPolicy {
        match self.verify {
            Verify::Off => VerifyPolicy::Off,
            Verify::Sample => VerifyPolicy::Sample { percent: self.verify_sample_percent },
            Verify::Always => VerifyPolicy::Always,
        }
    }

    /// What becomes of a running job when its last caller leaves.
    pub(crate) fn abandoned(&self) -> Abandoned {
        match self.abandoned_jobs {
            AbandonedJobs::Finish => Abandoned::Finish,
            AbandonedJobs::End => Abandoned::End,
        }
    }

    /// Where precompiled headers are kept: the folder that is named, or else one within the store's.
    pub(crate) fn headers_dir(&self) -> PathBuf {
        self.headers_dir.clone().unwrap_or_else(|| self.store_dir.join(HEADERS_FOLDER))
    }

    /// What tries AOTInductor packages: the one that is named, or else the one beside the daemon.
    pub(crate) fn runner(&self) -> Option<PathBuf> {
        match &self.runner {
            Some(path) => Some(path.clone()).filter(|path| path.as_os_str() != "none"),
            None => self.surroundings.beside("piecewised-runner"),
        }
    }

    /// Names that the HTTP port answers to: those that are configured, and the machine's own.
    pub(crate) fn http_hosts(&self) -> Vec<String> {
        self.http_hosts.iter().chain(&self.surroundings.node_name).cloned().collect()
    }

    /// Who may send frontends.
    pub(crate) fn trusted_peers(&self) -> TrustedPeers {
        self.trusted_frontend_peers.into()
    }

    /// Who may change what the daemon has.
    pub(crate) fn admin_peers(&self) -> TrustedPeers {
        self.admin_peers.into()
    }

    /// The first key whose value will not do, and why.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let within = |key, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err((key, format!("{value} will not do: it must be from {least} to {most}")))
            }
        };
        const YEAR_S: u64 = 366 * 24 * 3600;
        const GIB: u64 = 1 << 30;
        // Less than a handful of artifacts is no store.
        within("store_max_bytes", self.store_max_bytes.unwrap_or(GIB), 16 << 20, 1 << 20 << 30)?;
        within("store_reserve_bytes", self.store_reserve_bytes, 0, 1 << 20 << 30)?;
        within("store_max_held_bytes", self.store_max_held_bytes, 0, 1 << 10 << 30)?;
        within("failure_ttl_s", self.failure_ttl_s, 0, YEAR_S)?;
        within("n_executors", self.n_executors as u64, 1, 256)?;
        within("n_compile_threads", self.n_compile_threads.unwrap_or(1) as u64, 1, 1024)?;
        within("executor_nice", self.executor_nice.into(), 0, 19)?;
        within("executor_ready_deadline_s", self.executor_ready_deadline_s, 1, YEAR_S)?;
        within("executor_idle_timeout_s", self.executor_idle_timeout_s, 1, YEAR_S)?;
        within("gpu_idle_timeout_s", self.gpu_idle_timeout_s, 1, YEAR_S)?;
        within("job_deadline_s", self.job_deadline_s, 1, YEAR_S)?;
        within("max_attempts", self.max_attempts.into(), 1, 100)?;
        within("max_queued_jobs", self.max_queued_jobs as u64, 1, 1_000_000)?;
        within("max_queued_jobs_per_peer", self.max_queued_jobs_per_peer as u64, 1, 1_000_000)?;
        within("max_queued_bytes_per_peer", self.max_queued_bytes_per_peer as u64, 1 << 10, 1024 * GIB)?;
        within("max_connections", self.max_connections as u64, 1, 100_000)?;
        within("max_connections_per_peer", self.max_connections_per_peer as u64, 1, 100_000)?;
        within("message_timeout_s", self.message_timeout_s, 1, YEAR_S)?;
        within("max_streams_per_peer", self.max_streams_per_peer as u64, 1, 1_000_000)?;
        within("max_requests_per_s_per_peer", self.max_requests_per_s_per_peer.into(), 1, 1_000_000_000)?;
        within("max_executor_memory_bytes", self.max_executor_memory_bytes, 256 << 20, 1 << 50)?;
        within("max_jobs_per_gpu", self.max_jobs_per_gpu.unwrap_or(1) as u64, 1, 256)?;
        within("verify_sample_percent", self.verify_sample_percent.into(), 0, 100)?;
        within("drain_deadline_s", self.drain_deadline_s, 0, YEAR_S)?;
        within("max_message_bytes", self.max_message_bytes as u64, 1 << 10, 2 * GIB - 1)?;
        within("max_nodes", self.max_nodes as u64, 1, 10_000_000)?;
        // Deeper ones are refused by protobuf's decoder, and would cost stack.
        within("max_nesting", self.max_nesting as u64, 1, 64)?;
        within("max_symbols", self.max_symbols as u64, 1, 1_000_000)?;
        within("max_constant_bytes", self.max_constant_bytes as u64, 0, 2 * GIB - 1)?;
        within("max_ranges", self.max_ranges as u64, 1, 100_000)?;
        within("max_artifact_bytes", self.max_artifact_bytes, 1 << 20, 64 * GIB)?;
        let is_module = |name: &String| {
            let is_part =
                |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            name.contains('.') && name.len() <= 128 && name.split('.').all(is_part)
        };
        if let Some(name) = self.frontends.iter().find(|name| !is_module(name)) {
            let problem = format!("{name:?} is not the full name of a module in a package, as in my_package.frontend");
            return Err(("frontends", problem));
        }
        traces::check(self)?;
        let is_host = |name: &&String| {
            let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !name.is_empty() && name.len() <= 253 && name.chars().all(is_part)
        };
        if let Some(name) = self.http_hosts.iter().find(|name| !is_host(name)) {
            return Err(("http_hosts", format!("{name:?} is not the name of a machine, without a port")));
        }
        for (key, path) in [("socket", &self.socket), ("store_dir", &self.store_dir), ("temp_dir", &self.temp_dir)] {
            if path.as_os_str().is_empty() {
                return Err((key, "a path is needed".into()));
            }
        }
        access::check(self)
    }
}

/// The configuration file: the one that is named, which must be there, or else the first default one that is.
fn file(arguments: &ServeArguments, surroundings: &Surroundings) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let named = arguments.config.clone().or_else(|| surroundings.variable("PIECEWISED_CONFIG").map(PathBuf::from));
    let is_named = named.is_some();
    let candidates = named.map_or_else(|| surroundings.config_files(), |path| vec![path]);
    for path in candidates {
        match fs::read_to_string(&path) {
            Ok(text) => return Ok(Some((path, text))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_named => {}
            Err(error) => return Err(ConfigError::new(format!("cannot read {}: {error}", path.display()))),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
