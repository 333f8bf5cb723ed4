//! The rows of the table. Each starts its own processes and ends them.

mod fan_out;
mod idle;
mod long_poll;
mod one_reader;
mod open_loop;
mod publish;
mod reconnect;
mod replay;
mod stored;
mod topics;

use crate::{Outcome, Setting, table::Line, wire::Transport};

pub struct Row {
    pub name: &'static str,
    pub about: &'static str,
    pub run: fn(&Setting) -> Outcome<Vec<Line>>,
}

/// Subscribers of one topic in the rows about deliveries.
const SUBSCRIBERS: usize = 1_000;

pub const ROWS: &[Row] = &[
    Row {
        name: "fan-out-websocket",
        about: "server time for each message delivered over WebSocket",
        run: |setting| {
            fan_out::row(setting, Transport::WebSocket, [Some((1.3, 1.1)), Some((1.7, 1.2)), None, None])
        },
    },
    Row {
        name: "fan-out-sse",
        about: "the same over Server-Sent Events, raw",
        run: |setting| {
            fan_out::row(setting, Transport::Sse, [Some((1.5, 1.1)), Some((2.0, 1.2)), None, None])
        },
    },
    Row {
        name: "fan-out-ndjson",
        about: "the same over NDJSON",
        run: |setting| fan_out::row(setting, Transport::Ndjson, [None; 4]),
    },
    Row { name: "fan-out-long-poll", about: "the same in answers to held polls", run: long_poll::row },
    Row {
        name: "one-reader",
        about: "a message to the one reader of its topic, with its publish",
        run: one_reader::row,
    },
    Row { name: "idle", about: "memory for each idle connection", run: idle::row },
    Row { name: "open-loop", about: "1 000 messages/s to 1 000 WebSockets", run: open_loop::row },
    Row { name: "replay", about: "a client reads 1 000 retained messages", run: replay::row },
    Row { name: "publish", about: "accepted publishes", run: publish::row },
    Row { name: "topics", about: "a delivery with many topics", run: topics::row },
    Row { name: "retained", about: "memory of a retained message", run: stored::retained },
    Row { name: "expired", about: "memory of a topic whose messages have expired", run: stored::expired },
    Row { name: "reconnect", about: "10 000 subscribers reconnect at once", run: reconnect::row },
];
