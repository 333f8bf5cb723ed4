//! The certificate of a server: its renewal, and its end.

use std::{fs, time::Duration};

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::{
    client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::{
    ask::within,
    support::{
        program::{Folder, Program},
        tls::{BOTH, Pair},
    },
};

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
    program.until_logged("configuration rejected; the previous one stays in force").await;
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

#[tokio::test]
async fn a_certificate_that_ends_soon_is_warned_of() {
    for (days, expected) in [(3, "ends soon"), (30, "certificate of --tls-cert in force")] {
        let (pair, folder) = (Pair::for_days(days), Folder::new());
        fs::write(folder.path("c"), &pair.certificate).expect("a file");
        fs::write(folder.path("k"), &pair.key).expect("a file");
        let mut program =
            Program::start(&["--tls-cert", &folder.path("c"), "--tls-key", &folder.path("k")]).await;
        program.until_logged(expected).await;
    }
}
