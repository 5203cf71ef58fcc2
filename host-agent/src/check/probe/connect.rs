//! A probe's own connection, plain or over TLS.

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    },
};
use tokio_util::either::Either;

use super::ProbeError;
use crate::config::{CheckTls, Verify};

pub(super) type Stream = Either<TcpStream, TlsStream<TcpStream>>;

/// What is spoken over a connection, as TLS calls it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Alpn {
    Http1,
    Http2,
}

pub(super) async fn tcp(address: SocketAddr) -> Result<TcpStream, ProbeError> {
    TcpStream::connect(address).await.map_err(|source| ProbeError::Connect { address, source })
}

/// Connects, over TLS if that is asked for.
pub(super) async fn open(address: SocketAddr, tls: Option<&CheckTls>, alpn: Alpn) -> Result<Stream, ProbeError> {
    let stream = tcp(address).await?;
    let Some(tls) = tls else { return Ok(Either::Left(stream)) };
    let failed = |source| ProbeError::Tls { address, source };
    let mut config = config(&tls.verify, failed).await?;
    config.alpn_protocols = match alpn {
        Alpn::Http1 => vec![b"http/1.1".to_vec()],
        Alpn::Http2 => vec![b"h2".to_vec()],
    };
    let name = tls.server_name.clone().unwrap_or_else(|| ServerName::from(address.ip()));
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(failed)?;
    Ok(Either::Right(stream))
}

async fn config(verify: &Verify, failed: impl Fn(io::Error) -> ProbeError) -> Result<ClientConfig, ProbeError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| failed(io::Error::other(error)))?;
    let config = match verify {
        Verify::Authority(path) => builder.with_root_certificates(roots(path).await?),
        Verify::Nothing => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))),
    };
    Ok(config.with_no_client_auth())
}

/// Read for each probe, so that renewed certificates count with the next one.
async fn roots(path: &Path) -> Result<RootCertStore, ProbeError> {
    let unusable = |reason: String| ProbeError::Authority { path: path.to_owned(), reason };
    let pem = tokio::fs::read(path).await.map_err(|error| unusable(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() { Err(unusable("it holds no certificate in PEM".to_owned())) } else { Ok(roots) }
}

/// Takes any certificate: whether a service answers is asked, not who it is. The handshake itself is still verified.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
