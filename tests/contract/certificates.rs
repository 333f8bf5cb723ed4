//! The certificate of a server: the listeners that show it, its renewal, and its end.

use std::{fs, net::SocketAddr, process::Stdio, time::Duration};

use futures_util::{StreamExt, future::join_all, stream::iter};
use reqwest::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};
use tokio_rustls::client::TlsStream;

use crate::{
    ask::{publish, until_served, within},
    listeners::ask_over,
    support::{
        Server,
        program::{Folder, Program, address},
        tls::{BOTH, Pair},
    },
    tls::{ASK, told},
};

/// The files of a certificate.
struct Files {
    certificate: String,
    key: String,
    folder: Folder,
}

impl Files {
    fn of(pair: &Pair) -> Self {
        let folder = Folder::new();
        let files = Self { certificate: folder.path("certificate.pem"), key: folder.path("key.pem"), folder };
        fs::write(&files.certificate, &pair.certificate).expect("a file");
        fs::write(&files.key, &pair.key).expect("a file");
        files
    }

    /// A server with this certificate.
    async fn serve(&self, more: &[&str]) -> Program {
        let flags = ["--tls-cert", &self.certificate, "--tls-key", &self.key];
        Program::start(&[more, &flags].concat()).await
    }
}

#[tokio::test]
async fn listeners_for_plain_http_stay_plain_beside_those_with_the_certificate() {
    let pair = Pair::for_days(30);
    let files = Files::of(&pair);
    let socket = files.folder.path("s");
    let unix = format!("unix:{socket}");
    let listen = ["--listen", "127.0.0.1:0", "--listen", "http://127.0.0.1:0", "--listen", &unix];
    let mut program = files.serve(&[&listen[..], &["--admin-listen", "127.0.0.1:0"]].concat()).await;
    let urls = program.urls(4).await;
    let [public, plain, of_socket, operators] = &urls[..] else { panic!("four listeners: {urls:?}") };
    assert_eq!(*of_socket, unix);
    for addr in [address(public, "https"), address(operators, "https")] {
        let stream = pair.client(BOTH, &[]).connect(addr).await.expect("a handshake");
        assert!(told(stream, ASK).await.starts_with("HTTP/1.1 200 "));
        let refused = told(TcpStream::connect(addr).await.expect("a connection"), ASK).await;
        assert!(refused.starts_with("HTTP/1.1 400 ") && refused.contains("speaks TLS"), "{refused}");
    }
    let plain = address(plain, "http");
    assert!(pair.client(BOTH, &[]).connect(plain).await.is_err());
    let answer = told(TcpStream::connect(plain).await.expect("a connection"), ASK).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(ask_over(&socket, Method::GET, "/health/live", "").await.0, 200);
}

/// The certificate that a new connection is shown.
async fn shown(addr: SocketAddr, expected: &[&Pair]) -> usize {
    for (number, pair) in expected.iter().enumerate() {
        if pair.client(BOTH, &[]).connect(addr).await.is_ok() {
            return number;
        }
    }
    panic!("another certificate is shown");
}

/// How many connections read while the certificate changes. The handshakes take the most time of this test, since both
/// sides are built without optimization.
const READERS: usize = 1000;

/// The four transports.
const READS: [&str; 4] = [
    "GET /topics/a HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
     sec-websocket-version: 13\r\nsec-websocket-key: AAECAwQFBgcICQoLDA0ODw==\r\n\r\n",
    "GET /topics/a?transport=sse HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "GET /topics/a?transport=ndjson HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "GET /topics/a?after=0&wait=60 HTTP/1.1\r\nhost: localhost\r\n\r\n",
];

/// The same number of readers over each transport. The polls come last, because the server answers them after a minute.
async fn readers(addr: SocketAddr, pair: &Pair) -> Vec<TlsStream<TcpStream>> {
    let client = pair.client(BOTH, &["http/1.1"]);
    let open = async |number: usize| {
        let mut stream = client.connect(addr).await.expect("a handshake");
        stream.write_all(READS[number * READS.len() / READERS].as_bytes()).await.expect("sent");
        stream
    };
    iter(0..READERS).map(open).buffer_unordered(16).collect().await
}

/// Reads until this text has come. Returns if it came, and not the end of the connection.
async fn is_told(stream: &mut TlsStream<TcpStream>, text: &str) -> bool {
    let mut heard = Vec::new();
    let read = async {
        while !heard.windows(text.len()).any(|part| part == text.as_bytes()) {
            if !stream.read_buf(&mut heard).await.is_ok_and(|count| count > 0) {
                return false;
            }
        }
        true
    };
    within(text, read).await
}

/// The report of `openssl s_client` about a handshake. It trusts this certificate alone, and offers HTTP/2.
async fn openssl(addr: SocketAddr, trusted: &str, version: &str) -> String {
    let connect = ["s_client", "-connect", &addr.to_string(), "-CAfile", trusted, "-verify_return_error"];
    let mut openssl = Command::new("openssl");
    openssl.args(connect).args(["-verify_hostname", "localhost", "-alpn", "h2", version]);
    let output = within("openssl", openssl.stdin(Stdio::null()).output()).await.expect("openssl is there");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_and_open_connections_stay() {
    let (old, new) = (Pair::for_days(30), Pair::for_days(60));
    let files = Files::of(&old);
    let Files { certificate, key, .. } = &files;
    // The WebSockets answer no pings, and the server drops a client that is silent for two heartbeats.
    let mut program = files
        .serve(&["--listen", "127.0.0.1:0", "--listen", "http://127.0.0.1:0", "--heartbeat", "10m"])
        .await;
    let addr = program.server.addr;
    let plain = address(&program.urls(2).await[1], "http");
    let plain = Server::elsewhere(plain);
    let mut open = readers(addr, &old).await;
    until_served(&plain, READERS as u64).await;

    fs::write(certificate, &new.certificate).expect("a file");
    program.until_logged("the key does not fit the first certificate").await;
    program.until_logged("certificate rejected; the previous one stays in force").await;
    assert_eq!(shown(addr, &[&old, &new]).await, 0, "one file alone changes nothing");
    fs::write(key, &new.key).expect("a file");
    within("the new one", async {
        while shown(addr, &[&old, &new]).await == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    for (version, spoken) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let told = openssl(addr, certificate, version).await;
        for expected in ["Verification: OK", "ALPN protocol: h2", &format!("New, {spoken}, ")] {
            assert!(told.contains(expected), "{expected}: {told}");
        }
    }
    fs::write(key, "no key").expect("a file");
    program.until_logged("expected a private key in PEM").await;
    assert_eq!(shown(addr, &[&new]).await, 0);

    until_served(&plain, READERS as u64).await;
    publish(&plain, "a", "still here").await;
    let told = join_all(open.iter_mut().map(|stream| is_told(stream, "still here"))).await;
    assert_eq!(told.into_iter().filter(|is_told| *is_told).count(), READERS);
}

/// The server warned each day of a certificate that lives for a few days alone.
#[tokio::test]
async fn a_new_certificate_with_a_short_life_is_not_warned_of() {
    for days in [3, 30] {
        let (pair, folder) = (Pair::for_days(days), Folder::new());
        fs::write(folder.path("c"), &pair.certificate).expect("a file");
        fs::write(folder.path("k"), &pair.key).expect("a file");
        let mut program =
            Program::start(&["--tls-cert", &folder.path("c"), "--tls-key", &folder.path("k")]).await;
        program.until_logged("certificate of --tls-cert in force").await;
        let ended = program.terminate().await;
        assert!(!ended.log.contains("ends soon"), "{}", ended.log);
    }
}
