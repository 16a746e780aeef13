//! TLS of the guarded client: rustls with ring, TLS 1.2 or newer, the system's certificate authorities.
//!
//! Called once, when the client is made. There is no switch that turns verification off.
//!
//! Invariant: a machine without certificate authorities still starts; its https sends then fail and say why.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption};
use rustls::client::{Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, NamedGroup, SignatureScheme};

use super::timing;

/// Sessions kept for resumption, about as many as endpoints that are busy at once.
const SESSIONS_MAX: usize = 1_024;

const NO_AUTHORITIES: &str = "this server has no certificate authorities: install the system's CA certificates \
     (package ca-certificates) or set SSL_CERT_FILE";

/// The client's configuration with the system's certificate authorities.
///
/// # Errors
/// A ring without TLS 1.2 and 1.3, which does not exist.
pub(super) fn system_config() -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> =
        match rustls_platform_verifier::Verifier::new(Arc::clone(&provider)) {
            Ok(verifier) => Arc::new(verifier),
            Err(error) => {
                tracing::warn!(%error, "no certificate authorities, https sends will fail");
                Arc::new(NoAuthorities)
            }
        };
    config_with(provider, verifier)
}

/// A configuration that trusts what `verifier` trusts.
pub(super) fn config_with(
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = Resumption::store(Arc::new(NotingStore(ClientSessionMemoryCache::new(SESSIONS_MAX))));
    Ok(config)
}

#[cfg(test)]
pub(super) fn config_without_authorities() -> Result<ClientConfig, Error> {
    config_with(Arc::new(rustls::crypto::ring::default_provider()), Arc::new(NoAuthorities))
}

/// Stands in where the system trusts nobody.
#[derive(Debug)]
struct NoAuthorities;

impl ServerCertVerifier for NoAuthorities {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Err(Error::General(NO_AUTHORITIES.to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General(NO_AUTHORITIES.to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General(NO_AUTHORITIES.to_owned()))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        // Some must be offered for a handshake to get as far as the refusal that says why.
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A session store that notes when a handshake begins: rustls asks for the key exchange hint then, once.
#[derive(Debug)]
struct NotingStore(ClientSessionMemoryCache);

impl ClientSessionStore for NotingStore {
    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        timing::mark(|marks, now| marks.tls_began = Some(now));
        self.0.kx_hint(server_name)
    }

    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(server_name, group);
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(server_name, value);
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(server_name)
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        self.0.remove_tls12_session(server_name);
    }

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(server_name, value);
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(server_name)
    }
}
