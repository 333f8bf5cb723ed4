//! WebSocket: `reqwest` does the handshake, so that TLS, proxies and the token are the same as for every
//! request; `tungstenite` reads the frames.

use futures_util::StreamExt;
use reqwest::{Client, StatusCode, Upgraded, Url, header};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{CloseFrame, Role, WebSocketConfig},
    },
};

use super::{
    MAX_FRAME_BYTES,
    frame::{Frame, not_ours},
};
use crate::cli::remote::{Trouble, ask};

pub struct WebSocket(WebSocketStream<Upgraded>);

impl WebSocket {
    pub async fn open(client: &Client, url: Url) -> Result<Self, Trouble> {
        let key = generate_key();
        let request = client
            .get(url)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_PROTOCOL, "rejoin.v1")
            .header(header::SEC_WEBSOCKET_KEY, &key);
        let response = ask(request, StatusCode::SWITCHING_PROTOCOLS).await?;
        let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        if accepted.is_none_or(|accepted| accepted != &derive_accept_key(key.as_bytes())) {
            return Err(not_ours("wrong Sec-WebSocket-Accept"));
        }
        let limits = WebSocketConfig::default()
            .max_frame_size(Some(MAX_FRAME_BYTES))
            .max_message_size(Some(MAX_FRAME_BYTES));
        let stream = response.upgrade().await?;
        Ok(Self(WebSocketStream::from_raw_socket(stream, Role::Client, Some(limits)).await))
    }

    /// # Cancel safety
    /// Dropping this loses nothing.
    pub async fn next(&mut self) -> Result<Frame, Trouble> {
        loop {
            let frame = match self.0.next().await {
                Some(Ok(Message::Text(text))) => Frame::parse(text.into())?,
                Some(Ok(Message::Binary(bytes))) => Frame::parse_binary(&bytes)?,
                Some(Ok(Message::Close(close))) => return Err(closed(close)),
                Some(Ok(_)) => None,
                Some(Err(error)) => return Err(lost(&error)),
                None => return Err(closed(None)),
            };
            if let Some(frame) = frame {
                return Ok(frame);
            }
        }
    }
}

/// The meaning of a close code: refused for good, or worth another try.
fn closed(close: Option<CloseFrame>) -> Trouble {
    let Some(CloseFrame { code, reason }) = close else { return Trouble::lost("the connection was closed") };
    let why = format!("the server closed the connection: {} {reason}", u16::from(code));
    match u16::from(code) {
        1002 | 1003 | 1007 | 1009 | 4000..4100 => Trouble::Refused(why),
        _ => Trouble::lost(why),
    }
}

fn lost(error: &tungstenite::Error) -> Trouble {
    Trouble::lost(format!("the connection was lost: {error}"))
}
