//! Certificates, clients that trust them, and a way for clients without TLS to a server that speaks it.

use std::{
    fs,
    net::SocketAddr,
    process::Command,
    sync::{Arc, LazyLock},
};

use rejoin::config::Certificate;
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
    version,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::program::Folder;

pub const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

/// A certificate of `localhost` and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Pair {
    /// One that begins now, and ends after so many days. openssl makes it.
    pub fn for_days(days: u32) -> Self {
        let folder = Folder::new();
        let (certificate, key) = (folder.path("certificate"), folder.path("key"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", &days.to_string(), "-subj", "/CN=localhost"])
            .args([
                "-addext",
                "subjectAltName=DNS:localhost",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ])
            .args(["-keyout", &key, "-out", &certificate])
            .output()
            .expect("openssl is there");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let read = |path| fs::read_to_string(path).expect("a file");
        Self { certificate: read(certificate), key: read(key) }
    }

    pub fn parsed(&self) -> Certificate {
        Certificate::from_pem(&self.certificate, &self.key).expect("a certificate and its key")
    }

    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("a certificate")
    }

    /// A client that trusts this certificate alone.
    pub fn client(&self, versions: &[&'static SupportedProtocolVersion], protocols: &[&str]) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(self.der()).expect("a certificate");
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Client(TlsConnector::from(Arc::new(config)))
    }
}

#[derive(Clone)]
pub struct Client(TlsConnector);

impl Client {
    pub async fn connect(&self, addr: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        self.over(TcpStream::connect(addr).await?).await
    }

    pub async fn over(&self, tcp: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        tcp.set_nodelay(true)?;
        self.0.connect(ServerName::try_from("localhost").expect("a name"), tcp).await
    }
}

/// The certificate of all servers that need no special one.
pub static PAIR: LazyLock<Pair> = LazyLock::new(|| Pair::for_days(30));

/// Takes connections without TLS, and passes them on by TLS to the server at `to`. Returns its address.
pub async fn tunnel(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("a bound address");
    let client = PAIR.client(BOTH, &[]);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let client = client.clone();
            tokio::spawn(async move {
                let _ = near.set_nodelay(true);
                if let Ok(mut far) = client.connect(to).await {
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    addr
}
