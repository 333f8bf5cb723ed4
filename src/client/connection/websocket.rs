//! WebSocket: `reqwest` does the handshake, so that TLS, proxies and the token are the same as for every
//! request; `tungstenite` reads the frames.

use futures_util::StreamExt;
use reqwest::{StatusCode, Upgraded, Url, header};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{CloseFrame, Role, WebSocketConfig},
    },
};

use super::{MAX_FRAME_BYTES, frame::Frame};
use crate::client::{Client, ClientError};

pub struct WebSocket(WebSocketStream<Upgraded>);

impl WebSocket {
    pub async fn open(client: &Client, url: Url) -> Result<Self, ClientError> {
        let key = generate_key();
        let request = client
            .http
            .get(url)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_PROTOCOL, "rejoin.v1")
            .header(header::SEC_WEBSOCKET_KEY, &key);
        let response = client.ask(request, StatusCode::SWITCHING_PROTOCOLS).await?;
        let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        if accepted.is_none_or(|accepted| accepted != &derive_accept_key(key.as_bytes())) {
            return Err(ClientError::not_ours("wrong Sec-WebSocket-Accept"));
        }
        let limits = WebSocketConfig::default()
            .max_frame_size(Some(MAX_FRAME_BYTES))
            .max_message_size(Some(MAX_FRAME_BYTES));
        let stream = response.upgrade().await?;
        Ok(Self(WebSocketStream::from_raw_socket(stream, Role::Client, Some(limits)).await))
    }

    /// # Cancel safety
    /// Dropping this loses nothing.
    pub async fn next(&mut self) -> Result<Frame, ClientError> {
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
fn closed(close: Option<CloseFrame>) -> ClientError {
    let Some(CloseFrame { code, reason }) = close else {
        return ClientError::lost("the connection was closed");
    };
    let (code, reason) = (u16::from(code), reason.as_str());
    match code {
        // The answer to the next handshake says if another credential helps.
        4001 => ClientError::lost(format!("the server closed the connection: {code} {reason}")),
        1002 | 1003 | 1007 | 1009 | 4000..4100 => ClientError::Refused {
            code: if reason.is_empty() { code.to_string() } else { reason.into() },
            detail: format!("the server closed the connection with code {code}"),
        },
        _ => ClientError::lost(format!("the server closed the connection: {code} {reason}")),
    }
}

fn lost(error: &tungstenite::Error) -> ClientError {
    match error {
        // The same message would come again.
        tungstenite::Error::Capacity(error) => ClientError::not_ours(error),
        error => ClientError::lost(format!("the connection was lost: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};

    use super::*;

    #[test]
    fn a_message_that_is_too_long_is_not_asked_for_again() {
        let too_long = CapacityError::MessageTooLong { size: MAX_FRAME_BYTES + 1, max_size: MAX_FRAME_BYTES };
        assert!(lost(&too_long.into()).is_final());
        assert!(!lost(&ProtocolError::ResetWithoutClosingHandshake.into()).is_final());
    }
}
