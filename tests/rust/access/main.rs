//! Who may talk to a daemon: real daemons, real handshakes, real users of the system, and clients that behave badly.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failure here is the test's; what is skipped says why")]

mod authority;
mod bounds;
mod daemon;
mod http2;

use std::{
    fs,
    io::Write as _,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::Path,
};

use authority::Authority;
use daemon::{Daemon, asked, client};
use http2::{frame, greeting, headers, next_frame};
use piecewised_client::{Client, ClientError, Credentials, Endpoint};
use piecewised_proto::v1;
use prost::Message as _;
use tokio_stream::StreamExt as _;

/// Of a user and group that own nothing.
const NOBODY: (u32, u32) = (65_534, 65_534);

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: only root can become another user");
    }
    is_root
}

fn reason(result: Result<(), ClientError>) -> String {
    result.err().map(|error| error.reason().to_owned()).unwrap_or_default()
}

#[test]
fn another_user_is_refused_though_the_socket_lets_him_connect() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::start(tempfile::tempdir().unwrap(), &["--socket-mode", "0666"]);
    assert_eq!(fs::metadata(daemon.socket()).unwrap().mode() & 0o777, 0o666);
    daemon.ask(&["status"], None).unwrap();
    for words in [&["status"][..], &["ls"], &["jobs"], &["drain"]] {
        let refused = daemon.ask(words, Some(NOBODY)).unwrap_err();
        assert!(refused.contains("you are user 65534") && refused.contains("allowed_peers"), "{refused}");
    }
    let log = daemon.log();
    assert!(log.contains("PEER_NOT_ALLOWED") && log.contains("/piecewised.v1.CompileService/GetStatus"), "{log}");
}

#[test]
fn users_and_groups_that_are_listed_have_their_roles() {
    if !is_root() {
        return;
    }
    for entry in ["user:65534", "group:65534=read", "all=admin"] {
        let flags = ["--socket-mode", "0666", "--allowed-peers", entry, "--allowed-peers", "same_uid"];
        let daemon = Daemon::start(tempfile::tempdir().unwrap(), &flags);
        daemon.ask(&["status"], Some(NOBODY)).unwrap();
        daemon.ask(&["status"], None).unwrap();
        let drained = daemon.ask(&["drain"], Some(NOBODY));
        match entry {
            "all=admin" => drop(drained.unwrap()),
            _ => assert!(drained.unwrap_err().contains("you are user 65534, and only processes of user 0"), "{entry}"),
        }
    }
}

#[test]
fn the_sockets_owner_and_group_can_be_others() {
    if !is_root() {
        return;
    }
    let flags = ["--socket-mode", "0660", "--socket-user", "65534", "--socket-group", "4711"];
    let daemon = Daemon::start(tempfile::tempdir().unwrap(), &flags);
    let found = fs::metadata(daemon.socket()).unwrap();
    assert_eq!((found.mode() & 0o777, found.uid(), found.gid()), (0o660, 65_534, 4711));
}

#[test]
fn a_daemon_that_others_could_reach_does_not_start_without_saying_who_may() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = Authority::new(folder.path(), "ca").sign("localhost");
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    for (flags, words) in [
        (vec!["--listen-tcp", "0.0.0.0:0"], "set tls_cert and"),
        (vec!["--listen-tcp", "0.0.0.0:0", "--tls-cert", cert, "--tls-key", key], "set tls_client_ca or tokens"),
        (vec!["--tls-cert", cert], "set tls_key too"),
        (vec!["--tls-client-ca", cert], "set tls_cert and tls_key too"),
        (vec!["--allowed-peers", "user:nobody-of-this-name"], "there is no user"),
        (vec!["--tokens", "/nonexistent/tokens"], "the tokens in /nonexistent/tokens cannot be used"),
        (vec!["--listen-tcp", "127.0.0.1:0", "--tls-cert", key, "--tls-key", key], "TLS cannot be served with"),
        (vec!["--signing-key", cert], "it is no Ed25519 private key in PEM"),
    ] {
        let (code, said) = Daemon::refused(&flags);
        assert!(code == 2 && said.contains(words), "{flags:?}: {code}: {said}");
    }
}

/// The flags of a daemon with mutual TLS, by an authority of its own.
fn mutual<'a>(cert: &'a Path, key: &'a Path, ca: &'a Path) -> Vec<&'a str> {
    let [cert, key, ca] = [cert, key, ca].map(|path| path.to_str().unwrap());
    vec!["--listen-tcp", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ca]
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_a_certificate_of_the_right_authority_gets_in() {
    let files = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(files.path(), "ours"), Authority::new(files.path(), "theirs"));
    let (cert, key) = ours.sign("localhost");
    let ca = ours.certificate();
    let daemon = Daemon::start(tempfile::tempdir().unwrap(), &mutual(&cert, &key, &ca));
    let address = daemon.tcp();
    let right = ours.client("worker-1");
    asked(&address, &right).await.unwrap();

    let without = Credentials { cert: None, key: None, ..right.clone() };
    let (cert, key) = theirs.sign("worker-1");
    let foreign = Credentials { cert: Some(cert), key: Some(key), ..right.clone() };
    let (cert, key) = ours.sign_expired("worker-2");
    let expired = Credentials { cert: Some(cert), key: Some(key), ..right.clone() };
    let unaware = Credentials { ca: Some(theirs.certificate()), ..right.clone() };
    for (what, wrong) in [("none", without), ("another's", foreign), ("expired", expired), ("another daemon", unaware)]
    {
        let refused = reason(asked(&address, &wrong).await);
        assert!(["UNREACHABLE", "CONNECTION_BROKEN"].contains(&&*refused), "{what}: {refused}");
    }
    // Without TLS nothing is understood; and without an authority https is not tried.
    let plain: Endpoint = address.to_string().replace("https", "http").parse().unwrap();
    assert!(asked(&plain, &Credentials::default()).await.is_err());
    assert_eq!(reason(asked(&address, &Credentials::default()).await), "BAD_CREDENTIALS");
    asked(&address, &right).await.unwrap();
    // A worker may not change anything, and the audit line says who tried.
    let admin = client(&address, &right).await.unwrap().admin();
    assert_eq!(admin.drain().await.unwrap_err().reason(), "NOT_ADMIN");
    let log = daemon.log();
    assert!(log.contains("certificate worker-1 from 127.0.0.1:"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_are_listed_have_their_roles_and_others_none() {
    let files = tempfile::tempdir().unwrap();
    let ours = Authority::new(files.path(), "ours");
    let (cert, key) = ours.sign("localhost");
    let ca = ours.certificate();
    let mut flags = mutual(&cert, &key, &ca);
    flags.extend(["--certificate-peers", "operator.example=admin", "--certificate-peers", "worker.example"]);
    let daemon = Daemon::start(tempfile::tempdir().unwrap(), &flags);
    let address = daemon.tcp();
    asked(&address, &ours.client("worker.example")).await.unwrap();
    assert_eq!(reason(asked(&address, &ours.client("stranger.example")).await), "PEER_NOT_ALLOWED");
    let operator = client(&address, &ours.client("operator.example")).await.unwrap();
    operator.admin().drain().await.unwrap();
    let log = daemon.log();
    assert!(log.contains("certificate operator.example from 127.0.0.1:"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_read_again_when_they_change() {
    let files = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(files.path(), "old"), Authority::new(files.path(), "new"));
    let place = |name: &str| files.path().join(name);
    let install = |authority: &Authority| {
        let (cert, key) = authority.sign("localhost");
        for (from, to) in [(cert, "cert"), (key, "key"), (authority.certificate(), "ca")] {
            // As tools do that replace files whole.
            fs::copy(from, place("scratch")).unwrap();
            fs::rename(place("scratch"), place(to)).unwrap();
        }
    };
    install(&old);
    let (cert, key, ca) = (place("cert"), place("key"), place("ca"));
    let mut daemon = Daemon::start(tempfile::tempdir().unwrap(), &mutual(&cert, &key, &ca));
    let address = daemon.tcp();
    let (old_client, new_client) = (old.client("worker"), new.client("worker"));
    asked(&address, &old_client).await.unwrap();
    assert!(asked(&address, &new_client).await.is_err());

    // What cannot be used changes nothing.
    fs::write(place("cert"), "no certificate").unwrap();
    daemon.until("a complaint", |daemon| daemon.log().contains("those from before stay in force"));
    asked(&address, &old_client).await.unwrap();

    install(&new);
    daemon
        .until("the new certificates", |daemon| daemon.log().contains("the certificates changed and were read again"));
    // Its three files may have been read one after the other.
    let mut is_new = false;
    for _ in 0..100 {
        is_new = asked(&address, &new_client).await.is_ok() && asked(&address, &old_client).await.is_err();
        if is_new {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(is_new, "{}", daemon.log());
}

const SECRET: &str = "a-secret-that-nobody-guesses-0123456789";

/// A file with a token in it, for a client.
fn token(folder: &Path, secret: &str) -> Credentials {
    let path = folder.join(format!("token-{}", secret.len()));
    fs::write(&path, format!("{secret}\n")).unwrap();
    Credentials { token: Some(path), ..Credentials::default() }
}

/// Writes the daemon's file of tokens: of name, secret and roles, and what else is said of them.
fn tokens(path: &Path, entries: &[(&str, &str, &str, &str)]) {
    let entry = |(name, secret, roles, more): &(&str, &str, &str, &str)| {
        let digest = sha256(secret.as_bytes());
        format!("[[token]]\nname = \"{name}\"\nsha256 = \"{digest}\"\nroles = {roles}\n{more}\n")
    };
    let scratch = path.with_extension("scratch");
    fs::write(&scratch, entries.iter().map(entry).collect::<String>()).unwrap();
    fs::set_permissions(&scratch, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(scratch, path).unwrap();
}

/// By the program that docs/security.md names.
fn sha256(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let output = std::process::Command::new("sha256sum").arg(file.path()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_known_have_roles_end_and_are_read_again() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("tokens.toml");
    let (old, other, reader) = ("an-old-secret-0123456789", "another-secret-9876543210", "one-that-only-reads-012");
    let worker = ("nightly", SECRET, "[\"compile\"]", "");
    let ended = ("ended", old, "[\"admin\"]", "expires = \"2001-01-01T00:00:00Z\"");
    tokens(&path, &[worker, ended, ("reader", reader, "[\"read\"]", "")]);
    let flags = ["--listen-tcp", "127.0.0.1:0", "--tokens", path.to_str().unwrap()];
    let mut daemon = Daemon::start(tempfile::tempdir().unwrap(), &flags);
    let address = daemon.tcp();
    let with = |secret: &str| token(files.path(), secret);
    asked(&address, &with(SECRET)).await.unwrap();
    assert_eq!(reason(asked(&address, &Credentials::default()).await), "UNAUTHENTICATED");
    assert_eq!(reason(asked(&address, &with(other)).await), "UNKNOWN_TOKEN");
    assert_eq!(reason(asked(&address, &with(old)).await), "TOKEN_EXPIRED");
    let drain =
        async |secret: &str| reason(client(&address, &with(secret)).await.unwrap().admin().drain().await.map(drop));
    assert_eq!(drain(SECRET).await, "NOT_ADMIN");
    // Who only reads has nothing compiled.
    asked(&address, &with(reader)).await.unwrap();
    let told = client(&address, &with(reader)).await.unwrap().report_fallbacks([("X".to_owned(), 1)].into()).await;
    assert_eq!(reason(told), "ROLE_MISSING");
    // Through the socket it is the user that counts, and a token adds to it.
    asked(&daemon.unix(), &Credentials::default()).await.unwrap();
    asked(&daemon.unix(), &with(SECRET)).await.unwrap();
    assert_eq!(reason(asked(&daemon.unix(), &with(other)).await), "UNKNOWN_TOKEN");

    tokens(&path, &[("nightly", other, "[\"admin\"]", "")]);
    daemon.until("the new tokens", |daemon| daemon.log().contains("the tokens changed and were read again"));
    assert_eq!(reason(asked(&address, &with(SECRET)).await), "UNKNOWN_TOKEN");
    fs::write(&path, "nonsense").unwrap();
    daemon.until("a complaint", |daemon| daemon.log().contains("those from before stay in force"));
    assert_eq!(drain(other).await, "");
    let log = daemon.log();
    assert!(log.contains("token nightly from 127.0.0.1:"), "{log}");
    assert!([SECRET, old, other].iter().all(|secret| !log.contains(secret)), "a token is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_not_sent_where_others_would_read_it() {
    let files = tempfile::tempdir().unwrap();
    let error = client(&"192.0.2.1:7410".parse().unwrap(), &token(files.path(), SECRET)).await.unwrap_err();
    assert_eq!(error.reason(), "BAD_CREDENTIALS");
    assert!(error.to_string().contains("use https"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_tokens_asks_for_one_of_both() {
    let files = tempfile::tempdir().unwrap();
    let ours = Authority::new(files.path(), "ours");
    let (cert, key) = ours.sign("localhost");
    let (ca, path) = (ours.certificate(), files.path().join("tokens.toml"));
    tokens(&path, &[("operator", SECRET, "[\"admin\"]", "")]);
    let mut flags = mutual(&cert, &key, &ca);
    flags.extend(["--tokens", path.to_str().unwrap()]);
    let daemon = Daemon::start(tempfile::tempdir().unwrap(), &flags);
    let address = daemon.tcp();
    let certificate = ours.client("worker");
    let by_token = Credentials { ca: Some(ca.clone()), ..token(files.path(), SECRET) };
    let nothing = Credentials { ca: Some(ca.clone()), ..Credentials::default() };
    asked(&address, &certificate).await.unwrap();
    asked(&address, &by_token).await.unwrap();
    assert_eq!(reason(asked(&address, &nothing).await), "UNAUTHENTICATED");
    // Both add up.
    let both = Credentials { token: by_token.token, ..certificate };
    client(&address, &both).await.unwrap().admin().drain().await.unwrap();
    assert!(daemon.log().contains("certificate worker and token operator from 127.0.0.1:"), "{}", daemon.log());
}

/// Opens so many streams that do not end; those that were opened, and the reasons why others were not.
async fn open(clients: &[Client], n: usize) -> (Vec<impl Sized>, Vec<String>) {
    let opening = (0..n).map(|at| {
        let admin = clients[at % clients.len()].admin();
        tokio::spawn(async move {
            let mut stream = Box::pin(admin.watch_jobs().await?);
            stream.next().await.transpose()?;
            Ok::<_, ClientError>(stream)
        })
    });
    let (mut opened, mut refused) = (Vec::new(), Vec::new());
    for task in opening.collect::<Vec<_>>() {
        match task.await.unwrap() {
            Ok(stream) => opened.push(stream),
            Err(error) => refused.push(error.reason().to_owned()),
        }
    }
    (opened, refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_so_many_streams_and_no_more() {
    let daemon = Daemon::start(tempfile::tempdir().unwrap(), &["--max-streams-per-peer", "8"]);
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(client(&daemon.unix(), &Credentials::default()).await.unwrap());
    }
    let (opened, refused) = open(&clients, 20).await;
    assert_eq!((opened.len(), refused), (8, vec!["PEER_STREAMS_FULL".to_owned(); 12]));
    // Another process is another peer.
    daemon.ask(&["status"], None).unwrap();
    drop(opened);
    let mut n_tries = 0;
    while reason(clients[0].status().await.map(drop)) == "PEER_STREAMS_FULL" {
        n_tries += 1;
        assert!(n_tries < 1000, "streams that were given up still count");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_streams_of_one_peer_keep_nobody_else_out() {
    let daemon = Daemon::start(tempfile::tempdir().unwrap(), &[]);
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(client(&daemon.unix(), &Credentials::default()).await.unwrap());
    }
    let (opened, refused) = open(&clients, 10_000).await;
    assert_eq!(opened.len() + refused.len(), 10_000);
    assert_eq!(opened.len(), 1024);
    assert!(refused.iter().all(|reason| reason == "PEER_STREAMS_FULL" || reason == "PEER_RATE_FULL"), "{refused:?}");
    daemon.ask(&["status"], None).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_begins_so_many_calls_a_second_and_no_more() {
    let daemon = Daemon::start(tempfile::tempdir().unwrap(), &["--max-requests-per-s-per-peer", "1"]);
    let client = client(&daemon.unix(), &Credentials::default()).await.unwrap();
    let mut refused = 0;
    for _ in 0..20 {
        refused += usize::from(reason(client.status().await.map(drop)) == "PEER_RATE_FULL");
    }
    assert!(refused > 0);
    daemon.ask(&["status"], None).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_headers_are_refused_and_cost_nothing_else() {
    let daemon = Daemon::start(tempfile::tempdir().unwrap(), &[]);
    let files = tempfile::tempdir().unwrap();
    // The token is a header.
    let huge = token(files.path(), &"x".repeat(200_000));
    for _ in 0..3 {
        assert!(asked(&daemon.unix(), &huge).await.is_err());
    }
    let large = token(files.path(), &"x".repeat(4_000));
    asked(&daemon.unix(), &large).await.unwrap();
    asked(&daemon.unix(), &Credentials::default()).await.unwrap();
}

#[test]
fn a_request_may_come_byte_by_byte_and_holds_up_nobody() {
    let daemon = Daemon::start(tempfile::tempdir().unwrap(), &[]);
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    let mut bytes = greeting();
    bytes.extend(frame(1, 4, 1, &headers("/piecewised.v1.CompileService/GetStatus")));
    // An empty message.
    bytes.extend(frame(0, 1, 1, &[0; 5]));
    for (at, byte) in bytes.iter().enumerate() {
        stream.write_all(&[*byte]).unwrap();
        if at == bytes.len() / 2 {
            daemon.ask(&["status"], None).unwrap();
        }
    }
    // The first DATA frame is the answer.
    loop {
        let (kind, payload) = next_frame(&mut stream).unwrap();
        if kind == 0 && payload.len() > 5 {
            let status = v1::GetStatusResponse::decode(&payload[5..]).unwrap();
            assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
            assert_eq!(status.public_key.len(), 32);
            return;
        }
        assert_ne!(kind, 7, "the connection was given up");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_go_on_holds_up_nobody() {
    let files = tempfile::tempdir().unwrap();
    let ours = Authority::new(files.path(), "ours");
    let (cert, key) = ours.sign("localhost");
    let ca = ours.certificate();
    let daemon = Daemon::start(tempfile::tempdir().unwrap(), &mutual(&cert, &key, &ca));
    let Endpoint::Https(authority) = daemon.tcp() else { panic!("TLS is spoken there") };
    let silent: Vec<_> = (0..50).map(|_| std::net::TcpStream::connect(&authority).unwrap()).collect();
    asked(&daemon.tcp(), &ours.client("worker")).await.unwrap();
    drop(silent);
}

#[test]
fn the_daemon_keeps_its_key_over_restarts_and_says_it() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder, &[]);
    let key = |daemon: &Daemon| {
        let status: serde_json::Value =
            serde_json::from_str(&daemon.ask(&["status", "--json"], None).unwrap()).unwrap();
        status["public_key"].as_str().unwrap().to_owned()
    };
    let first = key(&daemon);
    assert!(first.starts_with("ed25519:"));
    assert!(daemon.ask(&["status"], None).unwrap().contains(&format!("it signs with {first}")));
    assert!(daemon.log().contains(&first));
    let file = daemon.folder.path().join("store/signing-key.pem");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let kept = fs::read(&file).unwrap();
    drop(daemon);
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("store")).unwrap();
    let named = folder.path().join("key.pem");
    fs::write(&named, kept).unwrap();
    fs::set_permissions(&named, fs::Permissions::from_mode(0o600)).unwrap();
    let flag = named.to_str().unwrap().to_owned();
    let daemon = Daemon::start(folder, &["--signing-key", &flag]);
    assert_eq!(key(&daemon), first);
}
