//! A WebSocket with `tokio-tungstenite` as the client, and below it a tap that counts received bytes.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, client::IntoClientRequest, protocol::Message},
};

use super::{Stop, Wish};
use crate::support::frame::Frame;

pub struct WebSocket {
    stream: WebSocketStream<Tap>,
    /// The bytes of all frames that have arrived completely.
    whole_bytes: u64,
}

impl WebSocket {
    pub async fn open(addr: SocketAddr, wish: &Wish) -> Result<Self, Stop> {
        let url = format!("ws://{addr}{}", wish.target());
        let mut request = url.into_client_request().expect("a URL of our own making");
        if let Some(cursor) = wish.header() {
            request.headers_mut().insert("last-event-id", cursor.into());
        }
        let tcp = TcpStream::connect(addr).await.map_err(|error| Stop::Ended(error.to_string()))?;
        match client_async(request, Tap::new(tcp)).await {
            Ok((stream, _)) => Ok(Self { stream, whole_bytes: 0 }),
            Err(tungstenite::Error::Http(response)) => {
                let body = response.body().as_deref().map(String::from_utf8_lossy);
                let refusal = format!("{} {body:?} to {}", response.status(), wish.target());
                Err(if response.status() == 503 { Stop::Refused(refusal) } else { Stop::Wrong(refusal) })
            }
            Err(error) => Err(Stop::Ended(error.to_string())),
        }
    }

    pub async fn next(&mut self) -> Result<Frame, Stop> {
        loop {
            let message = match self.stream.next().await {
                Some(Ok(message)) => message,
                Some(Err(tungstenite::Error::Utf8(error))) => return Err(Stop::Wrong(error)),
                Some(Err(error)) => return Err(Stop::Ended(error.to_string())),
                None => return Err(Stop::Ended("the stream is over".to_owned())),
            };
            self.whole_bytes += frame_bytes(message.len());
            return match message {
                Message::Text(text) => Frame::parse(&text).map_err(Stop::Wrong),
                Message::Binary(bytes) => Frame::parse_binary(&bytes).map_err(Stop::Wrong),
                Message::Close(reason) => Err(Stop::Closed(format!("a close frame: {reason:?}"))),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            };
        }
    }

    pub async fn send(&mut self, command: &Value) -> Result<(), Stop> {
        let text = Message::text(command.to_string());
        self.stream.send(text).await.map_err(|error| Stop::Ended(error.to_string()))
    }

    pub fn is_inside_a_frame(&self) -> bool {
        self.stream.get_ref().body_bytes > self.whole_bytes
    }
}

/// The size of an unfragmented, unmasked frame (RFC 6455 §5.2).
fn frame_bytes(payload: usize) -> u64 {
    let header = match payload {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    };
    header + payload as u64
}

/// Counts the bytes that come after the response head.
struct Tap {
    stream: TcpStream,
    /// How many bytes of the blank line that ends the head have arrived. After four the head is over.
    seen_of_end: usize,
    body_bytes: u64,
}

const END_OF_HEAD: &[u8] = b"\r\n\r\n";

impl Tap {
    fn new(stream: TcpStream) -> Self {
        Self { stream, seen_of_end: 0, body_bytes: 0 }
    }

    fn note(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.seen_of_end == END_OF_HEAD.len() {
                self.body_bytes += 1;
            } else if byte == END_OF_HEAD[self.seen_of_end] {
                self.seen_of_end += 1;
            } else {
                self.seen_of_end = usize::from(byte == END_OF_HEAD[0]);
            }
        }
    }
}

impl AsyncRead for Tap {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.note(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tap {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
