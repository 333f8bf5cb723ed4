//! Frames of HTTP/2 as they stand (RFC 9113): the windows that the server opens, and floods of frames.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    ask::{Ask, get, within},
    support::Server,
};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The number of this setting.
const INITIAL_WINDOW_SIZE: u16 = 4;
/// Every connection and every stream begins with this window.
const FIRST_WINDOW: u32 = 65_535;

/// The frames of each number.
type Flood<'a> = dyn Fn(u32) -> Vec<u8> + 'a;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("it is short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

async fn connection(server: &Server) -> TcpStream {
    let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
    let begin = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &*frame(SETTINGS, 0, 0, &[])].concat();
    wire.write_all(&begin).await.expect("it is taken");
    wire
}

/// The kind and the payload of the next frame.
async fn next_frame(wire: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 9];
    within("a frame", wire.read_exact(&mut head)).await.expect("a frame");
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    within("its payload", wire.read_exact(&mut payload)).await.expect("a payload");
    (head[3], payload)
}

/// The server held a megabyte of each connection while the backend was asked who the client is.
#[tokio::test]
async fn so_many_bytes_of_bodies_may_wait_on_a_connection() {
    let server = Server::direct(|_| ()).await;
    let mut wire = connection(&server).await;
    let (mut of_stream, mut of_connection) = (None, None);
    while of_stream.is_none() || of_connection.is_none() {
        let (kind, payload) = next_frame(&mut wire).await;
        match kind {
            SETTINGS => {
                let settings = payload.as_chunks::<6>().0.iter();
                of_stream = of_stream.or_else(|| {
                    settings
                        .map(|[a, b, value @ ..]| (u16::from_be_bytes([*a, *b]), u32::from_be_bytes(*value)))
                        .find_map(|(name, value)| (name == INITIAL_WINDOW_SIZE).then_some(value))
                });
            }
            WINDOW_UPDATE => {
                let more = payload.try_into().map(u32::from_be_bytes).expect("four bytes");
                of_connection = Some(FIRST_WINDOW + more);
            }
            _ => {}
        }
    }
    assert_eq!((of_stream, of_connection), (Some(128 << 10), Some(256 << 10)));
    server.stop().await;
}

/// Each of these frames costs its client next to nothing. A client that takes no answers has the write timeout.
#[tokio::test]
async fn a_flood_of_frames_ends_its_connection_and_no_other() {
    let server = Server::direct(|config| config.write_timeout = Duration::from_secs(1)).await;
    // GET / of localhost, by the tables of RFC 7541.
    let head = [&[0x82, 0x86, 0x84, 0x41, 9][..], b"localhost"].concat();
    let resets = |number: u32| {
        let stream = 2 * number + 1;
        let begun = frame(HEADERS, END_STREAM | END_HEADERS, stream, &head);
        [begun, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    };
    let head_without_end = |number: u32| match number {
        0 => frame(HEADERS, END_STREAM, 1, &head),
        _ => frame(CONTINUATION, 0, 1, &[0x82; 1_000]),
    };
    let settings = |_| frame(SETTINGS, 0, 0, &[]);
    let pings = |_| frame(PING, 0, 0, &[0; 8]);
    let floods: [(&str, &Flood<'_>); 4] = [
        ("resets", &resets),
        ("a head without end", &head_without_end),
        ("settings", &settings),
        ("pings", &pings),
    ];
    for (name, flood) in floods {
        let mut wire = connection(&server).await;
        let flooded = async {
            for first in (0..).step_by(1_000) {
                let frames: Vec<_> = (first..first + 1_000).flat_map(flood).collect();
                if wire.write_all(&frames).await.is_err() {
                    return;
                }
            }
        };
        within(format!("the end of {name}"), flooded).await;
        assert_eq!(get(&server, "/health/live").answer().await.status, 200, "{name}");
    }
    server.stop().await;
}
