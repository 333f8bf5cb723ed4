//! Many connections in one thread: a non-blocking socket and a decoder for each, and one epoll for all.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use tokio::time::Instant;

use memchr::memmem;
use socket2::{Domain, Socket, Type};

use crate::{
    Outcome,
    decode::{Decoder, Framing, Record, member},
    poller::{Interest, Poller, READ, READ_WRITE},
    wire::{self, PATIENCE, Transport},
};

const INBOX_BYTES: usize = 256 * 1024;

/// The behaviour of a connection.
#[derive(Clone, Debug)]
pub enum Habit {
    /// Counts messages.
    Listen,
    /// Counts the messages of each answer, and asks for the next ones. Connection `n` reads the topic `again(n)`.
    Poll { again: Option<fn(usize) -> String> },
    /// Sends the same request again while there are requests left.
    Ask { request: Vec<u8> },
}

impl Habit {
    /// The habit of readers, each of its `topic`.
    pub fn reads(transport: Transport, topic: fn(usize) -> String) -> Self {
        match transport {
            Transport::Poll => Self::Poll { again: Some(topic) },
            _ => Self::Listen,
        }
    }
}

pub struct Fleet {
    poller: Poller,
    seats: Vec<Seat>,
    habit: Habit,
    inbox: Box<[u8]>,
    /// Connections that have received something.
    opened: usize,
    /// The number of messages that each connection needs, and how many connections have it.
    goal: u64,
    level: usize,
    received: u64,
    answered: u64,
    requests_left: u64,
    bytes: u64,
    sample: Vec<u8>,
}

struct Seat {
    socket: TcpStream,
    decoder: Decoder,
    outbox: Vec<u8>,
    told: Told,
}

#[derive(Default)]
struct Told {
    opened: bool,
    messages: u64,
    cursor: String,
}

/// How the connections of a fleet are made.
pub struct Arrival<'a> {
    pub addr: SocketAddr,
    pub count: usize,
    pub framing: Framing,
    /// The first bytes of connection `n`; empty if the server speaks first.
    pub request: &'a dyn Fn(usize) -> Vec<u8>,
    pub habit: Habit,
    /// How many connections may wait for an answer at a time.
    pub window: usize,
}

impl Fleet {
    /// Makes all connections. Returns when every connection has received its first record, or at once if the
    /// connections send nothing.
    pub fn arrive(arrival: &Arrival<'_>) -> Outcome<Self> {
        let mut fleet = Self {
            poller: Poller::new()?,
            seats: Vec::with_capacity(arrival.count),
            habit: arrival.habit.clone(),
            inbox: vec![0; INBOX_BYTES].into_boxed_slice(),
            opened: 0,
            goal: u64::MAX,
            level: 0,
            received: 0,
            answered: 0,
            requests_left: 0,
            bytes: 0,
            sample: Vec::new(),
        };
        let deadline = Instant::now() + PATIENCE;
        while fleet.seats.len() < arrival.count {
            fleet.connect(arrival)?;
            // Serving the earlier connections in turn keeps their answers from piling up.
            let crowded = fleet.seats.len() - fleet.opened >= arrival.window;
            if crowded || fleet.seats.len().is_multiple_of(64) {
                fleet.turn(if crowded { PATIENCE } else { Duration::ZERO }, &mut |_, _| {})?;
            }
            past(deadline, || fleet.standing())?;
        }
        while fleet.opened < arrival.count {
            fleet.turn(PATIENCE, &mut |_, _| {})?;
            past(deadline, || fleet.standing())?;
        }
        Ok(fleet)
    }

    fn connect(&mut self, arrival: &Arrival<'_>) -> Outcome<()> {
        let socket = Socket::new(Domain::for_address(arrival.addr), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Err(error) = socket.connect(&arrival.addr.into())
            && error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error())
        {
            return Err(error.into());
        }
        let token = self.seats.len();
        let outbox = (arrival.request)(token);
        let decoder = if outbox.is_empty() {
            self.opened += 1;
            Decoder::headless(arrival.framing)
        } else {
            Decoder::http(arrival.framing)
        };
        let told = Told { opened: outbox.is_empty(), ..Told::default() };
        let mut seat = Seat { socket: socket.into(), decoder, outbox, told };
        let interest = if seat.flush()? { READ } else { READ_WRITE };
        self.poller.add(&seat.socket, token, interest)?;
        self.seats.push(seat);
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// Messages that all connections together have received.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The newest cursor that connection `n` has received.
    pub fn cursor(&self, n: usize) -> &str {
        &self.seats[n].told.cursor
    }

    /// One message as it came (for polls, one whole answer), and the bytes read for each message so far.
    pub fn sample(&self) -> (&[u8], f64) {
        (&self.sample, self.bytes as f64 / self.received as f64)
    }

    /// Counts messages from zero again.
    pub fn recount(&mut self) {
        (self.received, self.bytes, self.answered) = (0, 0, 0);
        self.sample.clear();
        for seat in &mut self.seats {
            seat.told.messages = 0;
        }
    }

    /// Waits until every connection has received exactly `goal` messages since the last [`Fleet::recount`].
    pub fn until_each(&mut self, goal: u64) -> Outcome<()> {
        self.goal = goal;
        self.level = self.seats.iter().filter(|seat| seat.told.messages >= goal).count();
        let deadline = Instant::now() + PATIENCE;
        while self.level < self.seats.len() {
            self.turn(PATIENCE, &mut |_, _| {})?;
            past(deadline, || self.standing())?;
        }
        match self.seats.iter().find(|seat| seat.told.messages != goal) {
            Some(seat) => Err(format!("{} messages instead of {goal}", seat.told.messages).into()),
            None => Ok(()),
        }
    }

    /// Waits until all connections together have received `goal` messages.
    pub fn until_all(&mut self, goal: u64) -> Outcome<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.received < goal {
            self.turn(PATIENCE, &mut |_, _| {})?;
            past(deadline, || self.standing())?;
        }
        Ok(())
    }

    /// Passes every message to `seen`, with the time of its read, until `end`, or until all connections
    /// together have received `goal`.
    pub fn until(&mut self, end: Instant, goal: u64, seen: &mut impl FnMut(&[u8], Instant)) -> Outcome<()> {
        while self.received < goal {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.turn(left, seen)?;
        }
        Ok(())
    }

    /// Sends `requests` requests, one at a time on each connection, and waits for the answers.
    pub fn ask(&mut self, requests: u64) -> Outcome<()> {
        let Habit::Ask { request } = self.habit.clone() else {
            return Err("a fleet that does not ask".into());
        };
        let first = requests.min(self.seats.len() as u64);
        self.requests_left = requests - first;
        let goal = self.answered + requests;
        for (token, seat) in self.seats.iter_mut().enumerate().take(first as usize) {
            seat.outbox.extend_from_slice(&request);
            seat.flush_or_watch(&self.poller, token)?;
        }
        let deadline = Instant::now() + PATIENCE;
        while self.answered < goal {
            self.turn(PATIENCE, &mut |_, _| {})?;
            past(deadline, || self.standing())?;
        }
        Ok(())
    }

    fn standing(&self) -> String {
        format!(
            "{} connections, {} of them opened, {} messages, {} answers",
            self.seats.len(),
            self.opened,
            self.received,
            self.answered
        )
    }

    /// Reads once from every connection that has something.
    fn turn(&mut self, patience: Duration, seen: &mut impl FnMut(&[u8], Instant)) -> Outcome<()> {
        let ready = self.poller.wait(Some(patience))?;
        for event in &ready {
            let token = event.data.u64() as usize;
            let flags = event.flags;
            if flags.contains(Interest::OUT) && self.seats[token].flush()? {
                self.poller.change(&self.seats[token].socket, token, READ)?;
            }
            if flags.intersects(Interest::IN | Interest::HUP | Interest::ERR) {
                self.read(token, seen)?;
            }
        }
        self.poller.done(ready);
        Ok(())
    }

    fn read(&mut self, token: usize, seen: &mut impl FnMut(&[u8], Instant)) -> Outcome<()> {
        let Seat { socket, decoder, outbox, told } = &mut self.seats[token];
        let count = match socket.read(&mut self.inbox) {
            Ok(0) => {
                return Err(format!("connection {token} was closed after {} messages", told.messages).into());
            }
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let now = Instant::now();
        let (messages_before, opened_before) = (told.messages, told.opened);
        let (habit, sample) = (&self.habit, &mut self.sample);
        let (answered, requests_left) = (&mut self.answered, &mut self.requests_left);
        decoder.feed(&self.inbox[..count], &mut |record| match record {
            Record::Message(message) => {
                told.opened = true;
                told.messages += 1;
                if sample.is_empty() {
                    sample.extend_from_slice(message);
                }
                seen(message, now);
            }
            Record::Control(control) => {
                told.opened = true;
                if let Some(cursor) = member(control, "cursor") {
                    cursor.clone_into(&mut told.cursor);
                }
            }
            // RFC 6455 §5.5.3, with a mask of zeros.
            Record::Ping(payload) => {
                outbox.extend([0x8a, 0x80 | payload.len() as u8, 0, 0, 0, 0]);
                outbox.extend(payload);
            }
            Record::Answer(body) => {
                told.opened = true;
                *answered += 1;
                match habit {
                    Habit::Listen => {}
                    Habit::Poll { again } => {
                        told.messages += memmem::find_iter(body, br#"{"type":"message""#).count() as u64;
                        if sample.is_empty() && told.messages > messages_before {
                            sample.extend_from_slice(body);
                        }
                        if let Some(cursor) = member(body, "cursor") {
                            cursor.clone_into(&mut told.cursor);
                        }
                        if let Some(topic) = again {
                            outbox.extend(wire::poll(&topic(token), &told.cursor));
                        }
                    }
                    Habit::Ask { request } => {
                        if *requests_left > 0 {
                            *requests_left -= 1;
                            outbox.extend_from_slice(request);
                        }
                    }
                }
            }
        })?;
        self.bytes += count as u64;
        self.received += told.messages - messages_before;
        self.opened += usize::from(told.opened && !opened_before);
        self.level += usize::from(messages_before < self.goal && told.messages >= self.goal);
        self.seats[token].flush_or_watch(&self.poller, token)
    }
}

impl Seat {
    /// True if everything was written.
    fn flush(&mut self) -> io::Result<bool> {
        while !self.outbox.is_empty() {
            match self.socket.write(&self.outbox) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn flush_or_watch(&mut self, poller: &Poller, token: usize) -> Outcome<()> {
        if !self.outbox.is_empty() && !self.flush()? {
            poller.change(&self.socket, token, READ_WRITE)?;
        }
        Ok(())
    }
}

fn past(deadline: Instant, standing: impl FnOnce() -> String) -> Outcome<()> {
    if Instant::now() > deadline { Err(format!("gave up: {}", standing()).into()) } else { Ok(()) }
}
