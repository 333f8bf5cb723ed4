//! TLS: the handshake, the certificate and its renewal, and the transports over it.

use std::{fs, time::Duration};

use futures_util::{SinkExt, StreamExt, future::join_all};
use rejoin::client::Client;
use rustls::version;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::{
    client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::{
    ask::{Ask, get, publish, publish_all, until_served, within},
    metrics::scrape,
    reader::Reader,
    support::{
        Server,
        client::Transport,
        program::{Folder, Program},
        tls::{BOTH, PAIR, Pair, tunnel},
    },
};

const ASK: &str = "GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

/// A server that speaks TLS, with its own address.
async fn server() -> Server {
    Server::direct(|config| config.certificate = Some(PAIR.parsed())).await
}

/// Sends a text, and reads until the end.
async fn told(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.expect("sent");
    let mut heard = Vec::new();
    within("the end", stream.read_to_end(&mut heard)).await.expect("an end with close_notify");
    String::from_utf8_lossy(&heard).into_owned()
}

async fn counted(server: &Server, result: &str) -> f64 {
    let addr = tunnel(server.addr).await;
    scrape(&Server::elsewhere(addr)).await[&format!("rejoin_tls_handshakes_total{{result=\"{result}\"}}")]
}

#[tokio::test]
async fn both_versions_and_both_protocols_are_spoken_and_none_is_needed() {
    let server = server().await;
    for version in [&version::TLS12, &version::TLS13] {
        for (offered, chosen) in [
            (&["h2", "http/1.1"][..], Some("h2")),
            (&["http/1.1"], Some("http/1.1")),
            (&[], None),
            (&["spdy/1", "http/1.1", "h2"], Some("h2")),
        ] {
            let stream = PAIR.client(&[version], offered).connect(server.addr).await.expect("a handshake");
            let session = stream.get_ref().1;
            assert_eq!(session.protocol_version(), Some(version.version));
            assert_eq!(session.alpn_protocol(), chosen.map(str::as_bytes), "{offered:?}");
            if chosen != Some("h2") {
                assert!(told(stream, ASK).await.starts_with("HTTP/1.1 200 "));
            }
        }
    }
    let refused = PAIR.client(BOTH, &["spdy/1"]).connect(server.addr).await;
    assert!(refused.expect_err("no common protocol").to_string().contains("NoApplicationProtocol"));
    assert_eq!(counted(&server, "incompatible").await, 1.0);
}

#[tokio::test]
async fn streams_of_http2_share_one_connection_by_alpn() {
    let server = server().await;
    let stream = PAIR.client(BOTH, &["h2"]).connect(server.addr).await.expect("a handshake");
    let (mut ask, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let mut streams = Vec::new();
    for number in 0..8 {
        let request = http::Request::get(format!("https://localhost/topics/t{number}?transport=ndjson"));
        let (answer, _) = ask.send_request(request.body(()).expect("a request"), true).expect("sent");
        streams.push(within("an answer", answer).await.expect("an answer").into_body());
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let through = Server::elsewhere(tunnel(server.addr).await);
        publish(&through, &format!("t{number}"), format!("text {number}")).await;
        let mut heard = String::new();
        while !heard.contains(&format!("text {number}")) {
            let piece = within("a message", stream.data()).await.expect("it goes on").expect("no error");
            let _ = stream.flow_control().release_capacity(piece.len());
            heard += &String::from_utf8_lossy(&piece);
        }
    }
}

#[tokio::test]
async fn a_client_without_tls_is_told_and_others_are_counted_by_their_reason() {
    let server = server().await;
    for text in [ASK, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"] {
        let plain = TcpStream::connect(server.addr).await.expect("a connection");
        let heard = told(plain, text).await;
        let (head, body) = heard.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert!(body.starts_with("This port speaks TLS"), "{body}");
    }
    let other = Pair::for_days(1);
    other.client(BOTH, &[]).connect(server.addr).await.expect_err("another certificate is trusted");
    let mut garbage = TcpStream::connect(server.addr).await.expect("a connection");
    garbage.write_all(b"\x16\x03\x01\x00\x05hello").await.expect("sent");
    within("the end", garbage.read_to_end(&mut Vec::new())).await.expect("an alert and the end");
    let mut gone = TcpStream::connect(server.addr).await.expect("a connection");
    gone.write_all(b"\x16\x03\x01\x00\xff").await.expect("sent");
    gone.shutdown().await.expect("our side ends");
    within("the end", gone.read_to_end(&mut Vec::new())).await.expect("the end");
    for (result, count) in [("plain", 3.0), ("malformed", 1.0), ("ended", 1.0)] {
        assert_eq!(counted(&server, result).await, count, "{result}");
    }
    // The alert of a client may come after it has left.
    within("an alert", async { while counted(&server, "rejected").await < 1.0 {} }).await;
}

/// A client that sends half of a handshake, or nothing after it, must not keep its connection.
#[tokio::test]
async fn a_handshake_that_does_not_end_has_the_read_timeout() {
    let server = Server::direct(|config| {
        config.certificate = Some(PAIR.parsed());
        config.read_timeout = Duration::from_millis(300);
    })
    .await;
    let mut silent = TcpStream::connect(server.addr).await.expect("a connection");
    let mut half = TcpStream::connect(server.addr).await.expect("a connection");
    half.write_all(b"\x16\x03\x01\x00\xff\x01").await.expect("sent");
    let mut idle = PAIR.client(BOTH, &[]).connect(server.addr).await.expect("a handshake");
    within("the ends", async {
        assert_eq!(silent.read(&mut [0]).await.expect("the end"), 0);
        assert_eq!(half.read(&mut [0]).await.expect("the end"), 0);
        while idle.read(&mut [0]).await.is_ok_and(|count| count > 0) {}
    })
    .await;
    assert_eq!(counted(&server, "unfinished").await, 1.0);
}

#[tokio::test]
async fn every_transport_reads_over_tls() {
    let server = Server::over_tls(|_| {}).await;
    let mut readers = Vec::new();
    for transport in Transport::ALL {
        for _ in 0..3 {
            readers.push(Reader::open(&server, transport, "topic=a").await);
        }
    }
    for round in 0..5 {
        let ids = publish_all(&server, "a", 20 * round + 1..=20 * round + 20).await;
        let read = join_all(readers.iter_mut().map(|reader| reader.ids(20))).await;
        assert!(read.iter().all(|read| *read == ids), "{read:?}");
    }
    // More than one record, and more than the session may hold back.
    let long = "x".repeat(200_000);
    let id = publish(&server, "a", long.clone()).await;
    for reader in &mut readers {
        let message = reader.next().await;
        assert_eq!((message["id"].as_str(), message["data"].as_str()), (Some(&*id), Some(&*long)));
    }
}

/// A member whose socket is full leaves with what rustls holds back, and misses nothing.
#[tokio::test]
async fn a_reader_over_tls_that_reads_late_gets_everything_in_order() {
    let server = server().await;
    let through = Server::elsewhere(tunnel(server.addr).await);
    let client = PAIR.client(BOTH, &["http/1.1"]);
    let mut late = Vec::new();
    for _ in 0..3 {
        let mut stream = client.connect(server.addr).await.expect("a handshake");
        let ask = "GET /topics/a?transport=ndjson HTTP/1.1\r\nhost: localhost\r\n\r\n";
        stream.write_all(ask.as_bytes()).await.expect("sent");
        late.push(stream);
    }
    until_served(&through, 3).await;
    // More than the system takes for a reader that does not read, and less than the log retains.
    let text = "x".repeat(100_000);
    for number in 0..80 {
        publish(&through, "a", format!("{number} {text}")).await;
    }
    for stream in &mut late {
        let mut heard = Vec::new();
        for number in 0..80 {
            until_heard(stream, &mut heard, &format!("\"{number} xxx")).await;
        }
    }
}

/// The session holds back what a full socket does not take. No other message pushes it out here, and no heartbeat.
#[tokio::test]
async fn the_last_bytes_of_a_full_socket_leave_once_the_client_reads() {
    let server = Server::direct(|config| {
        config.certificate = Some(PAIR.parsed());
        config.heartbeat = Duration::from_secs(300);
    })
    .await;
    let through = Server::elsewhere(tunnel(server.addr).await);
    let (client, text) = (PAIR.client(BOTH, &["http/1.1"]), "x".repeat(30_000));
    let mut streams = Vec::new();
    // One of these counts is that with which the socket is just full.
    for count in 1..=24 {
        for _ in 0..2 {
            let tcp = TcpSocket::new_v4().expect("a socket");
            tcp.set_recv_buffer_size(4096).expect("a narrow socket");
            let tcp = tcp.connect(server.addr).await.expect("a connection");
            let mut stream = client.over(tcp).await.expect("a handshake");
            let ask = format!("GET /topics/t{count}?transport=ndjson HTTP/1.1\r\nhost: localhost\r\n\r\n");
            stream.write_all(ask.as_bytes()).await.expect("sent");
            streams.push((count, stream));
        }
    }
    until_served(&through, 48).await;
    for count in 1..=24 {
        for number in 1..=count {
            publish(&through, &format!("t{count}"), format!("{number} {text}")).await;
        }
    }
    join_all(streams.iter_mut().map(async |(count, stream)| {
        let mut heard = Vec::new();
        for number in 1..=*count {
            until_heard(stream, &mut heard, &format!("\"{number} xxx")).await;
        }
        until_heard(stream, &mut heard, "x\"}").await;
    }))
    .await;
}

/// Reads until a text has come, which must be the next one, and forgets what is before it.
async fn until_heard(stream: &mut TlsStream<TcpStream>, heard: &mut Vec<u8>, text: &str) {
    loop {
        if let Some(at) = heard.windows(text.len()).position(|part| part == text.as_bytes()) {
            heard.drain(..at + text.len());
            return;
        }
        let keep = heard.len().saturating_sub(text.len());
        heard.drain(..keep);
        assert!(
            within(text, stream.read_buf(heard)).await.expect("it goes on") > 0,
            "it ended before {text}"
        );
    }
}

#[tokio::test]
async fn a_reader_over_tls_that_reads_nothing_is_closed_after_the_write_timeout() {
    let server = Server::direct(|config| {
        config.certificate = Some(PAIR.parsed());
        config.write_timeout = Duration::from_secs(1);
    })
    .await;
    let through = Server::elsewhere(tunnel(server.addr).await);
    let client = PAIR.client(BOTH, &["http/1.1"]);
    let mut held = Vec::new();
    for ask in [
        "GET /topics/a?transport=sse HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "GET /topics/a HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: AAECAwQFBgcICQoLDA0ODw==\r\n\r\n",
    ] {
        let mut stream = client.connect(server.addr).await.expect("a handshake");
        stream.write_all(ask.as_bytes()).await.expect("sent");
        held.push(stream);
    }
    until_served(&through, 2).await;
    let text = "x".repeat(200_000);
    for _ in 0..60 {
        publish(&through, "a", text.clone()).await;
    }
    until_served(&through, 0).await;
    let metrics = get(&through, "/metrics").answer().await;
    let line = metrics.text().lines().find(|line| line.starts_with("rejoin_slow_closes_total"));
    assert_eq!(line, Some("rejoin_slow_closes_total 2"));
}

#[tokio::test]
async fn a_page_of_the_server_is_its_own_by_https_alone() {
    let server = Server::over_tls(|_| {}).await;
    let port = server.addr.port();
    let ask = async |origin: String| {
        get(&server, "/topics/a?wait=0").header("origin", origin).answer().await.status
    };
    assert_eq!(ask(format!("https://127.0.0.1:{port}")).await, 200);
    assert_eq!(ask(format!("http://127.0.0.1:{port}")).await, 403);
}

/// The certificate that a new connection is shown.
async fn shown(addr: std::net::SocketAddr, expected: &[&Pair]) -> usize {
    for (number, pair) in expected.iter().enumerate() {
        if pair.client(BOTH, &[]).connect(addr).await.is_ok() {
            return number;
        }
    }
    panic!("another certificate is shown");
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_and_open_connections_stay() {
    let (old, new) = (Pair::for_days(30), Pair::for_days(60));
    let folder = Folder::new();
    let (certificate, key) = (folder.path("certificate.pem"), folder.path("key.pem"));
    fs::write(&certificate, &old.certificate).expect("a file");
    fs::write(&key, &old.key).expect("a file");
    let mut program = Program::start(&["--tls-cert", &certificate, "--tls-key", &key]).await;
    let addr = program.server.addr;
    let open = old.client(BOTH, &[]).connect(addr).await.expect("a handshake");
    let request = "wss://localhost/topics/a".into_client_request().expect("a URL");
    let (mut socket, _) = client_async(request, open).await.expect("a WebSocket");

    fs::write(&certificate, &new.certificate).expect("a file");
    program.until_logged("the key does not fit the first certificate").await;
    program.until_logged("certificate rejected; the previous one stays in force").await;
    assert_eq!(shown(addr, &[&old, &new]).await, 0, "one file alone changes nothing");
    fs::write(&key, &new.key).expect("a file");
    within("the new one", async {
        while shown(addr, &[&old, &new]).await == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    fs::write(&key, "no key").expect("a file");
    program.until_logged("expected a private key in PEM").await;
    assert_eq!(shown(addr, &[&new]).await, 0);

    socket.send(Message::text(r#"{"type":"publish","topic":"a","data":"still here"}"#)).await.expect("sent");
    let mut heard = String::new();
    while !heard.contains("still here") {
        heard += &within("a frame", socket.next()).await.expect("it is open").expect("a frame").to_string();
    }
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

#[tokio::test]
async fn the_client_says_which_url_a_port_wants() {
    let (tls, plain) = (server().await, Server::direct(|_| {}).await);
    for (server, scheme, told) in [
        (&tls, "http", "the server speaks TLS at this port: use https://"),
        (&plain, "https", "the server does not speak TLS at this port: use http://"),
    ] {
        let client = Client::new(&format!("{scheme}://{}", server.addr)).expect("a URL");
        let error = within("an answer", client.stats()).await.expect_err("the other scheme").to_string();
        assert!(error.ends_with(told), "{error}");
    }
}
