//! The command line. Each flag is a key of the configuration with `-` for `_`; what is not given is left to the other layers.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::{
    ask::Ask,
    choices::{AbandonedJobs, ConfineExecutors, LogFormat, Trusted, Verify},
    doctor::{self, DoctorArguments},
    exit,
    store_command::StoreCommand,
};

/// A compile service for piecewise-compiled PyTorch inference.
#[derive(Debug, Parser)]
#[command(name = "piecewised", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon until it is told to end.
    ///
    /// Works without any flag or file. Each flag is also a key of the TOML file (`--n-executors` is `n_executors`) and an
    /// environment variable (`PIECEWISED_N_EXECUTORS`): file < environment < flag. A key that does not exist is an error.
    #[command(after_help = exit::HELP)]
    Serve(Box<ServeArguments>),

    #[command(flatten)]
    Ask(Ask),

    /// Say whether `piecewised serve` with these flags would work on this machine, and what to do where not.
    #[command(after_help = doctor::HELP)]
    Doctor(Box<DoctorArguments>),

    /// Look after a store that no daemon has open: check it, export from it, import into it, collect in it.
    #[command(subcommand)]
    Store(StoreCommand),

    /// Write a shell's completions to stdout: `piecewised completions bash > /usr/share/bash-completion/completions/piecewised`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },

    /// Write the manual page to stdout, or all pages, one for each command, into a folder.
    Man {
        /// The folder; made where there is none. "man1" below one that `man -M` knows.
        folder: Option<PathBuf>,
    },

    /// Write the reference of the configuration to stdout, as it lies in docs/configuration.md.
    #[command(hide = true)]
    ConfigReference,
}

/// The flags of `serve`. Everything but `config` goes into the configuration as it is.
#[derive(Debug, Clone, Default, Args, Serialize)]
pub(crate) struct ServeArguments {
    /// The configuration file [default: $XDG_CONFIG_HOME/piecewised/piecewised.toml, else /etc/piecewised/piecewised.toml,
    /// where there is one; PIECEWISED_CONFIG names another].
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,

    /// Check the configuration, write it to stdout as it would be used, as JSON, and end.
    #[arg(long)]
    #[serde(skip)]
    pub(crate) check: bool,

    /// The Unix socket to listen on [default: $XDG_RUNTIME_DIR/piecewised/piecewised.sock, else
    /// /run/piecewised/piecewised.sock, else /tmp/piecewised-UID/piecewised.sock].
    #[arg(long, value_name = "PATH", help_heading = "Listening")]
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<PathBuf>,

    /// The socket's mode, octal; who may call is --allowed-peers' business as well [default: 0600].
    #[arg(long, value_name = "MODE", help_heading = "Listening")]
    #[serde(skip_serializing_if = "Option::is_none")]
    socket_mode: Option<String>,

    /// The socket's owner, by name or number; root only [default: the daemon's user].
    #[arg(long, value_name = "USER", help_heading = "Listening")]
    #[serde(skip_serializing_if = "Option::is_none")]
    socket_user: Option<String>,

    /// The socket's group, by name or number [default: the daemon's].
    #[arg(long, value_name = "GROUP", help_heading = "Listening")]
    #[serde(skip_serializing_if = "Option::is_none")]
    socket_group: Option<String>,

    /// Who may call through the Unix socket: same_uid, user:NAME, group:NAME (of the process, names or numbers) or all, with =ROLES for others than
    /// read+compile; may be repeated [default: same_uid].
    #[arg(long, value_name = "WHO[=ROLES]", help_heading = "Listening")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allowed_peers: Vec<String>,

    /// Also listen on TCP: 127.0.0.1:7410. Where other machines reach the address, TLS, and --tls-client-ca or --tokens, are needed.
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Listening")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen_tcp: Option<SocketAddr>,

    /// The daemon's certificate for TCP, and those between it and its CA: a PEM file. It and the next three are read again when they change.
    #[arg(long, value_name = "FILE", help_heading = "Listening")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert: Option<PathBuf>,

    /// Its private key: a PEM file, mode 0600.
    #[arg(long, value_name = "FILE", help_heading = "Listening")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_key: Option<PathBuf>,

    /// Who signs the certificates of clients: a PEM file. Without it they are asked for none.
    #[arg(long, value_name = "FILE", help_heading = "Listening")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_client_ca: Option<PathBuf>,

    /// Which clients' certificates may call, by a name in them, with =ROLES for others than read+compile; may be repeated [default: all that
    /// --tls-client-ca has signed].
    #[arg(long, value_name = "NAME[=ROLES]", help_heading = "Listening")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    certificate_peers: Vec<String>,

    /// Bearer tokens that may call, with their names, roles and ends: a TOML file, mode 0600, as docs/security.md has it.
    #[arg(long, value_name = "FILE", help_heading = "Listening")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<PathBuf>,

    /// Also serve HTTP: a live page for people at /, /healthz, /readyz and /metrics for probes and Prometheus: 0.0.0.0:7411. Read only, and without
    /// secrets, but without authentication too.
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Listening")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen_http: Option<SocketAddr>,

    /// A name that the HTTP port answers to; may be repeated. It answers to addresses, localhost and the machine's own name anyway, and to no other, so that
    /// pages of other origins cannot read it.
    #[arg(long, value_name = "NAME", help_heading = "Listening")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    http_hosts: Vec<String>,

    /// Where traces are sent: an OpenTelemetry collector that takes OTLP over gRPC, as in http://127.0.0.1:4317 or https://collector.example:4317 [default:
    /// OTEL_EXPORTER_OTLP_ENDPOINT, else none are made].
    #[arg(long, value_name = "URL", help_heading = "Log")]
    #[serde(skip_serializing_if = "Option::is_none")]
    otlp_endpoint: Option<String>,

    /// Who signs the collector's certificate: a PEM file [default: OTEL_EXPORTER_OTLP_CERTIFICATE, else those whom the system trusts].
    #[arg(long, value_name = "FILE", help_heading = "Log")]
    #[serde(skip_serializing_if = "Option::is_none")]
    otlp_ca: Option<PathBuf>,

    /// The certificate that is shown to the collector: a PEM file [default: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE, else none].
    #[arg(long, value_name = "FILE", help_heading = "Log")]
    #[serde(skip_serializing_if = "Option::is_none")]
    otlp_cert: Option<PathBuf>,

    /// Its private key: a PEM file, mode 0600 [default: OTEL_EXPORTER_OTLP_CLIENT_KEY].
    #[arg(long, value_name = "FILE", help_heading = "Log")]
    #[serde(skip_serializing_if = "Option::is_none")]
    otlp_key: Option<PathBuf>,

    /// What is sent along to the collector: a file, mode 0600, with a line "name: value" for each header, as in "authorization: Bearer TOKEN"; beside those in
    /// OTEL_EXPORTER_OTLP_HEADERS.
    #[arg(long, value_name = "FILE", help_heading = "Log")]
    #[serde(skip_serializing_if = "Option::is_none")]
    otlp_headers: Option<PathBuf>,

    /// The private key that handles, manifests and snapshots are signed with, so that clients load only what this daemon has made: a PEM file of
    /// Ed25519, mode 0600 [default: signing-key.pem in --store-dir, made at the first start].
    #[arg(long, value_name = "FILE", help_heading = "Folders")]
    #[serde(skip_serializing_if = "Option::is_none")]
    signing_key: Option<PathBuf>,

    /// Where artifacts are kept [default: piecewised in $XDG_CACHE_HOME, ~/.cache or /var/cache].
    #[arg(long, value_name = "FOLDER", help_heading = "Folders")]
    #[serde(skip_serializing_if = "Option::is_none")]
    store_dir: Option<PathBuf>,

    /// What artifacts may take on the disk. Beyond it those used least recently are evicted; never those that a stored manifest
    /// names [default: all that the disk has, but for --store-reserve-bytes].
    #[arg(long, value_name = "BYTES", help_heading = "Store")]
    #[serde(skip_serializing_if = "Option::is_none")]
    store_max_bytes: Option<u64>,

    /// Free space of the disk that artifacts leave alone; where there is less, they are evicted for it [default: 64 MiB].
    #[arg(long, value_name = "BYTES", help_heading = "Store")]
    #[serde(skip_serializing_if = "Option::is_none")]
    store_reserve_bytes: Option<u64>,

    /// What is held in memory of artifacts that cannot be written because the disk is full or fails; 0: none, such compiles
    /// fail [default: 256 MiB].
    #[arg(long, value_name = "BYTES", help_heading = "Store")]
    #[serde(skip_serializing_if = "Option::is_none")]
    store_max_held_bytes: Option<u64>,

    /// How long it is remembered that a graph does not compile; 0: not at all [default: 3600].
    #[arg(long, value_name = "SECONDS", help_heading = "Store")]
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_ttl_s: Option<u64>,

    /// Where executors get their temporary folders [default: $TMPDIR, else /tmp].
    #[arg(long, value_name = "FOLDER", help_heading = "Folders")]
    #[serde(skip_serializing_if = "Option::is_none")]
    temp_dir: Option<PathBuf>,

    /// Where the C++ compiler's precompiled headers, which vector instructions it was found to work with, and what was timed while tuning, are kept between starts; daemons may share it [default: precompiled_headers in the store's
    /// folder].
    #[arg(long, value_name = "FOLDER", help_heading = "Folders")]
    #[serde(skip_serializing_if = "Option::is_none")]
    headers_dir: Option<PathBuf>,

    /// The Python interpreter that compiles; it must be able to import torch [default: the first python3 on PATH that can].
    #[arg(long, value_name = "PATH", help_heading = "Executors")]
    #[serde(skip_serializing_if = "Option::is_none")]
    python: Option<PathBuf>,

    /// Compiles side by side [default: half the cores].
    #[arg(long, value_name = "N", help_heading = "Executors")]
    #[serde(skip_serializing_if = "Option::is_none")]
    n_executors: Option<usize>,

    /// Processes that each executor compiles kernels with [default: the cores shared out among the executors].
    #[arg(long, value_name = "N", help_heading = "Executors")]
    #[serde(skip_serializing_if = "Option::is_none")]
    n_compile_threads: Option<usize>,

    /// Memory that executors may take together. A compile waits while what those like it took so far does not fit; an executor that takes all
    /// of it is ended [default: three quarters of what the machine, or the control group, has].
    #[arg(long, value_name = "BYTES", help_heading = "Executors")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_executor_memory_bytes: Option<u64>,

    /// Compiles that use one GPU at a time; only one of them times kernels on it [default: one for every 16 GiB of its memory, 2 to 8].
    #[arg(long, value_name = "N", help_heading = "Executors")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_jobs_per_gpu: Option<usize>,

    /// Nice level of executors, 0 to 19 [default: 5].
    #[arg(long, value_name = "LEVEL", help_heading = "Executors")]
    #[serde(skip_serializing_if = "Option::is_none")]
    executor_nice: Option<u8>,

    /// An environment variable that executors get beside the usual ones; `*` at the end for any ending; may be repeated.
    #[arg(long, value_name = "NAME", help_heading = "Executors")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    executor_environment: Vec<String>,

    /// What executors are kept from by the kernel: the network, files that hold secrets, writing outside their folders, signals to others. auto: from all that this
    /// machine has measures for; require: the daemon does not start where one is missing; off: from nothing [default: auto].
    #[arg(long, value_name = "WHETHER", help_heading = "Executors")]
    #[serde(skip_serializing_if = "Option::is_none")]
    confine_executors: Option<ConfineExecutors>,

    /// A folder that executors may write to beside their own, although they are confined: a compiler cache, an engine's own cache of kernels. What one of them puts
    /// there others may run, and what is hidden from them is not hidden there. May be repeated. libtorch unpacks AOTInductor packages in /tmp, and can't be told otherwise: without it
    /// executors make none [default: /tmp].
    #[arg(long, value_name = "FOLDER", help_heading = "Executors")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    executor_writable_dirs: Vec<PathBuf>,

    /// The program that loads and runs AOTInductor packages without Python before they are handed out; "none": executors do so
    /// themselves [default: piecewised-runner beside this program, where there is one].
    #[arg(long, value_name = "FILE", help_heading = "Executors")]
    #[serde(skip_serializing_if = "Option::is_none")]
    runner: Option<PathBuf>,

    /// A module that is a frontend, by its full name, importable by the interpreter that compiles; may be repeated. Frontends that piecewised
    /// brings along (vllm) need not be named.
    #[arg(long, value_name = "MODULE", help_heading = "Frontends")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    frontends: Vec<String>,

    /// Who may send a frontend's configuration, which executors unpickle, and its snapshots. same_uid: processes of the daemon's own user,
    /// through the Unix socket; all: whoever may call, who may then run code as that user; none: nobody, also not who has the role [default: same_uid].
    #[arg(long, value_name = "WHO", help_heading = "Frontends")]
    #[serde(skip_serializing_if = "Option::is_none")]
    trusted_frontend_peers: Option<Trusted>,

    /// Who may change what the daemon has (AdminService: evict, remove manifests, drain; forget failures). same_uid: processes of the daemon's own user,
    /// through the Unix socket; all: whoever may call; none: nobody, also not who has the role [default: same_uid].
    #[arg(long, value_name = "WHO", help_heading = "Listening")]
    #[serde(skip_serializing_if = "Option::is_none")]
    admin_peers: Option<Trusted>,

    /// How long an executor may take to import torch [default: 120].
    #[arg(long, value_name = "SECONDS", help_heading = "Executors")]
    #[serde(skip_serializing_if = "Option::is_none")]
    executor_ready_deadline_s: Option<u64>,

    /// How long an executor without work is kept; it holds memory [default: 60].
    #[arg(long, value_name = "SECONDS", help_heading = "Executors")]
    #[serde(skip_serializing_if = "Option::is_none")]
    executor_idle_timeout_s: Option<u64>,

    /// How long an executor without work is kept that has used a GPU, whose memory the workers want [default: 2].
    #[arg(long, value_name = "SECONDS", help_heading = "Executors")]
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_idle_timeout_s: Option<u64>,

    /// How long one try of a compile may take, without what it waits for its GPU. One that took longer is tried once more [default: 1800].
    #[arg(long, value_name = "SECONDS", help_heading = "Jobs")]
    #[serde(skip_serializing_if = "Option::is_none")]
    job_deadline_s: Option<u64>,

    /// How often a job is tried when executors die under it [default: 3].
    #[arg(long, value_name = "N", help_heading = "Jobs")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,

    /// What becomes of a running compile that nobody waits for any more. finish: it is stored, for whoever asks again [default: finish].
    #[arg(long, value_name = "WHAT", help_heading = "Jobs")]
    #[serde(skip_serializing_if = "Option::is_none")]
    abandoned_jobs: Option<AbandonedJobs>,

    /// Jobs that may wait for one peer: a process on the Unix socket, a connection over TCP [default: 512].
    #[arg(long, value_name = "N", help_heading = "Jobs")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_queued_jobs_per_peer: Option<usize>,

    /// Bytes of the graphs that one peer may wait for [default: 256 MiB].
    #[arg(long, value_name = "BYTES", help_heading = "Jobs")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_queued_bytes_per_peer: Option<usize>,

    /// Connections that each listener (Unix socket, TCP, HTTP) has open; one more is closed at once. Fewer where the system gives fewer descriptors
    /// [default: 1024].
    #[arg(long, value_name = "N", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_connections: Option<usize>,

    /// Those of one peer: a process on the Unix socket, a machine otherwise [default: 256].
    #[arg(long, value_name = "N", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_connections_per_peer: Option<usize>,

    /// How long a request's message may take to come; of a snapshot, each of its parts; and a silent peer's answer to the question whether it is there, at least 2 [default: 60].
    #[arg(long, value_name = "SECONDS", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    message_timeout_s: Option<u64>,

    /// Calls that one peer may have open: a process on the Unix socket, a certificate, a token, or else a machine [default: 1024].
    #[arg(long, value_name = "N", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_streams_per_peer: Option<usize>,

    /// Calls that one peer may begin in a second [default: 10000].
    #[arg(long, value_name = "N", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_requests_per_s_per_peer: Option<u32>,

    /// Jobs that may wait; one more is refused. Half of them may be jobs that nobody waits for now [default: 1024].
    #[arg(long, value_name = "N", help_heading = "Jobs")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_queued_jobs: Option<usize>,

    /// Which artifacts are run against eager before they are handed out. One in the store that this wants verified, and that was not, is
    /// compiled again [default: always].
    #[arg(long, value_name = "WHICH", help_heading = "Jobs")]
    #[serde(skip_serializing_if = "Option::is_none")]
    verify: Option<Verify>,

    /// With --verify sample: how many percent of the keys; the key decides which [default: 10].
    #[arg(long, value_name = "PERCENT", help_heading = "Jobs")]
    #[serde(skip_serializing_if = "Option::is_none")]
    verify_sample_percent: Option<u8>,

    /// How long running compiles may go on when the daemon is told to end [default: 25].
    #[arg(long, value_name = "SECONDS", help_heading = "Jobs")]
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_deadline_s: Option<u64>,

    /// The largest request [default: 64 MiB].
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_message_bytes: Option<usize>,

    /// Nodes of one graph, nested graphs included [default: 50000].
    #[arg(long, value_name = "N", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_nodes: Option<usize>,

    /// Depth of nested arguments, expressions and graphs, each [default: 32].
    #[arg(long, value_name = "N", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_nesting: Option<usize>,

    /// Shape symbols of one graph [default: 256].
    #[arg(long, value_name = "N", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_symbols: Option<usize>,

    /// Constants of one graph, all together [default: 4 MiB].
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_constant_bytes: Option<usize>,

    /// Ranges and sizes of one request [default: 256].
    #[arg(long, value_name = "N", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_ranges: Option<usize>,

    /// The largest artifact that an executor may hand over [default: 1 GiB].
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_artifact_bytes: Option<u64>,

    /// What is logged: a level, or directives such as `info,executor=warn` [default: info].
    #[arg(long, value_name = "DIRECTIVES", help_heading = "Log")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,

    /// How it is written, to stderr. auto: for people, in colour on a terminal, without times under systemd, which adds its
    /// own [default: auto].
    #[arg(long, value_name = "FORMAT", help_heading = "Log")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_format: Option<LogFormat>,
}

impl ServeArguments {
    /// Those that say where the store is, and nothing else.
    pub(crate) fn of_store(config: Option<PathBuf>, store_dir: Option<PathBuf>) -> Self {
        Self { config, store_dir, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::KEYS;

    #[test]
    fn every_key_is_a_flag_and_every_flag_a_key() {
        Cli::command().debug_assert();
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        let mut flags: Vec<_> = serve
            .get_arguments()
            .map(|flag| flag.get_id().to_string())
            .filter(|id| !["config", "check", "help"].contains(&id.as_str()))
            .collect();
        flags.sort();
        let mut keys = KEYS.to_vec();
        keys.sort_unstable();
        assert_eq!(flags, keys);
    }

    #[test]
    fn exit_codes_are_in_the_help() {
        let mut command = Cli::command();
        let help = command.find_subcommand_mut("serve").unwrap().render_long_help().to_string();
        assert!(help.contains("Exit codes:") && help.contains("PIECEWISED_N_EXECUTORS"), "{help}");
    }
}
