//! What this side shows a daemon, and what it wants to see of one: TLS files and a token, by option or by environment.
//!
//! All are files, so that no secret stands on a command line, and the token's is read again when it changes.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tonic::{
    Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, ClientTlsConfig, Identity},
};

use crate::{ClientError, Endpoint};

/// The files. A field that is absent is not used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// Who signs daemons' certificates, PEM: needed for `https://`.
    pub ca: Option<PathBuf>,
    /// This client's certificate, PEM; with `key`.
    pub cert: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
    /// The bearer token: a file with nothing else in it.
    pub token: Option<PathBuf>,
}

impl Credentials {
    /// With what the environment has (`PIECEWISED_CA`, `PIECEWISED_CERT`, `PIECEWISED_KEY`, `PIECEWISED_TOKEN`) for what was not given.
    #[must_use]
    pub fn resolve(self, environment: impl Fn(&str) -> Option<String>) -> Self {
        let file = |given: Option<PathBuf>, name| {
            given.or_else(|| environment(name).filter(|text| !text.is_empty()).map(PathBuf::from))
        };
        Self {
            ca: file(self.ca, "PIECEWISED_CA"),
            cert: file(self.cert, "PIECEWISED_CERT"),
            key: file(self.key, "PIECEWISED_KEY"),
            token: file(self.token, "PIECEWISED_TOKEN"),
        }
    }

    pub(crate) fn tls(&self) -> Result<ClientTlsConfig, ClientError> {
        let bad = |problem: &str| ClientError::BadCredentials { problem: problem.into() };
        let Some(ca) = &self.ca else {
            return Err(bad(
                "https needs to know who signs the daemon's certificate; name that file with PIECEWISED_CA (ca)",
            ));
        };
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
        match (&self.cert, &self.key) {
            (None, None) => Ok(tls),
            (Some(cert), Some(key)) => Ok(tls.identity(Identity::from_pem(read(cert)?, read(key)?))),
            _ => Err(bad(
                "a certificate needs its key, and a key its certificate; set both of PIECEWISED_CERT (cert) and PIECEWISED_KEY (key)",
            )),
        }
    }

    /// What adds the token to each call; refused where others would see it.
    pub(crate) fn tokens(&self, endpoint: &Endpoint) -> Result<TokenOf, ClientError> {
        let Some(path) = &self.token else { return Ok(TokenOf(None)) };
        if !endpoint.is_private() {
            let problem = format!(
                "a token would be sent to {endpoint} for all on the way to read; use https, or leave PIECEWISED_TOKEN (token) out"
            );
            return Err(ClientError::BadCredentials { problem });
        }
        let file = TokenFile { path: path.clone(), read: Mutex::new(None) };
        // Now, for the message.
        file.value()?;
        Ok(TokenOf(Some(Arc::new(file))))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    fs::read(path)
        .map_err(|error| ClientError::BadCredentials { problem: format!("{} can't be read: {error}", path.display()) })
}

/// When and what file it was.
type Stamp = (u64, u64, i64, i64);

#[derive(Debug)]
struct TokenFile {
    path: PathBuf,
    read: Mutex<Option<(Stamp, MetadataValue<Ascii>)>>,
}

impl TokenFile {
    /// The header's value; read again when the file is another one.
    fn value(&self) -> Result<MetadataValue<Ascii>, ClientError> {
        let bad = |problem: String| ClientError::BadCredentials {
            problem: format!("the token {}: {problem}", self.path.display()),
        };
        let found = fs::metadata(&self.path).map_err(|error| bad(error.to_string()))?;
        let stamp = (found.dev(), found.ino(), found.mtime(), found.mtime_nsec());
        let mut before = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, value)) = &*before
            && *when == stamp
        {
            return Ok(value.clone());
        }
        let text = fs::read_to_string(&self.path).map_err(|error| bad(error.to_string()))?;
        let mut value: MetadataValue<Ascii> = match text.trim() {
            "" => return Err(bad("there is nothing in it".into())),
            token => {
                format!("Bearer {token}").parse().map_err(|_| bad("it has characters that no header has".into()))?
            }
        };
        // Never shown by what prints headers.
        value.set_sensitive(true);
        *before = Some((stamp, value.clone()));
        Ok(value)
    }
}

/// Adds the token to each call.
#[derive(Debug, Clone)]
pub(crate) struct TokenOf(Option<Arc<TokenFile>>);

impl Interceptor for TokenOf {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(file) = &self.0 {
            let value = file.value().map_err(|error| Status::unauthenticated(error.to_string()))?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}
