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
    fan_out::{Flight, deliver, subscribe},
};

pub fn row(setting: &Setting) -> Outcome<Vec<Line>> {
    let server = setting.server()?;
    let mut fleet = subscribe(&server, Transport::Poll, SUBSCRIBERS)?;
    let mut publisher = Publisher::connect(server.addr)?;
    let plain = Process::start_self("plain")?;
    let mut plain_publisher = Publisher::connect(plain.addr)?;
    let mut plain_fleet = asking(&plain, SUBSCRIBERS, wire::get("/plain"))?;
    let mut lines = Vec::new();
    for flight in Flight::ALL {
        deliver(setting, &server, &mut fleet, &mut publisher, Flight::at_once(flight.size, 20))?;
        plain_publisher.publish(&wire::put("/plain", fleet.sample().0))?;
        plain_fleet.ask(SUBSCRIBERS as u64)?;
        let (mut ours, mut theirs) = (Series::default(), Series::default());
        for _ in 0..setting.rounds {
            ours.push(deliver(setting, &server, &mut fleet, &mut publisher, flight)?);
            theirs.push(answer(setting, &plain, &mut plain_fleet, flight)?);
        }
        let line = Line::new(format!("long-poll fan-out, {}", flight.name()), "ns/delivery", ours);
        let line = line.against("axum's plain `GET` of the same answer", theirs);
        lines.push(if flight.size == 1 { line.target(1.8, 1.2) } else { line });
    }
    Ok(lines)
}

/// The same number of answers to plain requests, in nanoseconds for each message.
fn answer(setting: &Setting, plain: &Process, fleet: &mut Fleet, flight: Flight) -> Outcome<f64> {
    let before = plain.cpu_ns()?;
    let steps = flight.steps(setting);
    let messages = steps.len() * flight.size;
    for _ in steps {
        fleet.ask(SUBSCRIBERS as u64)?;
    }
    Ok((plain.cpu_ns()? - before) as f64 / (messages * SUBSCRIBERS) as f64)
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
