//! Who is believed: forged and altered handles, genuine ones of something else, keys that are given, taken and changed. The server is a real one on
//! a real socket; what it answers is scripted, as somebody who has the daemon's place would.
#![allow(clippy::unwrap_used)]

mod common;
mod scripted;

use std::{fs, path::Path, time::Duration};

use common::{good, handle, keyring, request, signed, signer};
use piecewised_client::{Cache, Client, ClientError, ClientOptions, Endpoint, EventKind, Keyring, check_manifest};
use piecewised_graph::{Digest, Handle, Manifest, ManifestPiece, SnapshotName};
use piecewised_plan::Range;
use piecewised_proto::v1::{self, compile_event::Event, compile_service_server::CompileServiceServer};
use piecewised_sign::{Signer, Statement};
use piecewised_wire::{handle_to_proto, signature_to_proto};
use scripted::{Answer, Server};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::{
    StreamExt,
    wrappers::{TcpListenerStream, UnixListenerStream},
};
use tonic::transport::Server as Transport;

fn r(start: i64, end: i64) -> Range {
    Range::new(start, end).unwrap()
}

/// Listens at a Unix socket in the folder.
fn serve(folder: &Path) -> (Server, Endpoint) {
    let socket = folder.join("s.sock");
    let _ = fs::remove_file(&socket);
    let server = Server::default();
    let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let service = CompileServiceServer::new(server.clone());
    tokio::spawn(Transport::builder().add_service(service).serve_with_incoming(listener));
    (server, Endpoint::Unix(socket))
}

async fn connect(endpoint: &Endpoint, keyring: Keyring) -> Client {
    let options = ClientOptions { keyring, ready_timeout: Duration::ZERO, ..ClientOptions::default() };
    Client::connect(endpoint.clone(), options).await.unwrap()
}

/// The handle of the plan's first entry.
fn first() -> Handle {
    handle(Some((1, 16)), &[Some((1, 16))])
}

/// What a daemon says to a request with this digest: entry 0 has key 1, entry 1 has keys 2 and 3.
fn accepted(digest: Digest, signer: &Signer) -> v1::Accepted {
    let entry = |start, end, keys: &[u8]| v1::AcceptedEntry {
        range: Some(v1::Range { start, end }),
        keys: keys.iter().map(|&key| vec![key; 32]).collect(),
    };
    let entries = vec![entry(1, 16, &[1]), entry(4, 4, &[2, 3])];
    let accepted = v1::Accepted { request_digest: digest.0.to_vec(), entries, signature: None };
    let signature = Some(signature_to_proto(&signer.sign(&Statement::of_accepted(&accepted))));
    v1::Accepted { signature, ..accepted }
}

fn of_request(accepted: v1::Accepted) -> v1::CompileEvent {
    v1::CompileEvent { index: 0, range: None, event: Some(Event::Accepted(accepted)) }
}

fn ready(index: u32, handle: v1::Handle) -> v1::CompileEvent {
    let range = handle.range;
    let ready = v1::Ready { handle: Some(handle), source: v1::Source::Store.into() };
    v1::CompileEvent { index, range, event: Some(Event::Ready(ready)) }
}

fn completed() -> v1::CompileEvent {
    v1::CompileEvent { index: 0, range: None, event: Some(Event::Completed(v1::Completed::default())) }
}

type Said = Vec<v1::CompileEvent>;

/// What the client makes of an answer: the handles that it takes, or the reason why it takes no more.
async fn taken(
    client: &Client,
    server: &Server,
    answer: impl FnOnce(Digest) -> Said + Send + 'static,
) -> Result<Vec<Handle>, ClientError> {
    let answer = |digest| -> Answer<v1::CompileEvent> { Ok(answer(digest).into_iter().map(Ok).collect()) };
    server.0.lock().unwrap().compiles_of.push_back(Box::new(answer));
    let mut stream = client.compile(request()).await?;
    let mut handles = Vec::new();
    while let Some(event) = stream.next().await {
        if let EventKind::Ready { handle, .. } = event?.kind {
            handles.push(*handle);
        }
    }
    Ok(handles)
}

fn genuine(signer: &Signer) -> impl FnOnce(Digest) -> Said + Send + 'static {
    let (signer, handle) = (Signer::from_pem(&signer.to_pem().unwrap()).unwrap(), signer.signed_handle(&first()));
    move |digest| vec![of_request(accepted(digest, &signer)), ready(0, handle), completed()]
}

#[tokio::test]
async fn what_the_daemon_signed_for_this_request_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (server, endpoint) = serve(folder.path());
    let client = connect(&endpoint, keyring()).await;
    assert_eq!(taken(&client, &server, genuine(&signer())).await.unwrap(), [signed(first())]);
    // Either of the keys of an entry that may be answered with its tuned artifact.
    for key in [2, 3] {
        let other = Handle { key: Digest([key; 32]), ..handle(Some((4, 4)), &[Some((4, 4))]) };
        let message = signer().signed_handle(&other);
        let answer = move |digest| vec![of_request(accepted(digest, &signer())), ready(1, message), completed()];
        assert_eq!(taken(&client, &server, answer).await.unwrap(), [signed(other)]);
    }
}

#[tokio::test]
async fn answers_that_are_forged_altered_or_of_another_request_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (server, endpoint) = serve(folder.path());
    let client = connect(&endpoint, keyring()).await;
    let good = || signer().signed_handle(&first());
    type Forgery = Box<dyn FnOnce(Digest) -> Said + Send>;
    let with = |change: fn(&mut v1::Accepted)| -> Forgery {
        Box::new(move |digest| {
            let mut accepted = accepted(digest, &signer());
            change(&mut accepted);
            vec![of_request(accepted), ready(0, signer().signed_handle(&first()))]
        })
    };
    let handle = |handle: v1::Handle| -> Forgery {
        Box::new(move |digest| vec![of_request(accepted(digest, &signer())), ready(0, handle)])
    };
    let mallory = || Signer::from_seed(&[8; 32]);
    let cases: Vec<(&str, Forgery, &str)> = vec![
        // A daemon from before there were signatures.
        ("no word for the request", Box::new(move |_| vec![ready(0, good())]), "UNSIGNED"),
        ("an unsigned word", with(|it| it.signature = None), "UNSIGNED"),
        ("an unsigned handle", handle(handle_to_proto(&first())), "UNSIGNED"),
        // Somebody in the daemon's place, with a key of his own.
        ("another's word", Box::new(move |digest| vec![of_request(accepted(digest, &mallory()))]), "KEY_NOT_TRUSTED"),
        ("another's handle", handle(mallory().signed_handle(&first())), "KEY_NOT_TRUSTED"),
        // Another's signature under the daemon's name.
        (
            "a signature under the daemon's key that it did not make",
            handle({
                let mut forged = mallory().signed_handle(&first());
                forged.signature.as_mut().unwrap().public_key = signer().public_key().0.to_vec();
                forged
            }),
            "BAD_SIGNATURE",
        ),
        // The genuine answer to another request.
        (
            "a word for another request",
            Box::new(|_| {
                vec![of_request(accepted(Digest([5; 32]), &signer())), ready(0, signer().signed_handle(&first()))]
            }),
            "OTHER_REQUEST",
        ),
        ("a word with another digest", with(|it| it.request_digest[0] ^= 1), "BAD_SIGNATURE"),
        ("a word with another key", with(|it| it.entries[0].keys[0][0] ^= 1), "BAD_SIGNATURE"),
        ("a word with one more key", with(|it| it.entries[0].keys.push(vec![9; 32])), "BAD_SIGNATURE"),
        ("a word with other entries", with(|it| it.entries.swap(0, 1)), "BAD_SIGNATURE"),
        // Genuine handles of something else.
        (
            "a handle of another key",
            handle(signer().signed_handle(&Handle { key: Digest([2; 32]), ..first() })),
            "OTHER_REQUEST",
        ),
        ("a handle without sizes", handle(signer().signed_handle(&common::handle(None, &[None]))), "OTHER_REQUEST"),
        (
            "a handle for other sizes",
            handle(signer().signed_handle(&common::handle(Some((1, 15)), &[Some((1, 15))]))),
            "BAD_RESPONSE",
        ),
    ];
    for (what, answer, reason) in cases {
        let error = taken(&client, &server, answer).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{what}: {error}");
        assert!(error.falls_back(), "{what}");
    }
}

#[tokio::test]
async fn a_refused_handle_costs_no_fetch() {
    let folder = tempfile::tempdir().unwrap();
    let (server, endpoint) = serve(folder.path());
    let client = connect(&endpoint, keyring()).await;
    let cache = Cache::open(&folder.path().join("cache")).unwrap();
    let bytes = good();
    let right = signed(Handle { digest: Digest::of(&bytes), size_bytes: bytes.len() as u64, ..first() });
    // Also what is in the cache folder already is not handed out for a handle that is not signed.
    cache.install(&right.digest, &bytes).unwrap();
    assert!(client.fetch(&right, &cache).await.unwrap().was_local);
    for wrong in [Handle { signature: None, ..right.clone() }, Handle { n_arguments: 3, ..right }] {
        let error = client.fetch(&wrong, &cache).await.unwrap_err();
        assert!(matches!(error, ClientError::Untrusted(_)), "{error}");
    }
    assert!(server.0.lock().unwrap().offsets.is_empty());
}

#[tokio::test]
async fn a_key_is_taken_on_first_use_of_a_unix_socket_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let known = cache.join("known_daemons");
    let (server, endpoint) = serve(folder.path());
    let client = connect(&endpoint, Keyring::remembering(&cache)).await;
    // A word that does not verify is no use.
    let forged = |digest| {
        let mut forged = accepted(digest, &signer());
        forged.signature.as_mut().unwrap().value[0] ^= 1;
        vec![of_request(forged)]
    };
    assert_eq!(taken(&client, &server, forged).await.unwrap_err().reason(), "BAD_SIGNATURE");
    assert!(!known.exists());
    taken(&client, &server, genuine(&signer())).await.unwrap();
    let line = format!("{} {endpoint}\n", signer().public_key());
    assert!(fs::read_to_string(&known).unwrap().ends_with(&line));

    // Another process, later: the daemon has another key.
    let other = Signer::from_seed(&[9; 32]);
    let client = connect(&endpoint, Keyring::remembering(&cache)).await;
    let error = taken(&client, &server, genuine(&other)).await.unwrap_err();
    assert_eq!(error.reason(), "KEY_CHANGED");
    let words = error.to_string();
    assert!(words.contains(&known.display().to_string()) && words.contains(&other.public_key().to_string()), "{words}");
    taken(&client, &server, genuine(&signer())).await.unwrap();

    // People remove the line; then it is a first use again.
    let without: String = fs::read_to_string(&known).unwrap().lines().filter(|line| line.starts_with('#')).collect();
    fs::write(&known, without).unwrap();
    let client = connect(&endpoint, Keyring::remembering(&cache)).await;
    taken(&client, &server, genuine(&other)).await.unwrap();
    assert!(fs::read_to_string(&known).unwrap().contains(&other.public_key().to_string()));
}

#[tokio::test]
async fn a_key_that_is_not_remembered_anywhere_is_kept_by_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let (server, endpoint) = serve(folder.path());
    let client = connect(&endpoint, Keyring::default()).await;
    taken(&client, &server, genuine(&signer())).await.unwrap();
    let error = taken(&client, &server, genuine(&Signer::from_seed(&[9; 32]))).await.unwrap_err();
    assert_eq!(error.reason(), "KEY_CHANGED");
}

#[tokio::test]
#[allow(clippy::print_stderr, reason = "says why it was skipped")]
async fn no_key_is_taken_of_a_socket_that_another_user_could_have_put_there() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give a file away");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (server, endpoint) = serve(folder.path());
    let Endpoint::Unix(socket) = &endpoint else { unreachable!("it listens on one") };
    let client = connect(&endpoint, Keyring::default()).await;
    let give = |path: &Path, uid| std::os::unix::fs::chown(path, Some(uid), None).unwrap();
    give(socket, 4711);
    give(folder.path(), 4711);
    let error = taken(&client, &server, genuine(&signer())).await.unwrap_err();
    assert_eq!(error.reason(), "KEY_NOT_TRUSTED");
    assert!(error.to_string().contains("is user 4711's"), "{error}");
    // Given, it counts.
    let given = connect(&endpoint, keyring()).await;
    taken(&given, &server, genuine(&signer())).await.unwrap();
    // In a folder of ours he could not have put it there.
    give(folder.path(), 0);
    taken(&client, &server, genuine(&signer())).await.unwrap();
}

#[tokio::test]
async fn over_tcp_no_key_is_taken_and_a_given_one_counts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::Http(listener.local_addr().unwrap().to_string());
    let server = Server::default();
    let service = CompileServiceServer::new(server.clone());
    tokio::spawn(Transport::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
    let folder = tempfile::tempdir().unwrap();
    let client = connect(&endpoint, Keyring::remembering(folder.path())).await;
    let error = taken(&client, &server, genuine(&signer())).await.unwrap_err();
    assert_eq!(error.reason(), "KEY_NOT_TRUSTED");
    assert!(error.to_string().contains("PIECEWISED_TRUSTED_KEYS"), "{error}");
    assert!(!folder.path().join("known_daemons").exists());
    let client = connect(&endpoint, keyring()).await;
    taken(&client, &server, genuine(&signer())).await.unwrap();
    let client = connect(&endpoint, Keyring::pinned(vec![Signer::from_seed(&[9; 32]).public_key()])).await;
    assert_eq!(taken(&client, &server, genuine(&signer())).await.unwrap_err().reason(), "KEY_NOT_TRUSTED");
}

#[test]
fn what_was_kept_is_taken_from_a_daemon_that_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let reason = |keyring: Keyring| keyring.check_handle(&signed(first())).unwrap_err().reason().to_owned();
    assert_eq!(reason(Keyring::remembering(&cache)), "KEY_NOT_TRUSTED");
    assert_eq!(reason(Keyring::default()), "KEY_NOT_TRUSTED");
    Cache::open(&cache).unwrap();
    fs::write(cache.join("known_daemons"), format!("{} unix:/run/somewhere\n", signer().public_key())).unwrap();
    Keyring::remembering(&cache).check_handle(&signed(first())).unwrap();
    // A folder that others can write to says nothing.
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(reason(Keyring::remembering(&cache)), "KEY_NOT_TRUSTED");
}

/// As `openssl pkey -pubout` writes the public key of `openssl genpkey -algorithm ed25519`.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH\n-----END PRIVATE KEY-----\n";

#[test]
fn keys_are_given_as_text_or_as_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let key = signer().public_key().to_string();
    let file = folder.path().join("keys");
    fs::write(&file, format!("# the node's\n{key} # and why\n")).unwrap();
    let resolve = |given: Option<&str>, variable: Option<&str>| {
        let environment = |name: &str| variable.filter(|_| name == "PIECEWISED_TRUSTED_KEYS").map(str::to_owned);
        Keyring::resolve(given, environment, &cache)
    };
    let other = Signer::from_seed(&[9; 32]).public_key().to_string();
    let named = file.to_str().unwrap();
    let pem = folder.path().join("public.pem");
    // 12 bytes that say what it is, and the key, in base64.
    fs::write(&pem, "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA6kpsY+Kcd6mBzhqjY9GWAQlTTbKuCz9WlXHhQPnQ5Ow=\n-----END PUBLIC KEY-----\n").unwrap();
    for keyring in [
        resolve(Some(&key), None),
        resolve(Some(&format!("{other}, {key}")), None),
        resolve(Some(named), Some(&other)),
        resolve(None, Some(named)),
        resolve(None, Some(&key)),
    ] {
        keyring.unwrap().check_handle(&signed(first())).unwrap();
    }
    assert_eq!(Signer::from_pem(PRIVATE).unwrap().public_key(), signer().public_key());
    let of_pem = resolve(Some(pem.to_str().unwrap()), None);
    // Whose key it is, it is one.
    assert!(of_pem.is_ok(), "{of_pem:?}");
    fs::write(&file, "").unwrap();
    for (given, problem) in [
        ("/no/such/file", "can't be read"),
        (named, "there is no public key in it"),
        ("ed25519:abc", "is not a public key"),
        (&*format!("{key},nonsense"), "\"nonsense\" is not a public key"),
    ] {
        let error = resolve(Some(given), None).unwrap_err();
        assert_eq!(error.reason(), "BAD_TRUSTED_KEYS");
        assert!(error.is_callers_mistake() && error.to_string().contains(problem), "{error}");
    }
}

fn manifest() -> Manifest {
    let handle = signed(first());
    let manifest = Manifest {
        program: "backbone".parse().unwrap(),
        toolchain: handle.toolchain.clone(),
        devices: vec![handle.device.clone()],
        pieces: vec![ManifestPiece { index: 0, entries: vec![r(1, 16)], handles: vec![handle] }],
        n_distinct_pieces: 1,
        created_unix_ms: 7,
        signature: None,
    };
    let signature = signer().sign(&Statement::of_manifest(&manifest));
    Manifest { signature: Some(signature), ..manifest }
}

#[test]
fn a_manifest_is_signed_as_a_whole() {
    check_manifest(&manifest(), &keyring()).unwrap();
    let reason = |manifest: &Manifest| check_manifest(manifest, &keyring()).unwrap_err().reason().to_owned();
    assert_eq!(reason(&Manifest { signature: None, ..manifest() }), "UNSIGNED");
    // Each of its handles is genuine, and yet they are not this program's.
    let mut swapped = manifest();
    swapped.pieces[0].handles[0] = signed(Handle { key: Digest([6; 32]), ..first() });
    assert_eq!(reason(&swapped), "BAD_SIGNATURE");
    assert_eq!(reason(&Manifest { program: "draft".parse().unwrap(), ..manifest() }), "BAD_SIGNATURE");
}

#[tokio::test]
async fn a_snapshot_is_the_one_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (server, endpoint) = serve(folder.path());
    let client = connect(&endpoint, keyring()).await;
    let name = |name: &str| SnapshotName::new("vllm".into(), name.into(), "ab".into()).unwrap();
    let bytes = b"a pickle".to_vec();
    let answer = |signature: Option<v1::Signature>| {
        let (data, digest) = (bytes.clone().into(), Digest::of(&bytes).0.to_vec());
        let total_bytes = bytes.len() as u64;
        vec![Ok(v1::FetchSnapshotResponse { offset: 0, data, total_bytes, digest, signature })]
    };
    let by = |signer: &Signer, name: &SnapshotName| {
        let statement = Statement::of_snapshot(name, bytes.len() as u64, &Digest::of(&bytes));
        Some(signature_to_proto(&signer.sign(&statement)))
    };
    let asked = name("aot");
    for (signature, reason) in [
        (by(&signer(), &asked), None),
        (None, Some("UNSIGNED")),
        (by(&signer(), &name("another")), Some("BAD_SIGNATURE")),
        (by(&Signer::from_seed(&[9; 32]), &asked), Some("KEY_NOT_TRUSTED")),
    ] {
        server.0.lock().unwrap().snapshots.push_back(Ok(answer(signature)));
        let found = client.fetch_snapshot(&asked).await;
        match reason {
            None => assert_eq!(found.unwrap().unwrap(), bytes),
            Some(reason) => assert_eq!(found.unwrap_err().reason(), reason),
        }
    }
}
