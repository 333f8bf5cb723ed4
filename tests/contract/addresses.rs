//! The address of a client: its own, or the one that a trusted proxy names in a header or by the PROXY protocol.

use std::{net::IpAddr, time::Duration};

use rejoin::{Config, config::ForwardedHeader};
use reqwest::RequestBuilder;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::{
    access_log::Lines,
    ask::within,
    support::{Server, http_client, program::Program},
};

/// The proxy that the operator trusts, and a stranger.
const PROXY: &str = "127.0.0.1";
const STRANGER: &str = "127.0.0.2";

fn trusting(config: &mut Config) {
    config.trusted_proxies = vec![format!("{PROXY}/32").parse().expect("a network")];
    config.access_log = rejoin::config::AccessLogForm::Json;
}

fn get_from(from: &str, server: &Server, path: &str) -> RequestBuilder {
    let from: IpAddr = from.parse().expect("an address");
    http_client().local_address(from).build().expect("a client").get(server.http(path))
}

/// Sends a request with the client that has made it, and so from its address.
trait Send {
    async fn status_from_there(self) -> u16;
}

impl Send for RequestBuilder {
    async fn status_from_there(self) -> u16 {
        within("an answer", self.send()).await.expect("an answer").status().as_u16()
    }
}

async fn connect_from(from: &str, server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(format!("{from}:0").parse().expect("an address")).expect("an address of the loopback");
    socket.connect(server.addr).await.expect("a connection")
}

/// Sends these bytes, and returns what the server sends until it closes the connection.
async fn sent_from(from: &str, server: &Server, bytes: &[u8]) -> String {
    let mut wire = connect_from(from, server).await;
    wire.write_all(bytes).await.expect("sent");
    let mut answer = Vec::new();
    let _ = within("the end of the connection", wire.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn only_a_trusted_peer_names_another_client() {
    let server = Server::direct(trusting).await;
    let mut lines = Lines::of(&server);
    for (from, headers, client) in [
        (PROXY, vec![("x-forwarded-for", "6.6.6.6, 192.0.2.1")], "192.0.2.1"),
        (PROXY, vec![("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=6.6.6.6")], "192.0.2.1"),
        (PROXY, vec![("forwarded", "for=6.6.6.6")], PROXY),
        (PROXY, vec![], PROXY),
        (STRANGER, vec![("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=192.0.2.1")], STRANGER),
    ] {
        let mut request = get_from(from, &server, "/health/live");
        for (name, value) in &headers {
            request = request.header(*name, *value);
        }
        assert_eq!(request.status_from_there().await, 200);
        assert_eq!(lines.next().await["client"], client, "{from} {headers:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_header_of_rfc_7239_counts_instead_if_it_is_chosen() {
    let server = Server::direct(|config| {
        trusting(config);
        config.forwarded_header = ForwardedHeader::Forwarded;
    })
    .await;
    let mut lines = Lines::of(&server);
    let both = get_from(PROXY, &server, "/health/live")
        .header("x-forwarded-for", "6.6.6.6")
        .header("forwarded", "for=6.6.6.6, for=\"[2001:db8::1]:4711\";proto=https");
    both.status_from_there().await;
    assert_eq!(lines.next().await["client"], "2001:db8::1");
    get_from(PROXY, &server, "/health/live").header("x-forwarded-for", "6.6.6.6").status_from_there().await;
    assert_eq!(lines.next().await["client"], PROXY);
    server.stop().await;
}

#[tokio::test]
async fn host_and_scheme_are_believed_of_a_trusted_peer_only() {
    let server = Server::direct(|config| {
        trusting(config);
        config.allowed_origins = vec!["https://push.example".parse().expect("an origin")];
    })
    .await;
    let ask = async |from: &str, host: &str, proto: &str, origin: &str| {
        let request = get_from(from, &server, "/topics/a?wait=0")
            .header("host", "127.0.0.1")
            .header("x-forwarded-host", host)
            .header("x-forwarded-proto", proto);
        let request = if origin.is_empty() { request } else { request.header("origin", origin) };
        request.status_from_there().await
    };
    assert_eq!(ask(PROXY, "push.example:8443", "https", "https://push.example:8443").await, 200);
    assert_eq!(ask(PROXY, "push.example:8443", "wss", "https://push.example:8443").await, 200);
    assert_eq!(ask(PROXY, "push.example:8443", "http", "https://push.example:8443").await, 403);
    assert_eq!(ask(PROXY, "push.example:8443", "https", "http://push.example:8443").await, 403);
    // An open server does not know this name, in either place: a page that was rebound to this address could write the
    // header of a proxy beside it.
    let rebound = get_from(PROXY, &server, "/topics/a?wait=0").header("host", "evil.example");
    assert_eq!(rebound.header("x-forwarded-host", "localhost").status_from_there().await, 403);
    assert_eq!(ask(PROXY, "evil.example", "https", "").await, 403);
    assert_eq!(ask(STRANGER, "evil.example", "https", "").await, 200, "it counts for nothing");
    assert_eq!(ask(STRANGER, "push.example:8443", "https", "https://push.example:8443").await, 403);
    server.stop().await;
}

const REQUEST: &str = "GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fn of_proxy(header: &[u8]) -> Vec<u8> {
    [header, REQUEST.as_bytes()].concat()
}

fn speaking_proxy_protocol(config: &mut Config) {
    trusting(config);
    config.proxy_protocol = true;
    config.read_timeout = Duration::from_secs(1);
}

#[tokio::test]
async fn a_trusted_peer_names_its_client_by_the_proxy_protocol() {
    let server = Server::direct(speaking_proxy_protocol).await;
    let mut lines = Lines::of(&server);
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x13\xc0\x00\x02\x01\x7f\x00\x00\x01\x12\x67\x00\x50\x03\x00\x04abcd";
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    for (header, client) in [
        (&b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 80\r\n"[..], "192.0.2.1"),
        (b"PROXY TCP6 2001:db8::1 ::1 4711 80\r\n", "2001:db8::1"),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 4711 80\r\n", "192.0.2.1"),
        (b"PROXY UNKNOWN\r\n", PROXY),
        (v2, "192.0.2.1"),
        (local, PROXY),
    ] {
        let answer = sent_from(PROXY, &server, &of_proxy(header)).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{}: {answer}", header.escape_ascii());
        assert_eq!(lines.next().await["client"], client, "{}", header.escape_ascii());
    }
    // A client that the proxy names is no proxy.
    let forged = REQUEST.replace("Connection", "X-Forwarded-For: 6.6.6.6\r\nConnection");
    for header in ["PROXY TCP4 192.0.2.1 127.0.0.1 4711 80\r\n", "PROXY UNKNOWN\r\n"] {
        sent_from(PROXY, &server, format!("{header}{forged}").as_bytes()).await;
        assert_ne!(lines.next().await["client"], "6.6.6.6");
    }
    // HTTP/2 begins after the header too: the server sends its settings.
    let mut wire = connect_from(PROXY, &server).await;
    let preface = b"PROXY UNKNOWN\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    wire.write_all(preface).await.expect("sent");
    let mut frame = [0; 9];
    within("the settings", wire.read_exact(&mut frame)).await.expect("a frame");
    assert_eq!(frame[3], 4, "{frame:?}");
    drop(wire);
    server.stop().await;
}

#[tokio::test]
async fn the_proxy_protocol_is_required_of_trusted_peers_and_never_read_from_others() {
    let server = Server::direct(speaking_proxy_protocol).await;
    let mut lines = Lines::of(&server);
    assert_eq!(sent_from(PROXY, &server, REQUEST.as_bytes()).await, "", "it is closed without an answer");
    let forged = of_proxy(b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 80\r\n");
    let answer = sent_from(STRANGER, &server, &forged).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let answer = sent_from(STRANGER, &server, REQUEST.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(lines.next().await["client"], STRANGER);
    // A header that does not come, or not to its end, is not waited for longer than any request.
    for begun in ["", "PROXY TCP4 192.0.2.1", "PROXY UNKNOWN\r\nGE"] {
        assert_eq!(sent_from(PROXY, &server, begun.as_bytes()).await, "", "{begun}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_proxy_that_nobody_trusts_is_warned_of_once() {
    let mut program = Program::start(&[]).await;
    let told = "a proxy has forwarded a request, and no proxy is trusted";
    for _ in 0..3 {
        let request = get_from(STRANGER, &program.server, "/health/live");
        assert_eq!(request.header("x-forwarded-for", "192.0.2.1").status_from_there().await, 200);
    }
    program.until_logged(told).await;
    let log = program.terminate().await.log;
    assert_eq!(log.matches(told).count(), 1, "{log}");
    assert!(log.contains(&format!("\"client\":\"{STRANGER}\"")), "{log}");

    let program = Program::start(&["--trusted-proxy", "192.0.2.0/24"]).await;
    get_from(STRANGER, &program.server, "/health/live")
        .header("forwarded", "for=192.0.2.1")
        .status_from_there()
        .await;
    let log = program.terminate().await.log;
    assert!(!log.contains(told), "{log}");
}

/// Lines of the log that are about a client name it.
#[tokio::test]
async fn a_refusal_is_logged_with_the_address_of_the_client() {
    let mut program = Program::start(&["--trusted-proxy", PROXY, "--jwt-secret", &"x".repeat(32)]).await;
    let ask = || get_from(PROXY, &program.server, "/topics/a").header("x-forwarded-for", "192.0.2.1");
    ask().bearer_auth("no-token").status_from_there().await;
    ask().header("origin", "https://elsewhere.example").status_from_there().await;
    for told in ["refused an API key", "a page of another origin"] {
        program.until_logged(told).await;
    }
    let log = program.terminate().await.log;
    let about =
        log.lines().filter(|line| line.contains("refused an API key") || line.contains("another origin"));
    assert_eq!(about.filter(|line| line.contains("\"client\":\"192.0.2.1\"")).count(), 2, "{log}");
}
