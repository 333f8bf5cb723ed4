//! A WebSocket, with `tungstenite` as the client.

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, client_async, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest, handshake::client::Response},
};

use super::{Headers, cursor_after};
use crate::{ask::within, support::Server};

/// One connection, after its handshake.
pub struct Socket {
    pub response: Response,
    pub opening: Value,
    pub cursor: String,
    pub stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Socket {
    pub async fn open(server: &Server, path: &str) -> Self {
        Self::open_with(server, path, &[]).await
    }

    pub async fn open_with(server: &Server, path: &str, headers: Headers<'_>) -> Self {
        let mut socket = Self::shake_hands(server, path, headers).await;
        socket.opening = socket.next().await;
        socket
    }

    /// Opens a connection with small buffers.
    pub async fn open_narrow(server: &Server, path: &str) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(32 << 10).expect("a size that systems allow");
        let wire = within("a connection", socket.connect(server.addr)).await.expect("a server that listens");
        let handshake = client_async(server.ws(path), MaybeTlsStream::Plain(wire));
        let (stream, response) = within(path, handshake).await.expect("a handshake");
        let mut socket = Self { response, opening: Value::Null, cursor: String::new(), stream };
        socket.opening = socket.next().await;
        socket
    }

    /// Returns after the handshake.
    pub async fn shake_hands(server: &Server, path: &str, headers: Headers<'_>) -> Self {
        let mut request = server.ws(path).into_client_request().expect("a URL of our own making");
        for (name, value) in headers {
            let name: reqwest::header::HeaderName = name.parse().expect("a header's name");
            request.headers_mut().append(name, value.parse().expect("a header's value"));
        }
        match within(path, connect_async(request)).await {
            Ok((stream, response)) => Self { response, opening: Value::Null, cursor: String::new(), stream },
            Err(error) => panic!("{error:?} to {path}"),
        }
    }

    pub async fn send(&mut self, command: Value) {
        self.send_message(Message::text(command.to_string())).await;
    }

    pub async fn send_message(&mut self, message: Message) {
        within("the socket takes a message", self.stream.send(message)).await.expect("an open socket");
    }

    /// Sends a command, and returns the next frame.
    pub async fn ask(&mut self, command: Value) -> Value {
        self.send(command).await;
        self.next().await
    }

    /// The next message of any kind.
    pub async fn next_message(&mut self) -> Message {
        match within("a WebSocket message", self.stream.next()).await {
            Some(Ok(message)) => message,
            other => panic!("a message, and not {other:?}"),
        }
    }

    /// The next text or binary message.
    pub async fn next_data(&mut self) -> Message {
        loop {
            match self.next_message().await {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    /// The next frame, which must be text.
    pub async fn next(&mut self) -> Value {
        let message = self.next_data().await;
        let Message::Text(json) = &message else { panic!("a text frame, and not {message:?}") };
        let frame: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
        self.cursor = cursor_after(&frame).unwrap_or(std::mem::take(&mut self.cursor));
        frame
    }

    /// Reads up to the close, and returns its code and reason.
    pub async fn closed(&mut self) -> (u16, String) {
        loop {
            if let Message::Close(Some(frame)) = self.next_message().await {
                return (frame.code.into(), frame.reason.as_str().to_owned());
            }
        }
    }

    /// The TCP connection, for bytes that tungstenite would not send.
    pub fn wire(&mut self) -> &mut TcpStream {
        match self.stream.get_mut() {
            MaybeTlsStream::Plain(wire) => wire,
            other => panic!("plain TCP, and not {other:?}"),
        }
    }

    /// Resolves when the connection ends, for any reason.
    pub async fn ended(&mut self) -> Option<tungstenite::Error> {
        loop {
            match within("the end of the socket", self.stream.next()).await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Some(error),
                None => return None,
            }
        }
    }
}
