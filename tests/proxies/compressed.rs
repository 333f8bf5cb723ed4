//! Compression as every browser asks for it, on its way through a proxy.

use std::io::{Read, Write};

use flate2::{read, write};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{visitor::Visitor, within};

/// A long text, which the server compresses.
fn long(word: &str) -> String {
    format!("{word} ").repeat(200)
}

pub async fn a_websocket(visitor: &Visitor) {
    let mut connection = visitor.connection().await;
    let origin = visitor.origin();
    let request = format!(
        "GET /events?topic=deflated HTTP/1.1\r\nhost: {}\r\norigin: {origin}\r\nconnection: Upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         sec-websocket-extensions: permessage-deflate; client_max_window_bits\r\n\r\n",
        origin.trim_start_matches("https://")
    );
    connection.write_all(request.as_bytes()).await.expect("sent");
    let mut bytes = Vec::new();
    let head = loop {
        read_more(&mut connection, &mut bytes).await;
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            break String::from_utf8(std::mem::replace(&mut bytes, rest)).expect("ASCII").to_lowercase();
        }
    };
    assert!(head.starts_with("http/1.1 101") && head.contains("permessage-deflate"), "{head}");
    let text = long("websocket");
    visitor.publish("deflated", &text).await;
    // The first frames are plain: they are short (RFC 6455 §5.2, RFC 7692 §7.2.2).
    let payload = loop {
        match *bytes {
            [first, 126, high, low, ..]
                if bytes.len() >= 4 + usize::from(u16::from_be_bytes([high, low])) =>
            {
                let payload = bytes[4..4 + usize::from(u16::from_be_bytes([high, low]))].to_vec();
                bytes.drain(..4 + payload.len());
                if first == 0xc1 {
                    break payload;
                }
            }
            [first, short @ ..=125, ..] if bytes.len() >= 2 + usize::from(short) => {
                let payload = bytes[2..2 + usize::from(short)].to_vec();
                bytes.drain(..2 + payload.len());
                if first == 0xc1 {
                    break payload;
                }
            }
            _ => read_more(&mut connection, &mut bytes).await,
        }
    };
    let mut plain = String::new();
    // Ready deflate blocks, and the empty last one.
    let whole = [&payload[..], b"\0\0\xff\xff\x03\0"].concat();
    read::DeflateDecoder::new(&whole[..]).read_to_string(&mut plain).expect("deflate");
    assert!(payload.len() < text.len() / 2 && plain.contains(&text), "{plain}");
}

async fn read_more(from: &mut (impl AsyncReadExt + Unpin), bytes: &mut Vec<u8>) {
    let count = within("more bytes", from.read_buf(bytes)).await.expect("it is open");
    assert_ne!(count, 0, "it ended");
}

pub async fn a_poll(visitor: &Visitor) {
    let text = long("poll");
    visitor.publish("gzipped", &text).await;
    let asked = visitor.get("/topics/gzipped?after=0").header("accept-encoding", "gzip, deflate, br");
    let answer = asked.send().await.expect("an answer");
    assert_eq!(answer.headers()["content-encoding"], "gzip");
    let body = answer.bytes().await.expect("a body");
    let mut plain = String::new();
    read::GzDecoder::new(&body[..]).read_to_string(&mut plain).expect("gzip");
    assert!(body.len() < text.len() / 2 && plain.contains(&text), "{plain}");
}

/// Each event is read before the next one is published.
pub async fn streams(visitor: &Visitor) {
    for accept in ["text/event-stream", "application/x-ndjson"] {
        let asked = visitor.get("/topics/live").header("accept", accept).header("accept-encoding", "gzip");
        let mut stream = asked.send().await.expect("an answer");
        assert_eq!(stream.headers()["content-encoding"], "gzip", "{accept}");
        let mut decoder = write::GzDecoder::new(Vec::new());
        for word in ["open", "first", "second", "third"] {
            if word != "open" {
                visitor.publish("live", &long(word)).await;
            }
            while !String::from_utf8_lossy(decoder.get_ref()).contains(word) {
                let piece = within(word, stream.chunk()).await.expect("the stream goes on");
                decoder.write_all(&piece.expect("it has not ended")).expect("gzip");
                decoder.flush().expect("a vector");
            }
        }
    }
}
