//! A certificate authority of one test's own, and the certificates that it issues, as files.
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::scene::Scene;

/// Signs certificates.
pub struct Authority {
    directory: PathBuf,
    certificate: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// File of the certificate.
    pub certificate: PathBuf,
    /// File of the key.
    pub key: PathBuf,
}

impl Authority {
    /// A new one, whose own certificate is `<name>-ca.pem` in the scene's directory.
    pub fn new(scene: &Scene, name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = scene.path().join(format!("{name}-ca.pem"));
        replace(&certificate, &params.self_signed(&key)?.pem())?;
        Ok(Self { directory: scene.path().to_owned(), certificate, issuer: Issuer::new(params, key) })
    }

    /// File of its own certificate.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Issues a certificate for servers and clients at 127.0.0.1 that calls itself `name` and `localhost`. Issued
    /// again, it takes the place of the old one in the same files, whichever authority that was from.
    pub fn issue(&self, name: &str) -> Result<Identity> {
        let mut params = CertificateParams::new([name.to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let file = |end: &str| self.directory.join(format!("{name}.{end}"));
        let identity = Identity { certificate: file("pem"), key: file("key") };
        replace(&identity.key, &key.serialize_pem())?;
        replace(&identity.certificate, &params.signed_by(&key, &self.issuer)?.pem())?;
        Ok(identity)
    }
}

/// Each file in one piece: whoever reads it finds the old or the new.
fn replace(path: &Path, content: &str) -> Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, content)?;
    Ok(std::fs::rename(fresh, path)?)
}
