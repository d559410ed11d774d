//! Certificate authorities and the certificates that they sign, as files.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use piecewised_client::Credentials;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
    name: String,
}

impl Authority {
    /// One of this name; its files go into the folder.
    pub(crate) fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, folder: folder.to_owned(), name: name.to_owned() };
        write(&authority.certificate(), &authority.issuer.pem());
        authority
    }

    /// Its own certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join(format!("{}.pem", self.name))
    }

    /// Signs a certificate for a name; the files of it and of its key.
    pub(crate) fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        self.sign_as(name, CertificateParams::new(vec![name.to_owned()]).unwrap())
    }

    /// The same of one that has ended.
    pub(crate) fn sign_expired(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        self.sign_as(name, params)
    }

    fn sign_as(&self, name: &str, params: CertificateParams) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |ending: &str| self.folder.join(format!("{}-{name}.{ending}.pem", self.name));
        write(&file("cert"), &certificate.pem());
        write(&file("key"), &key.serialize_pem());
        (file("cert"), file("key"))
    }

    /// What a client of a daemon of this authority has, with a certificate for this name.
    pub(crate) fn client(&self, name: &str) -> Credentials {
        let (cert, key) = self.sign(name);
        Credentials { ca: Some(self.certificate()), cert: Some(cert), key: Some(key), token: None }
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
