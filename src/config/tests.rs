//! Layers, checks, and what is said of what is wrong.

use std::path::Path;

use clap::Parser;

use super::*;
use crate::cli::{Cli, Command};

/// Loads from flags, variables and a file's text.
fn load(flags: &[&str], variables: &[(&str, &str)], file: Option<&str>) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.toml");
    let path = path.to_str().unwrap();
    let mut line = vec!["piecewised", "serve"];
    line.extend(flags);
    if let Some(text) = file {
        fs::write(path, text).unwrap();
        line.extend(["--config", path]);
    }
    let command = Cli::try_parse_from(line).map_err(|error| error.to_string())?.command;
    let Command::Serve(arguments) = command else { panic!("it is no line of serve's") };
    let surroundings = Surroundings {
        variables: variables.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        uid: 7,
        n_cores: 8,
        memory_bytes: 16 << 30,
        ..Surroundings::default()
    };
    Config::load(&arguments, &surroundings).map_err(|error| error.to_string().replace(path, "FILE"))
}

#[test]
fn nothing_is_needed() {
    let config = load(&[], &[], None).unwrap();
    assert_eq!(config.socket, Path::new("/tmp/piecewised-7/piecewised.sock"));
    assert_eq!((config.n_executors, config.n_compile_threads), (4, Some(2)));
    assert_eq!((config.log.as_str(), config.log_format), ("info", LogFormat::Auto));
    assert_eq!(config.listen_tcp, None);
}

#[test]
fn keys_are_the_fields() {
    let config = Config::defaults(&Surroundings::default());
    let fields = figment::value::Value::serialize(&config).unwrap().into_dict().unwrap();
    let mut keys = KEYS.to_vec();
    keys.sort_unstable();
    assert_eq!(fields.keys().map(String::as_str).collect::<Vec<_>>(), keys);
}

#[test]
fn flags_beat_the_environment_and_that_beats_the_file() {
    let file = "n_executors = 1\njob_deadline_s = 10\nlog = \"warn\"\nexecutor_environment = [\"A\"]";
    let variables = [
        ("PIECEWISED_JOB_DEADLINE_S", "20"),
        ("PIECEWISED_LOG", "error"),
        ("PIECEWISED_EXECUTOR_ENVIRONMENT", "B, C_*"),
        ("PIECEWISED_PYTHON", "3.12"), // Text, though it looks like a number.
        ("PIECEWISED_MAX_NODES", ""),
    ];
    let config = load(&["--log", "debug"], &variables, Some(file)).unwrap();
    assert_eq!((config.n_executors, config.job_deadline_s, config.log.as_str()), (1, 20, "debug"));
    assert_eq!(config.executor_environment, ["B", "C_*"]);
    assert_eq!(config.python.as_deref(), Some(Path::new("3.12")));
    assert_eq!(config.max_nodes, Limits::default().max_nodes);
    assert_eq!(config.n_compile_threads, Some(8));
}

#[test]
fn what_is_verified() {
    let policy = |flags: &[&str], variables: &[_], file| load(flags, variables, file).unwrap().verify_policy();
    assert_eq!(policy(&[], &[], None), VerifyPolicy::Always);
    assert_eq!(policy(&[], &[("PIECEWISED_VERIFY", "off")], None), VerifyPolicy::Off);
    assert_eq!(policy(&[], &[], Some("verify = \"sample\"")), VerifyPolicy::Sample { percent: 10 });
    assert_eq!(
        policy(&["--verify", "sample", "--verify-sample-percent", "25"], &[("PIECEWISED_VERIFY", "off")], None),
        VerifyPolicy::Sample { percent: 25 }
    );
}

#[test]
fn the_runner_is_beside_the_daemon_or_named() {
    let runner = |flags: &[&str], folder: &Path| {
        let config = load(flags, &[], None).unwrap();
        let surroundings = Surroundings { program_folder: Some(folder.into()), ..config.surroundings.clone() };
        Config { surroundings, ..config }.runner()
    };
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(runner(&[], folder.path()), None);
    let beside = folder.path().join("piecewised-runner");
    fs::write(&beside, "").unwrap();
    assert_eq!(runner(&[], folder.path()), Some(beside));
    assert_eq!(runner(&["--runner", "none"], folder.path()), None);
    assert_eq!(runner(&["--runner", "/opt/runner"], folder.path()), Some("/opt/runner".into()));
}

#[test]
fn variables_of_others_do_not_count() {
    let names = [
        "ENDPOINT",
        "CACHE_DIR",
        "TRUSTED_KEYS",
        "CA",
        "CERT",
        "KEY",
        "TOKEN",
        "LIBTORCH",
        "TEST_PYTHON",
        "SERVICE_HOST",
        "PORT",
        "PORT_7410_TCP_ADDR",
    ];
    let names: Vec<_> = names.iter().map(|name| format!("PIECEWISED_{name}")).collect();
    let variables: Vec<_> = names.iter().map(|name| (name.as_str(), "tcp://10.0.0.1:7410")).collect();
    load(&[], &variables, None).unwrap();
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let check = |flags: &[&str], variables: &[(&str, &str)], file: Option<&str>, expected: &str| {
        let found = load(flags, variables, file).unwrap_err();
        assert!(found.starts_with(expected), "expected {expected:?}\nfound    {found:?}");
    };
    check(&[], &[], Some("sokcet = 1"), "sokcet in FILE: there is no such key; did you mean socket?");
    check(&[], &[], Some("[tls]\nkey = 1"), "tls in FILE: there is no such key; `piecewised serve --help`");
    check(&[], &[], Some("log = "), "FILE is not TOML: ");
    check(
        &[],
        &[("PIECEWISED_N_EXECUTOR", "1")],
        None,
        "PIECEWISED_N_EXECUTOR: there is no such key; did you mean PIECEWISED_N_EXECUTORS?",
    );
    check(
        &[],
        &[],
        Some("n_executors = \"two\""),
        "n_executors in FILE: invalid type: found string \"two\", expected usize",
    );
    check(&[], &[("PIECEWISED_MAX_NODES", "-1")], None, "PIECEWISED_MAX_NODES: invalid");
    check(&["--n-executors", "0"], &[], None, "--n-executors: 0 will not do: it must be from 1 to 256");
    check(&[], &[], Some("verify = \"never\""), "verify in FILE: unknown variant: found `never`, expected ");
    check(
        &["--verify-sample-percent", "101"],
        &[],
        None,
        "--verify-sample-percent: 101 will not do: it must be from 0 to 100",
    );
    check(&[], &[], Some("log_format = \"xml\""), "log_format in FILE: unknown variant: found `xml`, expected ");
    check(&["--config", "/no/such"], &[], None, "cannot read /no/such: No such file");
    check(&[], &[("PIECEWISED_CONFIG", "/no/such")], None, "cannot read /no/such: ");
    check(
        &["--listen-tcp", "0.0.0.0:7410"],
        &[],
        None,
        "--listen-tcp: 0.0.0.0:7410 can be reached from other machines, and nothing there says who calls",
    );
    let tls = ["--listen-tcp", "0.0.0.0:7410", "--tls-cert", "c", "--tls-key", "k"];
    check(&tls, &[], None, "--listen-tcp: 0.0.0.0:7410 can be reached from other machines, and nothing says who calls");
    load(&[&tls[..], &["--tokens", "t"]].concat(), &[], None).unwrap();
    load(&[&tls[..], &["--tls-client-ca", "a"]].concat(), &[], None).unwrap();
    check(&["--allowed-peers", "all=root"], &[], None, "--allowed-peers: \"root\" is no role");
    check(&[], &[("PIECEWISED_SOCKET_MODE", "0777")], None, "PIECEWISED_SOCKET_MODE: \"0777\" is no mode of a socket");
    check(&["--http-hosts", "gpu-1:7411"], &[], None, "--http-hosts: \"gpu-1:7411\" is not the name of a machine");
    load(&["--listen-tcp", "127.0.0.1:7410"], &[], None).unwrap();
    load(&["--listen-tcp", "[::1]:0"], &[], None).unwrap();
}
