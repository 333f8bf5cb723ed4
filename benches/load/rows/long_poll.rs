//! One message to many held polls, compared with as many plain `GET`s of an answer of the same size.

use crate::{
    Outcome, Setting,
    client::{Arrival, Fleet, Habit},
    decode::Framing,
    process::Process,
    table::{Line, Series},
    wire::{self, Publisher, Transport},
};

use super::{
    SUBSCRIBERS,
    fan_out::{FLIGHTS, deliver, flight_of, subscribe},
};

pub fn row(setting: &Setting) -> Outcome<Vec<Line>> {
    let server = setting.server()?;
    let mut fleet = subscribe(&server, Transport::Poll, SUBSCRIBERS)?;
    let mut publisher = Publisher::connect(server.addr)?;
    let plain = Process::start_self("plain")?;
    let mut plain_publisher = Publisher::connect(plain.addr)?;
    let mut plain_fleet = asking(&plain, SUBSCRIBERS, wire::get("/plain"))?;
    let mut lines = Vec::new();
    for (flight, steps) in FLIGHTS {
        let steps = setting.size(steps, steps / 10);
        let request = flight_of(flight);
        deliver(&server, &mut fleet, &mut publisher, &request, flight, 2)?;
        plain_publisher.publish(&wire::put("/plain", fleet.sample().0))?;
        plain_fleet.ask(SUBSCRIBERS as u64)?;
        let (mut ours, mut theirs) = (Series::default(), Series::default());
        for _ in 0..setting.rounds {
            ours.push(deliver(&server, &mut fleet, &mut publisher, &request, flight, steps)?);
            let before = plain.cpu_ns()?;
            plain_fleet.ask((SUBSCRIBERS * steps) as u64)?;
            let spent = plain.cpu_ns()? - before;
            theirs.push(spent as f64 / (SUBSCRIBERS * steps * flight) as f64);
        }
        let line = Line::new(format!("long-poll fan-out, w={flight}"), "ns/delivery", ours);
        let line = line.against("axum's plain `GET` of the same answer", theirs);
        lines.push(if flight == 1 { line.target(1.5, 1.2) } else { line });
    }
    Ok(lines)
}

/// Keep-alive connections that send `request` when asked to.
pub fn asking(process: &Process, count: usize, request: Vec<u8>) -> Outcome<Fleet> {
    Fleet::arrive(&Arrival {
        addr: process.addr,
        count,
        framing: Framing::Answers,
        request: &|_| Vec::new(),
        habit: Habit::Ask { request },
        window: count,
    })
}
