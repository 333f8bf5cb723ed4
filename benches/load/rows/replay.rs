//! Clients read all retained messages: one connection after another, each on a fresh socket.

use std::net::SocketAddr;

use tokio::time::Instant;

use crate::{
    Outcome, PAYLOAD_BYTES, Setting,
    client::{Arrival, Fleet, Habit},
    decode,
    limit::Limit,
    table::{self, Line, Series},
    wire::{self, Publisher, Transport},
};

use super::fan_out::TOPIC;

const MESSAGES: usize = 1_000;

pub fn row(setting: &Setting) -> Outcome<Vec<Line>> {
    let server = setting.server()?;
    let mut publisher = Publisher::connect(server.addr)?;
    let topics = std::iter::repeat_n(TOPIC.to_owned(), MESSAGES);
    publisher.publish(&wire::batch(topics, &wire::payload(PAYLOAD_BYTES, 0)))?;
    let clients = setting.size(100, 10);
    let mut lines = Vec::new();
    for transport in Transport::ALL {
        let mut limit = Limit::start()?;
        let sample = read(server.addr, transport)?.sample().0.to_vec();
        limit.load_bytes(&ready(transport, &sample))?;
        read(limit.addr(), transport)?;
        let messages = (clients * MESSAGES) as f64;
        let (mut ours, mut theirs, mut rate) = (Series::default(), Series::default(), Series::default());
        for _ in 0..setting.rounds {
            let (before, begun) = (server.cpu_ns()?, Instant::now());
            for _ in 0..clients {
                read(server.addr, transport)?;
            }
            rate.push(messages / begun.elapsed().as_secs_f64());
            ours.push((server.cpu_ns()? - before) as f64 / messages);
            let before = limit.cpu_ns()?;
            for _ in 0..clients {
                read(limit.addr(), transport)?;
            }
            theirs.push((limit.cpu_ns()? - before) as f64 / messages);
        }
        let name = |what| format!("replay of {} over {}{what}", table::count(MESSAGES), transport.name());
        lines.push(Line::new(name(""), "ns/message", ours).against("accept and one write", theirs));
        lines.push(Line::new(name(", rate"), "messages/s", rate).higher());
    }
    Ok(lines)
}

/// Connects and reads everything. The connection ends when the fleet is dropped.
fn read(addr: SocketAddr, transport: Transport) -> Outcome<Fleet> {
    let query = if transport == Transport::Poll { "after=0&wait=0&limit=1000" } else { "after=0" };
    let mut fleet = Fleet::arrive(&Arrival {
        addr,
        count: 1,
        framing: transport.framing(),
        request: &|_| transport.subscribe(TOPIC, query),
        habit: if transport == Transport::Poll { Habit::Poll { again: None } } else { Habit::Listen },
        window: 1,
    })?;
    fleet.until_each(MESSAGES as u64)?;
    Ok(fleet)
}

/// All the bytes that a client reads.
fn ready(transport: Transport, sample: &[u8]) -> Vec<u8> {
    let record = decode::encode(transport.framing(), sample);
    let head: &[u8] = match transport {
        Transport::WebSocket => b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        Transport::Sse | Transport::Ndjson => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        Transport::Poll => return record,
    };
    [head, &record.repeat(MESSAGES)].concat()
}
