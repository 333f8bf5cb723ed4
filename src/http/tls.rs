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
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use rustls::{
    Error, ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version,
};
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, interval_at},
};

#[cfg(feature = "acme")]
use super::acme::Proofs;
use super::{
    metrics::{Handshake, TlsMetrics},
    refusal::OneAMinute,
    tls_session::Session,
    tls_socket::{TlsSocket, Wire},
};
use crate::config::Certificate;

/// The protocols that a client may choose (RFC 7301), the better one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

const REMIND_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Makes encrypted connections with the certificate in force.
pub struct Tls {
    config: Arc<ServerConfig>,
    shown: Arc<Shown>,
    /// The handshakes that are computed at the same time. The others wait here in their order, and not before the
    /// tasks of readers.
    computing: Semaphore,
    told_of_plain: OneAMinute,
    metrics: TlsMetrics,
}

/// The certificate that new connections are shown, if there is one already. Those that are open have no use for it.
#[derive(Debug, Default)]
struct Shown {
    certificate: ArcSwapOption<Certificate>,
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
        self.certificate.load().as_ref().map(|certificate| certificate.key().clone())
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
        let tls = Self {
            config: Arc::new(config),
            shown,
            computing,
            told_of_plain: OneAMinute::default(),
            metrics,
        };
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
        let before = self.shown.certificate.swap(Some(Arc::new(certificate.clone())));
        self.metrics.set_expiry(certificate.expires());
        before.is_none_or(|before| before.key().cert != certificate.key().cert)
    }

    /// The proofs that an authority finds here.
    #[cfg(feature = "acme")]
    pub(super) fn proofs(&self) -> &Proofs {
        &self.shown.proofs
    }

    /// Warns once a day while the certificate ends soon.
    pub async fn remind(&self) -> ! {
        let mut day = interval_at(Instant::now() + REMIND_EVERY, REMIND_EVERY);
        loop {
            day.tick().await;
            if let Some(certificate) = &*self.shown.certificate.load() {
                certificate.warn_if_it_ends_soon();
            }
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
        let session = Session::new(self.config.clone()).map_err(|error| failure(&error, &self.shown))?;
        let mut session = Box::new(session);
        loop {
            while !session.send(&mut Wire(&socket)).map_err(|_| Handshake::Ended)? {
                socket.writable().await.map_err(|_| Handshake::Ended)?;
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

    /// Counts a client that does not speak TLS, and tells the operator of one a minute.
    pub fn refused_plain(&self, client: IpAddr) {
        self.metrics.made(Handshake::Plain);
        if self.told_of_plain.is_due() {
            tracing::warn!(
                %client,
                "a client speaks HTTP without TLS, and this port speaks TLS: let clients use https:// or wss://; the log \
                 has one of these a minute, and rejoin_tls_handshakes_total counts all"
            );
        }
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

#[cfg(test)]
pub mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use prometheus::Registry;
    use tracing::{
        Event, Metadata, Subscriber,
        span::{Attributes, Id, Record},
    };

    use super::*;

    /// Counts the lines that are warnings.
    #[derive(Clone, Default)]
    pub struct Warnings(Arc<AtomicUsize>);

    impl Warnings {
        pub fn count(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    impl Subscriber for Warnings {
        fn enabled(&self, line: &Metadata<'_>) -> bool {
            *line.level() == tracing::Level::WARN
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    /// It was warned of only when it was read, so a server that ran for months said nothing.
    #[tokio::test(start_paused = true)]
    async fn a_certificate_that_ends_soon_is_warned_of_each_day() {
        for (ends_at, expected) in [(REMIND_EVERY, 4), (100 * 365 * REMIND_EVERY, 0)] {
            let warnings = Warnings::default();
            let _guard = tracing::subscriber::set_default(warnings.clone());
            let certificate = Certificate::that_ends_at(std::time::UNIX_EPOCH + ends_at);
            let tls = Tls::new(Some(&certificate), TlsMetrics::new(&Registry::new()));
            let _ = tokio::time::timeout(3 * REMIND_EVERY + REMIND_EVERY / 2, tls.remind()).await;
            // One more when it was read.
            assert_eq!(warnings.count(), expected);
        }
    }
}
