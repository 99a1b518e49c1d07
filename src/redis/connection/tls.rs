//! TLS through rustls.

use std::{io, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, Error, InvalidMessage, RootCertStore,
        crypto::{CryptoProvider, ring},
        pki_types::ServerName,
    },
};

use crate::{
    config_error::ConfigError,
    decision::{Failure, FailureKind},
    redis::connection::classify::io_failure,
};

/// A TLS client for one server: versions 1.2 and 1.3.
pub(crate) struct Tls {
    server: ServerName<'static>,
    roots: Arc<RootCertStore>,
}

impl Tls {
    pub(crate) fn new(host: &str) -> Result<Self, ConfigError> {
        let server = ServerName::try_from(host.to_owned()).map_err(|_| {
            ConfigError::new("the host of the URL is not a valid DNS name or address")
        })?;
        let roots = webpki_roots::TLS_SERVER_ROOTS.iter().cloned();
        Ok(Self {
            server,
            roots: Arc::new(roots.collect()),
        })
    }

    #[cfg(test)]
    pub(crate) fn trust(&mut self, certificate: &[u8]) {
        let mut roots = RootCertStore::clone(&self.roots);
        let added = roots.add(certificate.to_vec().into());
        added.expect("the certificate of an authority");
        self.roots = Arc::new(roots);
    }

    pub(crate) async fn connect(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Failure> {
        // The provider of the application, if it has installed one. None is installed here, because
        // an application that installs one later would then fail.
        let provider = CryptoProvider::get_default()
            .cloned()
            .unwrap_or_else(|| Arc::new(ring::default_provider()));
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failure(error.clone(), error))?
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        let connected = connector.connect(self.server.clone(), stream).await;
        connected.map_err(classify)
    }
}

fn classify(error: io::Error) -> Failure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner.cloned() {
        Some(inner) => failure(inner, error),
        None => io_failure(error),
    }
}

fn failure(error: Error, source: impl std::error::Error + Send + Sync + 'static) -> Failure {
    let advice = match error {
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented => {
            "the server's certificate is not accepted: it must be valid for the host of the URL, \
             and signed by an authority in the webpki roots"
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the server does not use TLS on this port: use redis://, or the TLS port"
        }
        _ => {
            "the TLS handshake failed: see the error, and compare the server's versions and ciphers"
        }
    };
    Failure {
        advice: Some(advice),
        ..Failure::new(FailureKind::Misconfigured, source)
    }
}

#[cfg(test)]
mod tests;
