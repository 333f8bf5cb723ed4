//! The beginning of a connection: the PROXY protocol, the handshake of TLS, and the bytes that tell the protocol of its
//! requests.

use std::future::poll_fn;

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    App,
    client_address::Peer,
    linger::Linger,
    proxy_protocol::{self, BadBeginning},
    socket::Socket,
    tls::Tls,
};

/// The beginning of a connection that speaks HTTP/2 with prior knowledge (RFC 9113 §3.4). Three bytes are
/// enough, because no method of HTTP/1.1 begins so.
const HTTP2_PREFACE: &[u8; 3] = b"PRI";
/// The beginning of a connection that speaks TLS: a record of its handshake (RFC 8446 §5.1).
const TLS_HANDSHAKE: &[u8; 2] = &[0x16, 0x03];
/// The answer to a client that speaks HTTP where TLS is spoken.
const PLAIN_TO_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 45\r\nconnection: close\r\n\r\nThis port speaks TLS: use https:// or wss://\n";

/// True if the first bytes are those of HTTP/2.
pub fn is_http2(head: &[u8]) -> bool {
    head.starts_with(HTTP2_PREFACE)
}

/// True if the first bytes are those of a client that speaks TLS.
pub fn is_tls(head: &[u8]) -> bool {
    head.starts_with(TLS_HANDSHAKE)
}

/// Reads the header of the PROXY protocol. Returns the client, and the bytes that came after it. `None` if the connection
/// ends before, or begins with something else.
pub async fn read_client(socket: &mut TcpStream, peer: Peer) -> Option<(Peer, BytesMut)> {
    match proxy_protocol::read(socket, peer.ip()).await {
        Ok((named, read)) => Some((named.over_the_same(peer), read)),
        Err(BadBeginning::NoHeader) => {
            tracing::warn!(
                client = %peer.ip(),
                "closed a connection of a trusted proxy: it did not begin with the PROXY protocol; let the proxy \
                 send it, or take its address out of --trusted-proxy"
            );
            None
        }
        Err(BadBeginning::Ended | BadBeginning::Read(_)) => None,
    }
}

/// Reads the beginning of a connection, of which `head` was read: the handshake of TLS, and the bytes that tell the
/// protocol of its requests. `None` if it ends before, or begins with something else.
pub async fn begin(
    app: &App,
    mut socket: TcpStream,
    head: BytesMut,
    client: Peer,
) -> Option<(Bytes, Socket)> {
    let mut head = read_head(&mut socket, head).await?;
    let tls = app.tls.as_ref().filter(|_| client.is_encrypted());
    let Some(tls) = tls else { return Some((head, Socket::Plain(socket))) };
    let mut socket = encrypt(tls, client, socket, head).await?;
    head = read_head(&mut socket, BytesMut::new()).await?;
    Some((head, socket))
}

/// Reads until there are enough bytes to tell a protocol. `None` if the connection ends before.
async fn read_head(socket: &mut (impl AsyncRead + Unpin), mut head: BytesMut) -> Option<Bytes> {
    head.reserve(HTTP2_PREFACE.len());
    while head.len() < HTTP2_PREFACE.len() {
        if !matches!(socket.read_buf(&mut head).await, Ok(1..)) {
            return None;
        }
    }
    Some(head.freeze())
}

/// Makes the handshake of TLS. A client that speaks without TLS is told.
async fn encrypt(tls: &Tls, client: Peer, mut socket: TcpStream, head: Bytes) -> Option<Socket> {
    if head[0] == TLS_HANDSHAKE[0] {
        let made = tls.accept(socket, head).await;
        if let Err(failure) = made {
            tracing::debug!(client = %client.ip(), why = failure.as_str(), "connection ended: no handshake of TLS");
        }
        return made.ok().map(Socket::Tls);
    }
    tls.refused_plain(client.ip());
    socket.write_all(PLAIN_TO_TLS).await.ok()?;
    // The system would drop the answer if bytes of the client were left unread.
    let mut linger = Linger::default();
    linger.note_sending();
    let _ = poll_fn(|cx| linger.poll_shutdown(cx, &mut socket)).await;
    None
}
