//! One message to many streams: the server's time for each delivery, compared with one ready write to each
//! connection.

use std::{thread, time::Duration};

use tokio::time::Instant;

use crate::{
    Outcome, PAYLOAD_BYTES, Setting,
    client::{Arrival, Fleet, Habit},
    limit::Limit,
    process::Process,
    table::{Line, Series},
    wire::{self, Publisher, Transport},
};

use super::SUBSCRIBERS;

/// The messages of one round.
#[derive(Clone, Copy)]
pub struct Flight {
    /// Messages that are sent at once.
    pub size: usize,
    /// How many times they are sent, each time when all clients have those before.
    steps: usize,
    /// The time from one step to the next, if the next does not follow at once.
    every: Duration,
}

impl Flight {
    pub const ALL: [Self; 4] = [
        Self::at_once(1, 100),
        Self::at_once(16, 80),
        Self::at_once(64, 50),
        Self { every: Duration::from_millis(50), ..Self::at_once(1, 40) },
    ];

    pub const fn at_once(size: usize, steps: usize) -> Self {
        Self { size, steps, every: Duration::ZERO }
    }

    pub fn name(&self) -> String {
        if self.every.is_zero() { format!("w={}", self.size) } else { "20 a second".to_owned() }
    }

    /// The steps of a round, each of which begins when it is due.
    pub fn steps(self, setting: &Setting) -> impl ExactSizeIterator<Item = usize> {
        let begin = Instant::now();
        (0..setting.size(self.steps, self.steps / 10)).map(move |done| {
            thread::sleep((begin + done as u32 * self.every).saturating_duration_since(Instant::now()));
            done + 1
        })
    }

    pub fn request(&self) -> Vec<u8> {
        flight_of(self.size)
    }
}

/// The benchmark's only topic.
pub const TOPIC: &str = "bench";

pub fn row(setting: &Setting, transport: Transport, targets: [Option<(f64, f64)>; 4]) -> Outcome<Vec<Line>> {
    let server = setting.server()?;
    let mut fleet = subscribe(&server, transport, SUBSCRIBERS)?;
    let mut publisher = Publisher::connect(server.addr)?;
    let mut limit = Limit::start()?;
    let mut limit_fleet = limit.fleet(SUBSCRIBERS, transport.framing())?;
    let mut lines = Vec::new();
    for (flight, target) in Flight::ALL.into_iter().zip(targets) {
        // To warm up, and to get the sample that the limit writes.
        deliver(setting, &server, &mut fleet, &mut publisher, Flight::at_once(flight.size, 20))?;
        limit.load(transport.framing(), fleet.sample().0, flight.size)?;
        let (mut ours, mut theirs) = (Series::default(), Series::default());
        for _ in 0..setting.rounds {
            ours.push(deliver(setting, &server, &mut fleet, &mut publisher, flight)?);
            theirs.push(write(setting, &mut limit, &mut limit_fleet, flight)?);
        }
        let what = if flight.size == 1 { "one ready write" } else { "one concatenated write" };
        let line = Line::new(format!("{} fan-out, {}", transport.name(), flight.name()), "ns/delivery", ours);
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
    subscribe_to(server, transport, count, |_| TOPIC.to_owned())
}

/// Subscribers, each of its `topic`, from now on.
pub fn subscribe_to(
    server: &Process,
    transport: Transport,
    count: usize,
    topic: fn(usize) -> String,
) -> Outcome<Fleet> {
    Fleet::arrive(&Arrival {
        addr: server.addr,
        count,
        framing: transport.framing(),
        request: &|n| transport.subscribe(&topic(n), ""),
        habit: Habit::reads(transport, topic),
        window: 1_000,
    })
}

pub fn flight_of(size: usize) -> Vec<u8> {
    wire::batch(std::iter::repeat_n(TOPIC.to_owned(), size), &wire::payload(PAYLOAD_BYTES, 0))
}

/// The server's nanoseconds for each delivery of a round.
pub fn deliver(
    setting: &Setting,
    server: &Process,
    fleet: &mut Fleet,
    publisher: &mut Publisher,
    flight: Flight,
) -> Outcome<f64> {
    let request = flight.request();
    fleet.recount();
    let before = server.cpu_ns()?;
    let steps = flight.steps(setting);
    let messages = steps.len() * flight.size;
    for step in steps {
        publisher.send(&request)?;
        fleet.until_each((step * flight.size) as u64)?;
        publisher.accepted()?;
    }
    Ok((server.cpu_ns()? - before) as f64 / (messages * fleet.len()) as f64)
}

/// The limit's nanoseconds for each message of a round to each connection.
pub fn write(setting: &Setting, limit: &mut Limit, fleet: &mut Fleet, flight: Flight) -> Outcome<f64> {
    fleet.recount();
    let before = limit.cpu_ns()?;
    let steps = flight.steps(setting);
    let messages = steps.len() * flight.size;
    for step in steps {
        limit.send()?;
        fleet.until_each((step * flight.size) as u64)?;
    }
    Ok((limit.cpu_ns()? - before) as f64 / (messages * fleet.len()) as f64)
}
