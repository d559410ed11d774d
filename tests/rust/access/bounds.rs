//! Clients that take up room: connections without number, connections that say nothing, messages that do not end.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::Duration,
};

use piecewised_client::{Client, Credentials, Endpoint};
use piecewised_proto::v1::{self, client::compile_service_client::CompileServiceClient};
use tonic::{Code, Request};

use crate::{
    authority::Authority,
    daemon::{Daemon, asked, client},
    http2::{frame, greeting, headers, next_frame},
    mutual, reason,
};

const REFUSED: &str = "piecewised_connections_refused_total";

/// So many clients at the socket, each with a connection that was used.
async fn standing(daemon: &Daemon, n: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..n {
        let client = client(&daemon.unix(), &Credentials::default()).await.unwrap();
        client.status().await.unwrap();
        clients.push(client);
    }
    clients
}

/// Whether the daemon takes up a connection; it says something of its own where it does.
fn is_taken_up(daemon: &Daemon) -> bool {
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    // Closed at once, it may not even take that.
    stream.write_all(&greeting()).is_ok() && next_frame(&mut stream).is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_so_many_connections_and_others_have_theirs() {
    let flags = ["--max-connections-per-peer", "3", "--listen-http", "127.0.0.1:0"];
    let mut daemon = Daemon::start(tempfile::tempdir().unwrap(), &flags);
    let clients = standing(&daemon, 3).await;
    for _ in 0..20 {
        assert!(!is_taken_up(&daemon));
    }
    assert_eq!(daemon.metric(&format!("{REFUSED}{{listener=\"unix\",reason=\"peer_full\"}}")), 20);
    assert_eq!(daemon.metric("piecewised_connections{listener=\"unix\"}"), 3);
    let line = "3 connections of process ";
    daemon.until("a line about it", |daemon| daemon.log().contains(line));
    let log = daemon.log();
    assert!(log.contains("max_connections_per_peer"), "{log}");
    assert!(log.matches(line).count() < 20, "a line for each would fill the disk: {log}");
    // Those that stand go on, and another process is another peer.
    for client in &clients {
        client.status().await.unwrap();
    }
    daemon.ask(&["status"], None).unwrap();
    drop(clients);
    daemon.until("the place of a connection that has ended", is_taken_up);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_has_so_many_connections_and_the_others_have_theirs() {
    let flags = ["--max-connections", "2", "--listen-http", "127.0.0.1:0", "--listen-tcp", "127.0.0.1:0"];
    let mut daemon = Daemon::start(tempfile::tempdir().unwrap(), &flags);
    let clients = standing(&daemon, 2).await;
    daemon.ask(&["status"], None).unwrap_err();
    daemon.until("a line about it", |daemon| daemon.log().contains("2 connections are open already (max_connections)"));
    assert!(daemon.metric(&format!("{REFUSED}{{listener=\"unix\",reason=\"full\"}}")) >= 1);
    asked(&daemon.tcp(), &Credentials::default()).await.unwrap();
    drop(clients);
    daemon.until("the place of a connection that has ended", |daemon| daemon.ask(&["status"], None).is_ok());
    // Who fills the HTTP port, which asks nobody who he is, keeps no worker out.
    let _filling: Vec<_> = (0..2).map(|_| TcpStream::connect(daemon.http()).unwrap()).collect();
    let mut refused = TcpStream::connect(daemon.http()).unwrap();
    let _ = refused.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut answer = Vec::new();
    let _ = refused.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    daemon.ask(&["status"], None).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_over_tls_has_so_many_connections_before_it_shakes_hands() {
    let files = tempfile::tempdir().unwrap();
    let ours = Authority::new(files.path(), "ours");
    let (cert, key) = ours.sign("localhost");
    let ca = ours.certificate();
    let mut flags = mutual(&cert, &key, &ca);
    flags.extend(["--max-connections-per-peer", "2", "--listen-http", "127.0.0.1:0"]);
    let mut daemon = Daemon::start(tempfile::tempdir().unwrap(), &flags);
    let Endpoint::Https(authority) = daemon.tcp() else { panic!("TLS is spoken there") };
    let worker = ours.client("worker");
    let _standing = client(&daemon.tcp(), &worker).await.unwrap();
    let mut silent = TcpStream::connect(&authority).unwrap();
    let refused = reason(asked(&daemon.tcp(), &worker).await);
    assert!(["UNREACHABLE", "CONNECTION_BROKEN"].contains(&&*refused), "{refused}");
    assert!(daemon.metric(&format!("{REFUSED}{{listener=\"tcp\",reason=\"peer_full\"}}")) >= 1);
    // A handshake that fails gives its place back.
    silent.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _ = silent.read_to_end(&mut Vec::new());
    while let Err(error) = asked(&daemon.tcp(), &worker).await {
        assert!(["UNREACHABLE", "CONNECTION_BROKEN"].contains(&error.reason()), "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let counter = format!("{REFUSED}{{listener=\"tcp\",reason=\"tls\"}}");
    daemon.until("it is counted", |daemon| daemon.metric(&counter) == 1);
}

#[test]
fn a_connection_that_does_not_say_what_it_wants_is_closed() {
    let files = tempfile::tempdir().unwrap();
    let ours = Authority::new(files.path(), "ours");
    let (cert, key) = ours.sign("localhost");
    let ca = ours.certificate();
    let mut flags = mutual(&cert, &key, &ca);
    flags.extend(["--listen-http", "127.0.0.1:0"]);
    let mut daemon = Daemon::start(tempfile::tempdir().unwrap(), &flags);
    let Endpoint::Https(authority) = daemon.tcp() else { panic!("TLS is spoken there") };
    // Nothing at all; half of what HTTP/2 begins with; no handshake; half of a request of HTTP/1.1.
    let mut nothing = UnixStream::connect(daemon.socket()).unwrap();
    let mut half = UnixStream::connect(daemon.socket()).unwrap();
    half.write_all(&greeting()[..20]).unwrap();
    let mut no_handshake = TcpStream::connect(authority).unwrap();
    let mut no_request = TcpStream::connect(daemon.http()).unwrap();
    no_request.write_all(b"GET /healthz HTTP/1.1\r\nHost: local").unwrap();
    // Each of them waits for the daemon to close it.
    for stream in [&mut nothing, &mut half] {
        while next_frame(stream).is_some() {}
    }
    let _ = no_handshake.read_to_end(&mut Vec::new());
    let _ = no_request.read_to_end(&mut Vec::new());
    for (listener, n) in [("unix", 2), ("tcp", 1)] {
        let counter = format!("{REFUSED}{{listener=\"{listener}\",reason=\"silent\"}}");
        daemon.until("each is counted", |daemon| daemon.metric(&counter) == n);
    }
    daemon.until("a line about it", |daemon| {
        ["HTTP/2 was not begun within", "the handshake took too long"].iter().any(|line| daemon.log().contains(line))
    });
    daemon.ask(&["status"], None).unwrap();
}

#[test]
fn a_peer_that_answers_no_ping_is_taken_for_dead() {
    let flags = ["--message-timeout-s", "2", "--listen-http", "127.0.0.1:0"];
    let mut daemon = Daemon::start(tempfile::tempdir().unwrap(), &flags);
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.write_all(&greeting()).unwrap();
    let mut kinds = Vec::new();
    while let Some((kind, _)) = next_frame(&mut stream) {
        kinds.push(kind);
    }
    assert!(kinds.contains(&6), "it was asked whether it is there: {kinds:?}");
    daemon.until("its place", |daemon| daemon.metric("piecewised_connections{listener=\"unix\"}") == 0);
}

#[test]
fn a_message_that_comes_byte_by_byte_has_its_time_and_its_connection_goes_on() {
    let flags = ["--message-timeout-s", "1", "--listen-http", "127.0.0.1:0"];
    let mut daemon = Daemon::start(tempfile::tempdir().unwrap(), &flags);
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    let call = headers("/piecewised.v1.CompileService/Compile");
    stream.write_all(&greeting()).unwrap();
    stream.write_all(&frame(1, 4, 1, &call)).unwrap();
    // A message of a megabyte, and a byte of it now and then, for as long as the daemon takes them.
    let mut bytes = vec![0];
    bytes.extend((1_u32 << 20).to_be_bytes());
    bytes.extend([7; 100_000]);
    let mut dripping = stream.try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        for byte in bytes {
            if dripping.write_all(&frame(0, 0, 1, &[byte])).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    // Its answer is nothing but a status, and its stream is reset.
    let mut answered = false;
    while let Some((kind, payload)) = next_frame(&mut stream) {
        assert_ne!(kind, 7, "the connection was given up: {payload:?}");
        answered |= kind == 1;
        if kind == 3 {
            break;
        }
    }
    assert!(answered);
    assert_eq!(daemon.metric("piecewised_slow_messages_total"), 1);
    assert!(daemon.log().contains("SLOW_MESSAGE"), "{}", daemon.log());
    daemon.until("the place of its call", |daemon| daemon.ask(&["status"], None).is_ok());
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    drip.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_stops_coming_is_refused_with_a_reason() {
    let flags = ["--message-timeout-s", "1", "--listen-tcp", "127.0.0.1:0", "--trusted-frontend-peers", "all"];
    let daemon = Daemon::start(tempfile::tempdir().unwrap(), &flags);
    let mut client = CompileServiceClient::connect(daemon.tcp().to_string()).await.unwrap();
    let name = v1::SnapshotName { frontend: "tests".into(), name: "n".into(), toolchain: "t".into() };
    let header = v1::SnapshotHeader { name: Some(name), total_bytes: 1000, digest: vec![0; 32] };
    let part = v1::put_snapshot_request::Part::Header(header);
    let parts = tokio_stream::StreamExt::chain(
        tokio_stream::once(v1::PutSnapshotRequest { part: Some(part) }),
        tokio_stream::pending(),
    );
    let refused = client.put_snapshot(Request::new(parts)).await.unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused}");
    assert!(refused.message().starts_with("SLOW_MESSAGE: no part of the snapshot came within 1 s"), "{refused}");
    assert!(refused.message().contains("message_timeout_s"), "{refused}");
}
