//! The client against a daemon that misbehaves in every way that a network and a crash can produce. The server is a real one
//! on a real socket; what it answers is scripted.
#![allow(clippy::unwrap_used)]

mod common;
mod scripted;

use std::time::Duration;

use common::{good, handle, keyring, request, signed, signer};
use opentelemetry::{
    Context,
    trace::{FutureExt as _, SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use piecewised_client::{Cache, Client, ClientError, ClientOptions, Endpoint, Event, EventKind, check_manifest};
use piecewised_graph::{Digest, Handle, Manifest, ManifestPiece, SnapshotName, request::ArtifactFormat};
use piecewised_plan::Range;
use piecewised_proto::v1::{self, compile_service_server::CompileServiceServer};
use piecewised_sign::Statement;
use scripted::{Answer, Server, refused};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::{StreamExt, wrappers::UnixListenerStream};
use tonic::{Code, Status};

struct World {
    client: Client,
    server: Server,
    cache: Cache,
    _folder: TempDir,
}

async fn world(change: impl FnOnce(&mut ClientOptions)) -> World {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s.sock");
    let server = Server::default();
    let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(CompileServiceServer::new(server.clone()))
            .serve_with_incoming(listener),
    );
    let mut options = ClientOptions::default();
    options.fetch.backoff = Duration::from_millis(1);
    options.keyring = keyring();
    change(&mut options);
    let client = Client::connect(Endpoint::Unix(socket), options).await.unwrap();
    let cache = Cache::open(&folder.path().join("cache")).unwrap();
    World { client, server, cache, _folder: folder }
}

fn handle_of(bytes: &[u8]) -> Handle {
    signed(Handle {
        digest: Digest::of(bytes),
        size_bytes: bytes.len() as u64,
        ..handle(Some((1, 4)), &[Some((1, 4))])
    })
}

fn chunk(bytes: &[u8], from: usize, to: usize) -> Result<v1::FetchArtifactResponse, Status> {
    let data = bytes[from..to].to_vec().into();
    Ok(v1::FetchArtifactResponse { offset: from as u64, data, total_bytes: bytes.len() as u64 })
}

fn broken() -> Result<v1::FetchArtifactResponse, Status> {
    Err(Status::unavailable("transport error"))
}

#[tokio::test]
async fn a_transfer_goes_on_where_it_broke() {
    let world = world(|options| options.fetch.max_retries = 2).await;
    let bytes = good();
    let n = bytes.len();
    // Five breaks with progress in between: only those in a row without progress count.
    world.server.0.lock().unwrap().fetches = [
        Err(Status::unavailable("transport error")),
        Ok(vec![chunk(&bytes, 0, 100), broken()]),
        Ok(vec![broken()]),
        Ok(vec![chunk(&bytes, 100, 101), chunk(&bytes, 101, 2000)]),
        Ok(vec![broken()]),
        Ok(vec![chunk(&bytes, 2000, n)]),
    ]
    .into();
    let fetched = world.client.fetch(&handle_of(&bytes), &world.cache).await.unwrap();
    assert!(!fetched.was_local);
    assert_eq!(world.cache.find(&Digest::of(&bytes)), Some(fetched.folder.clone()));
    assert_eq!(world.server.0.lock().unwrap().offsets, [0, 0, 100, 100, 2000, 2000]);

    let again = world.client.fetch(&handle_of(&bytes), &world.cache).await.unwrap();
    assert!(again.was_local, "the second time nothing is asked of the daemon");
    assert_eq!(again.folder, fetched.folder);
}

#[tokio::test]
async fn a_transfer_that_makes_no_progress_ends() {
    let world = world(|options| options.fetch.max_retries = 3).await;
    world.server.0.lock().unwrap().fetches = (0..4).map(|_| Ok(vec![broken()])).collect();
    let error = world.client.fetch(&handle_of(&good()), &world.cache).await.unwrap_err();
    assert_eq!(error.reason(), "CONNECTION_BROKEN");
    assert_eq!(world.server.0.lock().unwrap().offsets, [0; 4]);
}

#[tokio::test]
async fn a_transfer_that_stands_still_ends() {
    let world = world(|options| {
        options.fetch.max_retries = 1;
        options.fetch.stall_timeout = Duration::from_millis(20);
    })
    .await;
    {
        let mut script = world.server.0.lock().unwrap();
        script.hangs = true;
        script.fetches = (0..2).map(|_| Ok(vec![])).collect();
    }
    let error = world.client.fetch(&handle_of(&good()), &world.cache).await.unwrap_err();
    assert!(error.to_string().contains("nothing came"), "{error}");
}

#[tokio::test]
async fn damaged_bytes_never_reach_the_cache() {
    let world = world(|_| {}).await;
    let bytes = good();
    let mut flipped = bytes.clone();
    flipped[700] ^= 1;
    world.server.0.lock().unwrap().fetches = [Ok(vec![chunk(&flipped, 0, bytes.len())])].into();
    let error = world.client.fetch(&handle_of(&bytes), &world.cache).await.unwrap_err();
    assert!(matches!(error, ClientError::DigestMismatch { .. }), "{error}");
    assert_eq!(world.cache.find(&Digest::of(&bytes)), None);
}

#[tokio::test]
async fn an_artifact_that_is_gone_or_too_large_is_not_asked_for_again() {
    let world = world(|options| options.fetch.max_artifact_bytes = 1 << 20).await;
    world.server.0.lock().unwrap().fetches = [Err(refused(Code::NotFound, "NO_SUCH_ARTIFACT"))].into();
    let error = world.client.fetch(&handle_of(&good()), &world.cache).await.unwrap_err();
    assert_eq!(error.reason(), "NO_SUCH_ARTIFACT");
    let huge = signed(Handle { size_bytes: 1 << 50, ..handle_of(&good()) });
    let error = world.client.fetch(&huge, &world.cache).await.unwrap_err();
    assert_eq!(error.reason(), "ARTIFACT_TOO_LARGE");
    assert_eq!(world.server.0.lock().unwrap().offsets.len(), 1);
}

fn event(index: u32, range: Option<(i64, i64)>, event: v1::compile_event::Event) -> Result<v1::CompileEvent, Status> {
    Ok(v1::CompileEvent { index, range: range.map(|(start, end)| v1::Range { start, end }), event: Some(event) })
}

fn queued() -> v1::compile_event::Event {
    v1::compile_event::Event::Queued(v1::Queued { key: vec![1; 32], job_id: "j".into(), position: 0 })
}

fn completed() -> v1::compile_event::Event {
    v1::compile_event::Event::Completed(v1::Completed { n_ready: 2, ..Default::default() })
}

/// The events of one compile, and how it ended.
async fn events(world: &World) -> (Vec<EventKind>, Option<ClientError>) {
    let mut stream = world.client.compile(request()).await.unwrap();
    let mut kinds = Vec::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => kinds.push(event.kind),
            Err(error) => {
                assert!(stream.next().await.is_none(), "an error is the end");
                return (kinds, Some(error));
            }
        }
    }
    (kinds, None)
}

#[tokio::test]
async fn a_daemon_that_is_not_ready_yet_is_waited_for() {
    let world = world(|_| {}).await;
    world.server.0.lock().unwrap().compiles = [
        Err(refused(Code::Unavailable, "NOT_READY")),
        Ok(vec![event(0, Some((1, 16)), queued()), event(0, None, completed())]),
    ]
    .into();
    let (kinds, error) = events(&world).await;
    assert!(error.is_none());
    assert!(matches!(kinds[..], [EventKind::Queued { .. }, EventKind::Completed(_)]));
}

#[tokio::test]
async fn each_try_of_a_compile_is_in_the_callers_trace() {
    let world = world(|_| {}).await;
    world.server.0.lock().unwrap().compiles =
        [Err(refused(Code::Unavailable, "NOT_READY")), Ok(vec![]), Ok(vec![])].into();
    let (trace, span) = (TraceId::from(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c), SpanId::from(0xb7ad_6b71_6920_3331));
    let active = SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE);
    events(&world).with_context(Context::new().with_remote_span_context(active)).await;
    events(&world).await;
    let expected = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    assert_eq!(world.server.0.lock().unwrap().traces, [expected.clone(), expected, None]);
}

#[tokio::test]
async fn what_waiting_does_not_help_is_answered_at_once() {
    let world = world(|_| {}).await;
    for (code, reason) in [(Code::InvalidArgument, "UNKNOWN_OPTION"), (Code::Unavailable, "DRAINING")] {
        world.server.0.lock().unwrap().compiles = [Err(refused(code, reason))].into();
        assert_eq!(world.client.compile(request()).await.unwrap_err().reason(), reason);
    }
}

#[tokio::test]
async fn a_stream_that_is_not_complete_is_an_error() {
    let world = world(|_| {}).await;
    let first = || event(1, Some((4, 4)), queued());
    let scripts: [(Vec<Result<v1::CompileEvent, Status>>, &str); 5] = [
        (vec![first()], "CONNECTION_BROKEN"),
        (vec![first(), Err(Status::unknown("h2 protocol error"))], "CONNECTION_BROKEN"),
        (vec![first(), Err(refused(Code::Internal, "INTERNAL"))], "INTERNAL"),
        (vec![first(), event(2, Some((5, 5)), queued())], "BAD_RESPONSE"),
        (vec![first(), event(1, Some((5, 5)), queued())], "BAD_RESPONSE"),
    ];
    for (script, reason) in scripts {
        world.server.0.lock().unwrap().compiles = [Ok(script)].into();
        let (kinds, error) = events(&world).await;
        assert_eq!(kinds.len(), 1);
        assert_eq!(error.unwrap().reason(), reason);
    }
}

#[tokio::test]
async fn a_budget_ends_the_wait() {
    let world = world(|options| options.compile_budget = Some(Duration::from_millis(30))).await;
    {
        let mut script = world.server.0.lock().unwrap();
        script.hangs = true;
        script.compiles = [Ok(vec![event(0, Some((1, 16)), queued())])].into();
    }
    let (kinds, error) = events(&world).await;
    assert_eq!(kinds.len(), 1);
    let error = error.unwrap();
    assert_eq!(error.reason(), "BUDGET_SPENT");
    assert!(error.falls_back());
}

#[tokio::test]
async fn a_newer_daemons_formats_are_passed_over() {
    let world = world(|_| {}).await;
    let capabilities = world.client.capabilities().await.unwrap();
    assert_eq!(capabilities.version, "9");
    assert_eq!(capabilities.formats, [ArtifactFormat::Inductor]);
}

#[tokio::test]
async fn where_nobody_listens_the_daemon_is_unreachable() {
    let folder = tempfile::tempdir().unwrap();
    for endpoint in [Endpoint::Unix(folder.path().join("none.sock")), Endpoint::Http("127.0.0.1:1".into())] {
        let named = endpoint.to_string();
        let error = Client::connect(endpoint, ClientOptions::default()).await.unwrap_err();
        assert_eq!(error.reason(), "UNREACHABLE");
        assert!(error.to_string().contains(&named), "{error}");
        assert!(error.falls_back());
    }
}

fn manifest() -> Manifest {
    let handle = handle(Some((1, 4)), &[Some((1, 4))]);
    let manifest = Manifest {
        program: "backbone".parse().unwrap(),
        toolchain: handle.toolchain.clone(),
        devices: vec![handle.device.clone()],
        pieces: vec![ManifestPiece { index: 0, entries: vec![Range::new(1, 4).unwrap()], handles: vec![handle] }],
        n_distinct_pieces: 1,
        created_unix_ms: 7,
        signature: None,
    };
    let signature = signer().sign(&Statement::of_manifest(&manifest));
    Manifest { signature: Some(signature), ..manifest }
}

#[tokio::test]
async fn a_manifest_is_the_one_that_was_asked_for_and_whole() {
    let world = world(|_| {}).await;
    let whole = || v1::GetManifestResponse {
        manifest: Some(piecewised_wire::manifest_to_proto(&manifest())),
        manifest_digest: manifest().digest().0.to_vec(),
    };
    let changed = |change: fn(&mut v1::GetManifestResponse)| {
        let mut response = whole();
        change(&mut response);
        Some(response)
    };
    let answers = [
        Some(whole()),
        changed(|response| response.manifest = None),
        changed(|response| response.manifest_digest.clear()),
        changed(|response| response.manifest.as_mut().unwrap().program = "draft".into()),
        changed(|response| response.manifest.as_mut().unwrap().pieces[0].index = 1),
        changed(|response| response.manifest.as_mut().unwrap().pieces[0].handles.clear()),
    ];
    world.server.0.lock().unwrap().manifests.extend(answers);
    let name = "backbone".parse().unwrap();
    assert_eq!(world.client.manifest(&name).await.unwrap(), (manifest(), manifest().digest()));
    for _ in 0..5 {
        assert_eq!(world.client.manifest(&name).await.unwrap_err().reason(), "BAD_RESPONSE");
    }
    let error = world.client.manifest(&name).await.unwrap_err();
    assert_eq!(error.reason(), "NO_SUCH_MANIFEST");
    assert!(check_manifest(&manifest(), &keyring()).is_ok());
    let mut swapped = manifest();
    swapped.pieces[0].index = 1;
    assert_eq!(check_manifest(&swapped, &keyring()).unwrap_err().reason(), "BAD_RESPONSE");
}

#[tokio::test]
async fn the_end_of_a_compile_says_how_far_the_program_is() {
    let world = world(|_| {}).await;
    let status = |digest: &[u8]| v1::ProgramStatus {
        program: "backbone".into(),
        n_pieces: 2,
        n_pieces_ready: 2,
        is_complete: true,
        manifest_digest: digest.to_vec(),
        phases: vec![v1::PhaseTiming { phase: "compile".into(), seconds: 1.5 }],
        ..Default::default()
    };
    for (digest, is_right) in [(vec![3; 32], true), (Vec::new(), true), (vec![3; 31], false)] {
        let program = Some(status(&digest));
        let completed = v1::compile_event::Event::Completed(v1::Completed { program, ..Default::default() });
        world.server.0.lock().unwrap().compiles.push_back(Ok(vec![event(0, None, completed)]));
        let mut stream = world.client.compile(request()).await.unwrap();
        match stream.next().await.unwrap() {
            Ok(Event { kind: EventKind::Completed(completed), .. }) if is_right => {
                let program = completed.program.unwrap();
                assert_eq!((program.n_pieces, program.is_complete), (2, true));
                assert_eq!(program.manifest_digest, (!digest.is_empty()).then_some(Digest([3; 32])));
                assert_eq!(program.phases[0].seconds, 1.5);
            }
            Err(error) if !is_right => assert_eq!(error.reason(), "BAD_RESPONSE"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_snapshot_is_sent_in_parts_and_verified_when_it_comes_back() {
    let world = world(|_| ()).await;
    let name = SnapshotName::new("vllm".into(), "aot".into(), "ab".into()).unwrap();
    let bytes: Vec<u8> = (0..600_000u32).map(|i| (i % 251) as u8).collect();
    world.client.put_snapshot(&name, bytes.clone().into()).await.unwrap();
    let parts = std::mem::take(&mut world.server.0.lock().unwrap().snapshot_parts);
    let mut sent = Vec::new();
    for (i, part) in parts.into_iter().enumerate() {
        match part.part.unwrap() {
            v1::put_snapshot_request::Part::Header(header) => {
                assert_eq!((i, header.total_bytes), (0, 600_000));
                assert_eq!(header.digest, Digest::of(&bytes).0);
            }
            v1::put_snapshot_request::Part::Data(data) => sent.extend(data),
        }
    }
    assert!(sent == bytes);

    let digest = Digest::of(&bytes).0.to_vec();
    let signature = signer().sign(&Statement::of_snapshot(&name, 600_000, &Digest::of(&bytes)));
    let chunk = |from: usize, to: usize| {
        let data = bytes[from..to].to_vec().into();
        let signature = Some(piecewised_wire::signature_to_proto(&signature));
        Ok(v1::FetchSnapshotResponse {
            offset: from as u64,
            data,
            total_bytes: 600_000,
            digest: digest.clone(),
            signature,
        })
    };
    let script = |answers: Vec<Answer<v1::FetchSnapshotResponse>>| {
        world.server.0.lock().unwrap().snapshots = answers.into();
    };
    // Broken, refused for a moment, cut short, whole.
    script(vec![
        Ok(vec![chunk(0, 300_000), Err(Status::unavailable("gone"))]),
        Err(refused(Code::Unavailable, "STORE_FAILED")),
        Ok(vec![chunk(0, 300_000)]),
        Ok(vec![chunk(0, 300_000), chunk(300_000, 600_000)]),
    ]);
    assert!(world.client.fetch_snapshot(&name).await.unwrap() == Some(bytes.clone()));
    script(vec![Err(refused(Code::NotFound, "NO_SUCH_SNAPSHOT"))]);
    assert_eq!(world.client.fetch_snapshot(&name).await.unwrap(), None);

    let flipped = || {
        chunk(300_000, 600_000).map(|chunk| {
            let mut data = chunk.data.to_vec();
            data[7] ^= 1;
            v1::FetchSnapshotResponse { data: data.into(), ..chunk }
        })
    };
    let other = || chunk(300_000, 600_000).map(|chunk| v1::FetchSnapshotResponse { digest: vec![1; 32], ..chunk });
    for (answer, reason) in [
        (vec![chunk(0, 300_000), flipped()], "DIGEST_MISMATCH"),
        (vec![chunk(0, 300_000), other()], "BAD_RESPONSE"),
        (vec![chunk(300_000, 600_000)], "BAD_RESPONSE"),
    ] {
        script(vec![Ok(answer)]);
        assert_eq!(world.client.fetch_snapshot(&name).await.unwrap_err().reason(), reason);
    }
}
