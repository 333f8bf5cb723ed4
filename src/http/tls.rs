//! TLS (RFC 8446): the handshake of a connection, and the certificate that it shows.

use std::{io, net::IpAddr, num::NonZero, sync::Arc, thread};

use arc_swap::ArcSwap;
use bytes::Bytes;
use rustls::{
    Error, ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version,
};
use tokio::{net::TcpStream, sync::Semaphore};

use super::{
    metrics::{Handshake, TlsMetrics},
    tls_session::Session,
    tls_socket::{TlsSocket, Wire},
};
use crate::config::Certificate;

/// The protocols that a client may choose (RFC 7301), the better one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Makes encrypted connections with the certificate in force.
pub struct Tls {
    config: Arc<ServerConfig>,
    shown: Arc<Shown>,
    /// The handshakes that are computed at the same time. The others wait here in their order, and not before the
    /// tasks of readers.
    computing: Semaphore,
    metrics: TlsMetrics,
}

/// The certificate that new connections are shown. Those that are open have no use for it.
#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// The result of a handshake that has failed.
fn failure(error: &Error) -> Handshake {
    match error {
        Error::AlertReceived(_) => Handshake::Rejected,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Handshake::Incompatible,
        _ => Handshake::Malformed,
    }
}

impl Tls {
    pub fn new(certificate: &Certificate, metrics: TlsMetrics) -> Self {
        metrics.set_expiry(certificate.expires());
        certificate.log();
        let shown = Arc::new(Shown(ArcSwap::new(certificate.key().clone())));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .expect("the provider has ciphers for both")
            .with_no_client_auth()
            .with_cert_resolver(shown.clone());
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        // One thread is left for the readers.
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let computing = Semaphore::new((threads - 1).max(1));
        Self { config: Arc::new(config), shown, computing, metrics }
    }

    /// Shows another certificate to the connections that come from now on.
    pub fn show(&self, certificate: &Certificate) {
        let before = self.shown.0.swap(certificate.key().clone());
        if before.cert != certificate.key().cert {
            self.metrics.set_expiry(certificate.expires());
            certificate.log();
        }
    }

    /// Makes the handshake of a client from which `head` was read already.
    ///
    /// # Cancel safety
    /// Dropping this ends the connection, and counts it as unfinished.
    pub async fn accept(&self, socket: TcpStream, head: Bytes) -> Result<TlsSocket, Handshake> {
        let mut counted = Counted { metrics: &self.metrics, result: Handshake::Unfinished };
        let made = self.handshake(socket, &head).await;
        counted.result = made.as_ref().err().copied().unwrap_or(Handshake::Done);
        made
    }

    async fn handshake(&self, socket: TcpStream, mut head: &[u8]) -> Result<TlsSocket, Handshake> {
        let session = Session::new(self.config.clone()).map_err(|error| failure(&error))?;
        let mut session = Box::new(session);
        loop {
            while !session.send(&mut Wire(&socket)).map_err(|_| Handshake::Ended)? {
                socket.writable().await.map_err(|_| Handshake::Ended)?;
            }
            if !session.is_handshaking() {
                return Ok(TlsSocket::new(socket, session));
            }
            let read = if head.is_empty() {
                socket.readable().await.map_err(|_| Handshake::Ended)?;
                session.read(&mut Wire(&socket))
            } else {
                session.read(&mut head)
            };
            match read {
                Ok(0) => return Err(Handshake::Ended),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => return Err(Handshake::Ended),
            }
            let computing = self.computing.acquire().await;
            let processed = session.process();
            drop(computing);
            if let Err(error) = processed {
                tracing::debug!(%error, "handshake of TLS failed");
                // The client is told why. If it takes nothing now, it is not waited for.
                let _ = session.send(&mut Wire(&socket));
                return Err(failure(&error));
            }
        }
    }

    /// Counts a client that does not speak TLS, and tells the operator.
    pub fn refused_plain(&self, client: IpAddr) {
        self.metrics.made(Handshake::Plain);
        tracing::warn!(
            %client,
            "a client speaks HTTP without TLS, and this port speaks TLS: let clients use https:// or wss://"
        );
    }
}

/// Counts a handshake when it is dropped.
struct Counted<'a> {
    metrics: &'a TlsMetrics,
    result: Handshake,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.metrics.made(self.result);
    }
}
