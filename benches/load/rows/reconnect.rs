//! All clients reconnect at once and need the messages that they missed, as after a restart of a proxy.

use std::{net::SocketAddr, thread, time::Duration};

use tokio::time::Instant;

use crate::{
    Outcome, Setting,
    client::{Arrival, Fleet, Habit},
    decode,
    limit::Limit,
    table::{self, Line, Series},
    wire::{Publisher, Transport},
};

use super::fan_out::{TOPIC, flight_of, subscribe};

const MISSED: usize = 100;

/// A slower arrival: this many connections are made at a time.
const WINDOW: usize = 1_000;

pub fn row(setting: &Setting) -> Outcome<Vec<Line>> {
    let count = setting.size(10_000, 1_000);
    let transport = Transport::WebSocket;
    let server = setting.server()?;
    let mut limit = Limit::start()?;
    let (mut at_once, mut windowed) = (Series::default(), Series::default());
    let (mut limit_at_once, mut limit_windowed) = (Series::default(), Series::default());
    let mut cost = Series::default();
    let mut fleet = subscribe(&server, transport, count)?;
    Publisher::connect(server.addr)?.publish(&flight_of(1))?;
    fleet.until_each(1)?;
    let head: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
    let record = decode::encode(transport.framing(), fleet.sample().0);
    limit.load_bytes(&[head, &record.repeat(MISSED)].concat())?;
    for round in 0..setting.rounds.min(3) * 2 {
        let cursor = now(server.addr)?;
        drop(fleet);
        let gently = round % 2 == 1;
        let window = if gently { WINDOW } else { count };
        let (theirs, limit_seconds) = return_at(limit.addr(), count, window, "")?;
        drop(theirs);
        // The server notices that the clients are gone before they return.
        thread::sleep(Duration::from_millis(500));
        Publisher::connect(server.addr)?.publish(&flight_of(MISSED))?;
        let before = server.cpu_ns()?;
        let (back, seconds) = return_at(server.addr, count, window, &format!("after={cursor}"))?;
        let spent = (server.cpu_ns()? - before) as f64;
        fleet = back;
        if gently {
            windowed.push(seconds);
            limit_windowed.push(limit_seconds);
        } else {
            at_once.push(seconds);
            limit_at_once.push(limit_seconds);
            cost.push(spent / count as f64 / 1_000.0);
        }
    }
    let all = table::count(count);
    let name = |what| format!("{all} WebSockets reconnect{what}, {MISSED} missed each");
    let limit = "accept and one write";
    Ok(vec![
        Line::new(name(" at once"), "s until all are caught up", at_once)
            .against(limit, limit_at_once)
            .target_itself(3.0, 0.3),
        Line::new(
            name(&format!(", {} at a time", table::count(WINDOW))),
            "s until all are caught up",
            windowed,
        )
        .against(limit, limit_windowed),
        Line::new(name(" at once"), "µs of the server for each", cost),
    ])
}

/// The seconds from the first connection to the last message.
fn return_at(addr: SocketAddr, count: usize, window: usize, query: &str) -> Outcome<(Fleet, f64)> {
    let begun = Instant::now();
    let mut fleet = Fleet::arrive(&Arrival {
        addr,
        count,
        framing: Transport::WebSocket.framing(),
        request: &|_| Transport::WebSocket.subscribe(TOPIC, query),
        habit: Habit::Listen,
        window,
    })?;
    fleet.until_each(MISSED as u64)?;
    Ok((fleet, begun.elapsed().as_secs_f64()))
}

/// The cursor of this moment.
fn now(addr: SocketAddr) -> Outcome<String> {
    let fleet = Fleet::arrive(&Arrival {
        addr,
        count: 1,
        framing: Transport::Poll.framing(),
        request: &|_| Transport::Poll.subscribe(TOPIC, "wait=0"),
        habit: Habit::Poll { again: None },
        window: 1,
    })?;
    Ok(fleet.cursor(0).to_owned())
}
