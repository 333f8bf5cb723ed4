//! An echo over the same socket, for the protocol's conformance suite. No release has it.

use std::{sync::Arc, task::Poll};

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use tungstenite::Message;

use super::{Socket, accept, is_upgrade, socket::Lost};
use crate::http::{
    App,
    batch::Form,
    problem::{Code, Problem},
    wire,
};

pub fn echo(app: &Arc<App>, request: Request) -> Response {
    match is_upgrade(&request) {
        Ok(true) => accept(app, request, serve),
        Ok(false) => Problem::new(Code::UpgradeRequired, "this is an echo").into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// Sends a frame as a message would be sent.
fn send(socket: &mut Socket, frame: bytes::Bytes) {
    let frame = if socket.form() == Form::Deflated { wire::deflated(frame) } else { frame };
    socket.push(frame);
}

async fn serve(mut socket: Socket) {
    let lost = std::future::poll_fn(|cx| {
        loop {
            // A message is sent back before the next one is read.
            match socket.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(lost)) => return Poll::Ready(lost),
                Poll::Pending => return Poll::Pending,
            }
            match socket.poll_message(cx) {
                Poll::Ready(Ok(Message::Text(text))) => send(&mut socket, wire::text_frame(text.as_bytes())),
                Poll::Ready(Ok(Message::Binary(bytes))) => send(&mut socket, wire::bytes_frame(&bytes)),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(lost)) => return Poll::Ready(lost),
                Poll::Pending => match socket.poll_flush(cx) {
                    Poll::Ready(Err(lost)) => return Poll::Ready(lost),
                    _ => return Poll::Pending,
                },
            }
        }
    })
    .await;
    match lost {
        Lost::Broken(code) => socket.fail(code).await,
        Lost::Closed => socket.closed().await,
        Lost::Gone | Lost::TooSlow => {}
    }
}
