//! Who may be at the other end: whoever has a key that this host trusts.

use super::{Fingerprint, Identity, Peers};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use std::sync::{Arc, OnceLock};

/// ring's primitives; what processors have instructions for comes first.
fn provider() -> Arc<CryptoProvider> {
    use rustls::crypto::ring::{cipher_suite, default_provider};
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..default_provider()
    })
}

/// Accepts a certificate by its key alone.
#[derive(Debug)]
pub(super) struct Pinned {
    peers: Peers,
    /// Who must be there; anybody who is trusted otherwise.
    expected: Option<String>,
    algorithms: WebPkiSupportedAlgorithms,
    /// The key that was shown.
    pub shown: OnceLock<Fingerprint>,
}

impl Pinned {
    fn new(identity: &Identity, expected: Option<&str>, provider: &CryptoProvider) -> Arc<Self> {
        Arc::new(Self {
            peers: identity.peers.clone(),
            expected: expected.map(str::to_owned),
            algorithms: provider.signature_verification_algorithms,
            shown: OnceLock::new(),
        })
    }

    fn accepts(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let shown = Fingerprint::of(certificate)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let shown = *self.shown.get_or_init(|| shown);
        let trusted = match &self.expected {
            Some(name) => self.peers.key_of(name) == Some(shown),
            None => self.peers.name_of(shown).is_some(),
        };
        // the other side is told by the alert `access_denied`
        let refused = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        if trusted { Ok(()) } else { Err(refused) }
    }

    /// The signature proves that who shows the certificate has its key.
    fn signed(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

/// TLS 1.2 is not offered; whoever comes here all the same is refused.
fn too_old() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("only TLS 1.3 is spoken here".into()))
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.accepts(certificate).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        too_old()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.accepts(certificate).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        too_old()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// For who calls: `expected` must answer.
pub(super) fn client(identity: &Identity, expected: &str) -> Result<(ClientConfig, Arc<Pinned>), Error> {
    let provider = provider();
    let pinned = Pinned::new(identity, Some(expected), &provider);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(pinned.clone())
        .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())?;
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok((config, pinned))
}

/// For who is called: anybody who is trusted may come.
pub(super) fn server(identity: &Identity) -> Result<(ServerConfig, Arc<Pinned>), Error> {
    let provider = provider();
    let pinned = Pinned::new(identity, None, &provider);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(pinned.clone())
        .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())?;
    // nothing is resumed
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok((config, pinned))
}

/// The application protocol (ALPN): a connection meant for something else that has the same key comes to nothing.
const PROTOCOL: &[u8] = b"godwit";
