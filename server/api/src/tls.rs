//! TLS for TCP: the daemon's certificate, and the CA whose clients' certificates count; both are read again when their files change.
//!
//! Handshakes run side by side, so that a client that does not go on with one holds up nobody, and each has so long and no longer.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
    server::TlsStream,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected as _, TcpConnectInfo, TlsConnectInfo};

use crate::{
    access::{Watched, check_private},
    connections::{Admitted, Connections, GREETING_DEADLINE, Refusal},
};

/// Handshakes at a time; further connections wait in the system's queue.
const MAX_HANDSHAKES: usize = 256;

/// The files of a daemon's TLS, all PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The daemon's certificate, and those between it and its CA.
    pub certificate: PathBuf,
    /// Its private key, mode 0600.
    pub key: PathBuf,
    /// Who signs clients' certificates; `None`: they are not asked for one.
    pub client_ca: Option<PathBuf>,
    /// Whether a client without a certificate may connect, because it may have a token.
    pub is_certificate_optional: bool,
}

/// Files that make no TLS.
#[derive(Debug, Error)]
#[error("TLS cannot be served with {}: {problem}", .path.display())]
pub struct BadTls {
    path: PathBuf,
    problem: String,
}

/// TLS as its files say now.
#[derive(Debug, Clone)]
pub struct Tls(Watched<ServerConfig>);

impl Tls {
    /// Reads the files, and again whenever one of them changes.
    ///
    /// # Errors
    /// [`BadTls`].
    pub fn new(files: TlsFiles) -> Result<Self, BadTls> {
        let paths = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()];
        let paths = paths.into_iter().flatten().cloned().collect();
        Watched::start("the certificates", paths, move || config(&files)).map(Self)
    }

    /// Connections that have shaken hands.
    pub(crate) fn accept(
        self,
        listener: TcpListener,
        connections: Arc<Connections>,
        stop: CancellationToken,
    ) -> ReceiverStream<io::Result<Admitted<TlsStream<TcpStream>, TlsConnectInfo<TcpConnectInfo>>>> {
        let (ready, shaken) = mpsc::channel(64);
        tokio::spawn(async move {
            let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
            loop {
                let (stream, place) = tokio::select! {
                    () = stop.cancelled() => return,
                    () = ready.closed() => return,
                    accepted = connections.next(&listener) => accepted,
                };
                let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
                let (acceptor, ready) = (TlsAcceptor::from(self.0.get()), ready.clone());
                tokio::spawn(async move {
                    let shaken = tokio::time::timeout(GREETING_DEADLINE, acceptor.accept(stream)).await;
                    drop(permit);
                    match shaken {
                        // Nobody takes it: the daemon ends.
                        Ok(Ok(stream)) => {
                            let info = stream.connect_info();
                            drop(ready.send(Ok(Admitted::new(stream, place, info))).await);
                        }
                        Ok(Err(error)) => place.refuse(Refusal::Tls, &format!("TLS: {error}")),
                        Err(_) => place.refuse(Refusal::Silent, "TLS: the handshake took too long"),
                    }
                });
            }
        });
        ReceiverStream::new(shaken)
    }
}

fn config(files: &TlsFiles) -> Result<ServerConfig, BadTls> {
    let bad = |path: &Path, problem: String| BadTls { path: path.to_owned(), problem };
    check_private(&files.key).map_err(|problem| bad(&files.key, problem))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| bad(&files.key, error.to_string()))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&files.certificate, error.to_string()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| bad(path, error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if files.is_certificate_optional { verifier.allow_unauthenticated() } else { verifier };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| bad(path, error.to_string()))?)
        }
    };
    let chain = certificates(&files.certificate)?;
    let mut config =
        builder.with_single_cert(chain, key).map_err(|error| bad(&files.certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BadTls> {
    let bad = |problem: String| BadTls { path: path.to_owned(), problem };
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(|error| bad(error.to_string()))?;
    if found.is_empty() { Err(bad("there is no certificate in it".into())) } else { Ok(found) }
}
