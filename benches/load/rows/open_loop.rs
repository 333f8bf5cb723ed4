//! Messages at a fixed rate, even if the server cannot keep up: its share of the core, and how late messages
//! are.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use tokio::time::Instant;

use memchr::memmem;

use crate::{
    Outcome, PAYLOAD_BYTES, Setting,
    client::Fleet,
    decode::{Decoder, Framing},
    process::Process,
    table::{self, Line, Series},
    wire::{self, Transport},
};

use super::{
    SUBSCRIBERS,
    fan_out::{TOPIC, subscribe},
};

const INTERVAL: Duration = Duration::from_millis(1);

/// The text before the 20 digits of a payload's time.
const TIME: &[u8] = br#""at":""#;

/// How long the benchmark waits for late messages after the last one is due.
const GRACE: Duration = Duration::from_secs(5);

pub fn row(setting: &Setting) -> Outcome<Vec<Line>> {
    let server = setting.server()?;
    let mut fleet = subscribe(&server, Transport::WebSocket, SUBSCRIBERS)?;
    let messages = setting.size(4_000, 500);
    let (mut share, mut p50, mut p99) = (Series::default(), Series::default(), Series::default());
    let mut publishing = Series::default();
    run(&server, &mut fleet, messages / 4)?;
    for _ in 0..setting.rounds {
        let round = run(&server, &mut fleet, messages)?;
        share.push(round.cpu_share);
        p50.push(round.percentile_ms(50));
        p99.push(round.percentile_ms(99));
        publishing.push(round.publishing_ms);
    }
    let name = |what| format!("1 000 messages/s to {} WebSockets: {what}", table::count(SUBSCRIBERS));
    Ok(vec![
        Line::new(name("server"), "cores", share).target(1.0, 0.75),
        Line::new(name("p50"), "ms", p50),
        Line::new(name("p99"), "ms", p99).target(50.0, 14.0),
        Line::new(name("the benchmark's own delay at worst"), "ms", publishing),
    ])
}

struct Round {
    cpu_share: f64,
    /// Sorted.
    latencies_us: Vec<u32>,
    /// The worst delay of the publisher itself.
    publishing_ms: f64,
}

impl Round {
    fn percentile_ms(&self, percent: usize) -> f64 {
        f64::from(self.latencies_us[(self.latencies_us.len() - 1) * percent / 100]) / 1_000.0
    }
}

fn run(server: &Process, fleet: &mut Fleet, messages: usize) -> Outcome<Round> {
    fleet.recount();
    let expected = messages as u64 * fleet.len() as u64;
    let mut latencies_us = Vec::with_capacity(expected as usize);
    let before = server.cpu_ns()?;
    let mut beat = Beat::start(server.addr, messages)?;
    let begin = beat.begin;
    let end = begin + INTERVAL * messages as u32 + GRACE;
    let time = memmem::Finder::new(TIME);
    while fleet.received() < expected && Instant::now() < end {
        beat.publish(Instant::now())?;
        let mut failed = None;
        fleet.until(beat.due().min(end), expected, &mut |message, now| {
            // The publisher keeps its rate also while there is much to read.
            failed = failed.take().or(beat.publish(now).err());
            let Some(start) = time.find(message).map(|at| at + TIME.len()) else { return };
            let at = &message[start..start + 20];
            let sent_us = at.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
            let now_us = now.duration_since(begin).as_micros() as u64;
            latencies_us.push(u32::try_from(now_us.saturating_sub(sent_us)).unwrap_or(u32::MAX));
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    let wall = begin.elapsed();
    if fleet.received() != expected {
        let received = fleet.received();
        return Err(format!("saturated: {received} of {expected} came within {GRACE:?} of the last").into());
    }
    fleet.until_each(messages as u64)?;
    let cpu_share = (server.cpu_ns()? - before) as f64 / wall.as_nanos() as f64;
    latencies_us.sort_unstable();
    Ok(Round { cpu_share, latencies_us, publishing_ms: beat.latest.as_secs_f64() * 1_000.0 })
}

/// Publishes at fixed times, counted from `begin` and written into the message, and does not wait for
/// answers.
struct Beat {
    begin: Instant,
    messages: usize,
    sent: usize,
    /// The worst delay so far.
    latest: Duration,
    socket: TcpStream,
    decoder: Decoder,
    request: Vec<u8>,
    /// The place of the time in the request.
    time: usize,
    /// Bytes of the request that the socket has not taken.
    owed: usize,
}

impl Beat {
    fn start(addr: SocketAddr, messages: usize) -> Outcome<Self> {
        let socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let payload = wire::payload(PAYLOAD_BYTES, 0);
        let request = wire::post(&format!("/topics/{TOPIC}"), "application/json", payload.as_bytes());
        let time = memmem::find(&request, TIME).ok_or("a payload without a time")? + TIME.len();
        let (begin, decoder) = (Instant::now(), Decoder::http(Framing::Answers));
        Ok(Self { begin, messages, sent: 0, latest: Duration::ZERO, socket, decoder, request, time, owed: 0 })
    }

    /// When the next message is due. After the last one, when to look at the answers again.
    fn due(&self) -> Instant {
        self.begin + INTERVAL * self.sent as u32
    }

    /// Publishes the messages that are due.
    fn publish(&mut self, now: Instant) -> Outcome<()> {
        while self.due() <= now {
            if self.sent < self.messages && self.owed == 0 {
                let at = format!("{:020}", (self.due() - self.begin).as_micros());
                self.request[self.time..self.time + at.len()].copy_from_slice(at.as_bytes());
                self.owed = self.request.len();
            }
            match self.socket.write(&self.request[self.request.len() - self.owed..]) {
                Ok(count) => self.owed -= count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if self.owed == 0 {
                self.latest = self.latest.max(now.saturating_duration_since(self.due()));
                self.sent += 1;
            }
            self.read_answers()?;
        }
        Ok(())
    }

    /// A refusal is an error.
    fn read_answers(&mut self) -> Outcome<()> {
        let mut inbox = [0; 16 * 1024];
        match self.socket.read(&mut inbox) {
            Ok(0) => Err("the publisher's connection was closed".into()),
            Ok(count) => self.decoder.feed(&inbox[..count], &mut |_| {}),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
