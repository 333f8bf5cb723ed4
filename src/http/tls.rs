//! TLS (RFC 8446): the handshake of a connection, and the certificate that it shows.

use std::{
    io,
    net::IpAddr,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use rustls::{
    Error, ServerConfig, ServerConnection,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version,
};
use tokio::{net::TcpStream, sync::Semaphore};

#[cfg(feature = "acme")]
use super::acme::Proofs;
use super::{
    metrics::{Handshake, TlsMetrics},
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

/// The certificate that new connections are shown, if there is one already. Those that are open have no use for it.
#[derive(Debug, Default)]
struct Shown {
    certificate: ArcSwapOption<CertifiedKey>,
    #[cfg(feature = "acme")]
    proofs: Proofs,
    /// A client came while there was no certificate, and the operator was told.
    has_told: AtomicBool,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        #[cfg(feature = "acme")]
        if Proofs::are_asked_for(&hello) {
            return self.proofs.of(&hello);
        }
        let _ = &hello;
        self.certificate.load_full()
    }
}

/// The result of a handshake that has failed.
fn failure(error: &Error, shown: &Shown) -> Handshake {
    match error {
        Error::General(_) if shown.certificate.load().is_none() => Handshake::NoCertificate,
        Error::AlertReceived(_) => Handshake::Rejected,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Handshake::Incompatible,
        _ => Handshake::Malformed,
    }
}

impl Tls {
    /// Without a certificate each handshake fails until there is one.
    pub fn new(certificate: Option<&Certificate>, metrics: TlsMetrics) -> Self {
        let shown = Arc::<Shown>::default();
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .expect("the provider has ciphers for both")
            .with_no_client_auth()
            .with_cert_resolver(shown.clone());
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        // A client that offers another one too does not get this.
        #[cfg(feature = "acme")]
        if certificate.is_none() {
            config.alpn_protocols.push(Proofs::PROTOCOL.to_vec());
        }
        // One thread is left for the readers.
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let computing = Semaphore::new((threads - 1).max(1));
        let tls = Self { config: Arc::new(config), shown, computing, metrics };
        if let Some(certificate) = certificate {
            tls.show(certificate);
        }
        tls
    }

    /// Shows another certificate to the connections that come from now on.
    pub fn show(&self, certificate: &Certificate) {
        if self.replace(certificate) {
            certificate.log();
        }
    }

    /// True if the certificate is another one than before.
    pub(super) fn replace(&self, certificate: &Certificate) -> bool {
        let before = self.shown.certificate.swap(Some(certificate.key().clone()));
        self.metrics.set_expiry(certificate.expires());
        before.is_none_or(|before| before.cert != certificate.key().cert)
    }

    /// The proofs that an authority finds here.
    #[cfg(feature = "acme")]
    pub(super) fn proofs(&self) -> &Proofs {
        &self.shown.proofs
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
        let session =
            ServerConnection::new(self.config.clone()).map_err(|error| failure(&error, &self.shown))?;
        let mut session = Box::new(session);
        loop {
            while session.wants_write() {
                socket.writable().await.map_err(|_| Handshake::Ended)?;
                match session.write_tls(&mut Wire(&socket)) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    written => drop(written.map_err(|_| Handshake::Ended)?),
                }
            }
            if !session.is_handshaking() {
                #[cfg(feature = "acme")]
                if session.alpn_protocol() == Some(Proofs::PROTOCOL) {
                    // The connection has no other use (RFC 8737 §3).
                    return Err(Handshake::Proof);
                }
                return Ok(TlsSocket::new(socket, session));
            }
            let read = if head.is_empty() {
                socket.readable().await.map_err(|_| Handshake::Ended)?;
                session.read_tls(&mut Wire(&socket))
            } else {
                session.read_tls(&mut head)
            };
            match read {
                Ok(0) => return Err(Handshake::Ended),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => return Err(Handshake::Ended),
            }
            let computing = self.computing.acquire().await;
            let processed = session.process_new_packets();
            drop(computing);
            if let Err(error) = processed {
                tracing::debug!(%error, "handshake of TLS failed");
                // The client is told why. If it takes nothing now, it is not waited for.
                let _ = session.write_tls(&mut Wire(&socket));
                let failure = failure(&error, &self.shown);
                if failure == Handshake::NoCertificate && !self.shown.has_told.swap(true, Relaxed) {
                    tracing::warn!(
                        "a client cannot be served: there is no certificate of --tls-acme yet; more such clients are only counted"
                    );
                }
                return Err(failure);
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
