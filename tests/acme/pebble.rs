//! Pebble, an authority for tests, with the name server that it asks.

use std::{
    env, fs,
    io::Write,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::sleep};

use crate::support::{http_client, program::Folder, redis::free_port, tls::Pair};

/// The name that Pebble never issues a certificate for.
pub const BLOCKED: &str = "blocked.example.test";

/// The place of an authority, which may not run yet.
pub struct Place {
    folder: Folder,
    pair: Pair,
    port: u16,
}

/// An authority that runs until this is dropped. It forgets everything then.
pub struct Pebble {
    programs: [Child; 2],
    management: u16,
    pair: Pair,
}

impl Place {
    /// `None` if Pebble is not installed outside of CI; then it prints that the test was skipped.
    pub fn new() -> Option<Self> {
        for program in ["pebble", "pebble-challtestsrv"] {
            // Both print their help, as an error.
            if let Err(error) = Command::new(program).arg("-help").stderr(Stdio::null()).status() {
                assert!(env::var_os("CI").is_none(), "{program} is not installed");
                let _ = writeln!(std::io::stderr(), "SKIPPED {}: {program}: {error}", module_path!());
                return None;
            }
        }
        let (folder, pair) = (Folder::new(), Pair::for_days(2));
        fs::write(folder.path("certificate"), &pair.certificate).expect("a file");
        fs::write(folder.path("key"), &pair.key).expect("a file");
        Some(Self { folder, pair, port: free_port() })
    }

    pub fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.port)
    }

    /// The certificate that a client of this authority has to trust.
    pub fn certificate(&self) -> String {
        self.folder.path("certificate")
    }

    /// The same, for a client of TLS.
    pub fn own(&self) -> CertificateDer<'static> {
        self.pair.der()
    }

    /// Starts it. It asks for proofs at this port of the loopback, by every name, and its certificates live so long.
    pub async fn start(&self, proofs_at: SocketAddr, lifetime: Duration) -> Pebble {
        self.start_with_keys(proofs_at, lifetime, json!({})).await
    }

    /// The same, for servers with one of these keys of accounts that were made elsewhere, by their ids. With none it asks
    /// for no such account.
    pub async fn start_with_keys(&self, proofs_at: SocketAddr, lifetime: Duration, keys: Value) -> Pebble {
        let [management, names, names_management] = [free_port(), free_port(), free_port()];
        let settings = json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.port),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": self.certificate(),
            "privateKey": self.folder.path("key"),
            "httpPort": 1,
            "tlsPort": proofs_at.port(),
            "certificateValidityPeriod": lifetime.as_secs(),
            "domainBlocklist": [BLOCKED],
            "externalAccountBindingRequired": keys != json!({}),
            "externalAccountMACKeys": keys,
        }});
        fs::write(self.folder.path("settings.json"), settings.to_string()).expect("a file");
        let mut pebble = Command::new("pebble");
        pebble.args(["-config", &self.folder.path("settings.json"), "-strict"]);
        pebble.args(["-dnsserver", &format!("127.0.0.1:{names}")]);
        // It refuses some numbers that are good, as an authority may.
        pebble.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "5");
        let mut name_server = Command::new("pebble-challtestsrv");
        name_server.args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]);
        name_server.args(["-dns01", &format!("127.0.0.1:{names}")]);
        name_server.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        name_server.args(["-management", &format!("127.0.0.1:{names_management}")]);
        let programs = [name_server, pebble].map(|mut program| {
            program.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts")
        });
        for port in [names_management, self.port, management] {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        }
        Pebble { programs, management, pair: self.pair.clone() }
    }
}

impl Pebble {
    /// The certificate that signs those of this authority.
    pub async fn root(&self) -> CertificateDer<'static> {
        let trusted =
            reqwest::Certificate::from_pem(self.pair.certificate.as_bytes()).expect("a certificate");
        let client = http_client().tls_certs_only([trusted]).build().expect("a client");
        let url = format!("https://localhost:{}/roots/0", self.management);
        let text = client.get(url).send().await.expect("an answer").bytes().await.expect("a body");
        CertificateDer::from_pem_slice(&text).expect("a certificate")
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for program in &mut self.programs {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}
