//! The limit: a child that only calls `write(2)` with a ready buffer for every connection, from an epoll
//! loop.
//!
//! A connection that sends a command controls the child. One that sends a `GET` gets the buffer at once. One
//! that sends nothing gets the buffer whenever a command says so.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
};

use slab::Slab;

use crate::{
    Outcome,
    client::{Arrival, Fleet, Habit},
    decode::{self, Framing},
    poller::{Interest, Poller, READ, READ_WRITE},
    process::Process,
};

const LISTENER: usize = usize::MAX;

/// The benchmark's side.
pub struct Limit {
    process: Process,
    control: BufReader<TcpStream>,
}

impl Limit {
    pub fn start() -> Outcome<Self> {
        let process = Process::start_self("limit")?;
        let control = TcpStream::connect(process.addr)?;
        control.set_nodelay(true)?;
        Ok(Self { process, control: BufReader::new(control) })
    }

    /// Connections that wait for the buffer.
    pub fn fleet(&mut self, count: usize, framing: Framing) -> Outcome<Fleet> {
        let habit = match framing {
            Framing::Answers => Habit::Poll { again: None },
            _ => Habit::Listen,
        };
        let fleet = Fleet::arrive(&Arrival {
            addr: self.process.addr,
            count,
            framing,
            request: &|_| Vec::new(),
            habit,
            window: count,
        })?;
        while self.command("peers\n")?.trim() != count.to_string() {}
        Ok(fleet)
    }

    /// Sets the buffer to `copies` of `record`, ready and in one piece.
    pub fn load(&mut self, framing: Framing, record: &[u8], copies: usize) -> Outcome<()> {
        let bytes = decode::encode(framing, record).repeat(copies);
        self.load_bytes(&bytes)
    }

    pub fn load_bytes(&mut self, bytes: &[u8]) -> Outcome<()> {
        let mut command = format!("load {}\n", bytes.len()).into_bytes();
        command.extend(bytes);
        self.control.get_mut().write_all(&command)?;
        self.answer().map(drop)
    }

    /// Writes the buffer to every connection.
    pub fn send(&mut self) -> Outcome<()> {
        Ok(self.control.get_mut().write_all(b"send\n")?)
    }

    pub fn cpu_ns(&self) -> Outcome<u64> {
        self.process.cpu_ns()
    }

    pub fn addr(&self) -> SocketAddr {
        self.process.addr
    }

    fn command(&mut self, line: &str) -> Outcome<String> {
        self.control.get_mut().write_all(line.as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> Outcome<String> {
        let mut line = String::new();
        self.control.read_line(&mut line)?;
        if line.is_empty() { Err("the limit has ended".into()) } else { Ok(line) }
    }
}

/// The child's side. It serves until it is killed.
pub fn serve(addr: SocketAddr) -> Outcome<()> {
    let listener = {
        let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&addr.into())?;
        socket.listen(4096)?;
        socket.set_nonblocking(true)?;
        TcpListener::from(socket)
    };
    let poller = Poller::new()?;
    poller.add(&listener, LISTENER, READ)?;
    let mut writer = Writer { poller, peers: Slab::new(), buffer: Vec::new() };
    loop {
        let ready = writer.poller.wait(None)?;
        for event in &ready {
            let flags = event.flags;
            match event.data.u64() as usize {
                LISTENER => writer.accept(&listener)?,
                // An earlier event of the same wait may have removed the peer.
                token if !writer.peers.contains(token) => {}
                token if flags.contains(Interest::OUT) => writer.write(token)?,
                token => writer.read(token)?,
            }
        }
        writer.poller.done(ready);
    }
}

struct Writer {
    poller: Poller,
    peers: Slab<Peer>,
    buffer: Vec<u8>,
}

struct Peer {
    socket: TcpStream,
    commands: bool,
    /// Bytes at the end of the buffer that the peer has not received.
    owed: usize,
    /// True if the poller reports when the peer can be written to.
    watched: bool,
}

impl Writer {
    fn accept(&mut self, listener: &TcpListener) -> Outcome<()> {
        loop {
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            let slot = self.peers.vacant_entry();
            self.poller.add(&socket, slot.key(), READ)?;
            slot.insert(Peer { socket, commands: false, owed: 0, watched: false });
        }
    }

    fn read(&mut self, token: usize) -> Outcome<()> {
        let mut inbox = [0; 4096];
        match self.peers[token].socket.read(&mut inbox) {
            Ok(0) | Err(_) => drop(self.peers.remove(token)),
            Ok(count) if inbox[..count].starts_with(b"GET ") => {
                self.peers[token].owed = self.buffer.len();
                self.write(token)?;
            }
            Ok(count) => self.obey(token, &inbox[..count])?,
        }
        Ok(())
    }

    fn obey(&mut self, token: usize, command: &[u8]) -> Outcome<()> {
        self.peers[token].commands = true;
        if command == b"send\n" {
            let everyone: Vec<usize> =
                self.peers.iter().filter(|(_, peer)| !peer.commands).map(|(token, _)| token).collect();
            for token in everyone {
                self.peers[token].owed = self.buffer.len();
                self.write(token)?;
            }
            return Ok(());
        }
        let answer = if command == b"peers\n" {
            self.peers.iter().filter(|(_, peer)| !peer.commands).count().to_string()
        } else {
            self.load(token, command)?;
            "ok".to_owned()
        };
        Ok(self.peers[token].socket.write_all(format!("{answer}\n").as_bytes())?)
    }

    fn load(&mut self, token: usize, command: &[u8]) -> Outcome<()> {
        let end = memchr::memchr(b'\n', command).ok_or("a command without an end")?;
        let size: usize = std::str::from_utf8(&command[..end])?.trim_start_matches("load ").parse()?;
        let first = &command[end + 1..];
        self.buffer = vec![0; size];
        self.buffer[..first.len()].copy_from_slice(first);
        let mut socket = &self.peers[token].socket;
        socket.set_nonblocking(false)?;
        socket.read_exact(&mut self.buffer[first.len()..])?;
        Ok(socket.set_nonblocking(true)?)
    }

    fn write(&mut self, token: usize) -> Outcome<()> {
        let peer = &mut self.peers[token];
        let owed = &self.buffer[self.buffer.len() - peer.owed..];
        match peer.socket.write(owed) {
            Ok(count) => peer.owed -= count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => {
                self.peers.remove(token);
                return Ok(());
            }
        }
        let interest = if peer.owed > 0 { READ_WRITE } else { READ };
        if peer.owed > 0 || peer.watched {
            self.poller.change(&peer.socket, token, interest)?;
            peer.watched = peer.owed > 0;
        }
        Ok(())
    }
}
