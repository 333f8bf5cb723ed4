//! A browser's side: TLS, the name `push.example`, and an address of its own on the loopback.

use std::{fs, net::IpAddr, sync::Arc};

use futures_util::{SinkExt, StreamExt};
use reqwest::{Certificate, Client, RequestBuilder};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::{front::Front, support::http_client, within};

/// No proxy has this address.
pub const ADDRESS: &str = "127.0.0.2";

pub struct Visitor {
    client: Client,
    origin: String,
    addr: std::net::SocketAddr,
    certificate: String,
}

impl Visitor {
    pub fn of(front: &Front) -> Self {
        let certificate = front.folder.path("push.pem");
        let pem = fs::read(&certificate).expect("a file");
        let client = http_client()
            .tls_certs_only([Certificate::from_pem(&pem).expect("a certificate")])
            .resolve("push.example", front.addr)
            .local_address(ADDRESS.parse::<IpAddr>().expect("an address"))
            .build()
            .expect("a client");
        Self { client, origin: front.origin(), addr: front.addr, certificate }
    }

    /// The origin of the server's own page.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.origin))
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.origin))
    }

    /// A request to the server itself.
    pub fn around_the_proxy(&self, front: &Front, path: &str) -> RequestBuilder {
        if front.ends_tls {
            return self.client.post(front.server.server.http(path));
        }
        self.client.post(format!("https://push.example:{}{path}", front.server.server.addr.port()))
    }

    /// Publishes, and returns the id.
    pub async fn publish(&self, topic: &str, text: &str) -> String {
        let sent = self.post(&format!("/topics/{topic}")).body(text.to_owned()).send().await;
        let answer: serde_json::Value = sent.expect("an answer").json().await.expect("JSON");
        answer["id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// The HTTP version of the answer, and its body.
    pub async fn curl_http2(&self, path: &str) -> (String, String) {
        let port = self.addr.port();
        let output = tokio::process::Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "20", "--http2", "--interface", ADDRESS])
            .args(["--cacert", &self.certificate, "--resolve", &format!("push.example:{port}:127.0.0.1")])
            .args(["--write-out", "\n%{http_version}", &format!("{}{path}", self.origin)])
            .output()
            .await
            .expect("curl is there");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let (body, version) = text.rsplit_once('\n').expect("a version");
        (version.to_owned(), body.to_owned())
    }

    /// A connection over TLS on which nothing was said yet.
    pub async fn connection(&self) -> TlsStream<TcpStream> {
        let der = CertificateDer::from_pem_file(&self.certificate).expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(der).expect("a certificate");
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let tcp = TcpSocket::new_v4().expect("a socket");
        tcp.bind(format!("{ADDRESS}:0").parse().expect("an address")).expect("an address of the loopback");
        let tcp = tcp.connect(self.addr).await.expect("a connection");
        let name = ServerName::try_from("push.example").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("TLS")
    }

    /// A WebSocket as a page of the server opens it.
    pub async fn socket(&self, path: &str) -> Socket {
        let tls = self.connection().await;
        let mut request =
            format!("{}{path}", self.origin.replace("https", "wss")).into_client_request().expect("a URL");
        request.headers_mut().insert("origin", self.origin.parse().expect("a value"));
        request.headers_mut().insert("sec-websocket-protocol", "rejoin.v1".parse().expect("a value"));
        let (socket, answer) = client_async(request, tls).await.expect("a WebSocket");
        assert_eq!(answer.headers()["sec-websocket-protocol"], "rejoin.v1");
        Socket(socket)
    }
}

pub struct Socket(WebSocketStream<TlsStream<TcpStream>>);

impl Socket {
    /// The next text.
    pub async fn next(&mut self) -> String {
        loop {
            let message = within("a frame", self.0.next()).await.expect("it is open").expect("a frame");
            if let Message::Text(text) = message {
                return text.to_string();
            }
        }
    }

    pub async fn send(&mut self, command: &str) {
        self.0.send(Message::text(command)).await.expect("sent");
    }
}
