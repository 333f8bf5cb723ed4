//! One message to many streams: the server's time for each delivery, compared with one ready write to each
//! connection.

use crate::{
    Outcome, PAYLOAD_BYTES, Setting,
    client::{Arrival, Fleet, Habit},
    limit::Limit,
    process::Process,
    table::{Line, Series},
    wire::{self, Publisher, Transport},
};

use super::SUBSCRIBERS;

/// Messages in flight, and how many times a round sends them and waits until all clients have them.
pub const FLIGHTS: [(usize, usize); 3] = [(1, 100), (16, 80), (64, 50)];

/// The benchmark's only topic.
pub const TOPIC: &str = "bench";

pub fn row(setting: &Setting, transport: Transport, targets: [Option<(f64, f64)>; 3]) -> Outcome<Vec<Line>> {
    let server = setting.server()?;
    let mut fleet = subscribe(&server, transport, SUBSCRIBERS)?;
    let mut publisher = Publisher::connect(server.addr)?;
    let mut limit = Limit::start()?;
    let mut limit_fleet = limit.fleet(SUBSCRIBERS, transport.framing())?;
    let mut lines = Vec::new();
    for ((flight, steps), target) in FLIGHTS.into_iter().zip(targets) {
        let steps = setting.size(steps, steps / 10);
        let request = flight_of(flight);
        // To warm up, and to get the sample that the limit writes.
        deliver(&server, &mut fleet, &mut publisher, &request, flight, 2)?;
        limit.load(transport.framing(), fleet.sample().0, flight)?;
        let (mut ours, mut theirs) = (Series::default(), Series::default());
        for _ in 0..setting.rounds {
            ours.push(deliver(&server, &mut fleet, &mut publisher, &request, flight, steps)?);
            theirs.push(write(&mut limit, &mut limit_fleet, flight, steps)?);
        }
        let what = if flight == 1 { "one ready write" } else { "one concatenated write" };
        let line = Line::new(format!("{} fan-out, w={flight}", transport.name()), "ns/delivery", ours);
        let line = line.against(what, theirs);
        lines.push(match target {
            Some((first, then)) => line.target(first, then),
            None => line,
        });
    }
    Ok(lines)
}

/// Subscribers of the benchmark's topic, from now on.
pub fn subscribe(server: &Process, transport: Transport, count: usize) -> Outcome<Fleet> {
    Fleet::arrive(&Arrival {
        addr: server.addr,
        count,
        framing: transport.framing(),
        request: &|_| transport.subscribe(TOPIC, ""),
        habit: Habit::reads(transport, TOPIC),
        window: 1_000,
    })
}

pub fn flight_of(flight: usize) -> Vec<u8> {
    wire::batch(std::iter::repeat_n(TOPIC.to_owned(), flight), &wire::payload(PAYLOAD_BYTES, 0))
}

/// The server's nanoseconds for each delivery, over `steps` steps of `flight` messages.
pub fn deliver(
    server: &Process,
    fleet: &mut Fleet,
    publisher: &mut Publisher,
    request: &[u8],
    flight: usize,
    steps: usize,
) -> Outcome<f64> {
    fleet.recount();
    let before = server.cpu_ns()?;
    for step in 1..=steps {
        publisher.send(request)?;
        fleet.until_each((step * flight) as u64)?;
        publisher.accepted()?;
    }
    Ok((server.cpu_ns()? - before) as f64 / (steps * flight * fleet.len()) as f64)
}

fn write(limit: &mut Limit, fleet: &mut Fleet, flight: usize, steps: usize) -> Outcome<f64> {
    fleet.recount();
    let before = limit.cpu_ns()?;
    for step in 1..=steps {
        limit.send()?;
        fleet.until_each((step * flight) as u64)?;
    }
    Ok((limit.cpu_ns()? - before) as f64 / (steps * flight * fleet.len()) as f64)
}
