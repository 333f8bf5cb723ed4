//! The session of TLS on one socket: its keys, and the bytes on their way through it.
//!
//! rustls is given the bytes, and keeps none of them. So a session at rest has no memory but for its keys.

use std::{
    cell::RefCell,
    fmt,
    io::{self, IoSlice, Read, Write},
    mem,
    sync::Arc,
};

use rustls::{
    Error, ServerConfig,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic},
};

/// How many bytes one write encrypts. So many may wait that the socket has not taken.
pub const MAX_WAITING_BYTES: usize = 32 << 10;
/// How many bytes are read at once.
const READ_BYTES: usize = 4 << 10;
/// A message of the handshake may come in many pieces, and is processed when it is whole.
const MAX_HANDSHAKE_BYTES: usize = 64 << 10;
/// After the handshake no message is longer than one record (RFC 5246 §6.2.3), and a client may stay long.
const MAX_RECORD_BYTES: usize = 5 + (16 << 10) + 2048;

thread_local! {
    /// The place where a thread encrypts, before it gives the bytes to a socket.
    static ENCRYPTED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub struct Session {
    tls: UnbufferedServerConnection,
    /// Bytes of the client that make no whole message yet.
    encrypted: Vec<u8>,
    /// Bytes of the client that nobody has taken yet, after those that were.
    received: Vec<u8>,
    taken: usize,
    /// Bytes that the socket has not taken.
    waiting: Vec<u8>,
    /// The client sends no more.
    has_ended: bool,
    /// The client broke the protocol. Then rustls may be given nothing more.
    failure: Option<Error>,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self {
            tls: UnbufferedServerConnection::new(config)?,
            encrypted: Vec::new(),
            received: Vec::new(),
            taken: 0,
            waiting: Vec::new(),
            has_ended: false,
            failure: None,
        })
    }

    /// The protocol that both sides have agreed on.
    #[cfg(feature = "acme")]
    pub fn alpn_protocol(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    pub fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// True if bytes wait that the socket has not taken.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// True if the client sends no more.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The bytes of the client that nobody has taken.
    pub fn received(&self) -> &[u8] {
        &self.received[self.taken..]
    }

    /// Forgets the first bytes of what was received.
    pub fn take(&mut self, length: usize) {
        self.taken += length;
        if self.taken == self.received.len() {
            (self.received, self.taken) = (Vec::new(), 0);
        }
    }

    /// Reads from the socket once. [`process`](Self::process) decrypts the bytes. They are none at the end.
    pub fn read(&mut self, socket: &mut impl Read) -> io::Result<usize> {
        let kept = self.encrypted.len();
        let max = if self.is_handshaking() { MAX_HANDSHAKE_BYTES } else { MAX_RECORD_BYTES };
        if kept >= max {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.encrypted.reserve_exact(READ_BYTES);
        self.encrypted.resize(kept + READ_BYTES, 0);
        let read = socket.read(&mut self.encrypted[kept..]);
        self.encrypted.truncate(kept + read.as_ref().map_or(0, |length| *length));
        if self.encrypted.is_empty() {
            self.encrypted = Vec::new();
        }
        self.has_ended |= matches!(read, Ok(0));
        read
    }

    /// Decrypts what was read, and encrypts the answers of the protocol. These wait then, also after an error, because
    /// the client is told of it.
    pub fn process(&mut self) -> Result<(), Error> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let mut encrypted = mem::take(&mut self.encrypted);
        let mut used = 0;
        loop {
            let UnbufferedStatus { discard, state } = self.tls.process_tls_records(&mut encrypted[used..]);
            let mut discarded = discard;
            match state {
                Ok(ConnectionState::ReadTraffic(mut records)) => {
                    while let Some(Ok(record)) = records.next_record() {
                        discarded += record.discard;
                        self.received.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(answer)) => encode(answer, &mut self.waiting),
                // It waits, in its order.
                Ok(ConnectionState::TransmitTlsData(answer)) => answer.done(),
                Ok(ConnectionState::PeerClosed) => self.has_ended = true,
                Ok(_) => {
                    encrypted.drain(..used + discarded);
                    break;
                }
                Err(error) => {
                    self.failure = Some(error.clone());
                    self.encode_alert(&mut encrypted[used..]);
                    return Err(error);
                }
            }
            used += discarded;
        }
        if !encrypted.is_empty() {
            self.encrypted = encrypted;
        }
        Ok(())
    }

    /// Lets the alert about an error wait. `rest` is not looked at: an answer comes before it.
    fn encode_alert(&mut self, rest: &mut [u8]) {
        while self.tls.wants_write() {
            let Ok(ConnectionState::EncodeTlsData(answer)) = self.tls.process_tls_records(rest).state else {
                return;
            };
            encode(answer, &mut self.waiting);
        }
    }

    /// Gives the socket what waits. True if nothing waits any more.
    pub fn send(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        let mut sent = 0;
        while sent < self.waiting.len() {
            match socket.write(&self.waiting[sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => sent += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.waiting.drain(..sent);
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        self.waiting = Vec::new();
        Ok(true)
    }

    /// Encrypts the beginning of `bytes`, and gives the socket as much as it takes. The rest waits, so nothing may
    /// wait before. Returns how many of `bytes` were encrypted.
    pub fn write(&mut self, bytes: &[u8], socket: &mut impl Write) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(MAX_WAITING_BYTES)];
        self.write_by(socket, |traffic, room| traffic.encrypt(bytes, room))?;
        Ok(bytes.len())
    }

    /// The same with bytes that lie in several places.
    pub fn write_vectored(&mut self, slices: &[IoSlice<'_>], socket: &mut impl Write) -> io::Result<usize> {
        let mut filled = slices.iter().filter(|slice| !slice.is_empty());
        let first: &[u8] = filled.next().map_or(&[], |slice| slice);
        let Some(second) = filled.next().filter(|_| first.len() < MAX_WAITING_BYTES) else {
            return self.write(first, socket);
        };
        // A record costs more than to copy what it has.
        let mut joined = first.to_vec();
        for slice in std::iter::once(second).chain(filled) {
            let room = MAX_WAITING_BYTES - joined.len();
            joined.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        self.write(&joined, socket)
    }

    /// Says that nothing follows (RFC 8446 §6.1), once what waits has left. It says so only once, and not after an error
    /// of the client.
    pub fn close(&mut self) {
        let _ = self.write_by(&mut Full, |traffic, room| traffic.queue_close_notify(room));
    }

    fn write_by(
        &mut self,
        socket: &mut impl Write,
        encrypt: impl Fn(&mut WriteTraffic<'_, ServerConnectionData>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> io::Result<()> {
        if self.failure.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // Everything that was read is processed already, so this changes nothing.
        let state = self.tls.process_tls_records(&mut self.encrypted).state;
        let Ok(ConnectionState::WriteTraffic(mut traffic)) = state else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        ENCRYPTED.with_borrow_mut(|room| {
            let length = loop {
                match encrypt(&mut traffic, room) {
                    Ok(length) => break length,
                    Err(EncryptError::InsufficientSize(short)) => room.resize(short.required_size, 0),
                    Err(EncryptError::EncryptExhausted) => return Err(io::ErrorKind::BrokenPipe.into()),
                }
            };
            let sent = match socket.write(&room[..length]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                written => written?,
            };
            self.waiting.extend_from_slice(&room[sent..length]);
            Ok(())
        })
    }
}

/// Adds an answer of the protocol to the bytes that wait.
fn encode(mut answer: EncodeTlsData<'_, ServerConnectionData>, waiting: &mut Vec<u8>) {
    let start = waiting.len();
    // Without room it says how much it needs.
    if let Err(EncodeError::InsufficientSize(short)) = answer.encode(&mut []) {
        waiting.resize(start + short.required_size, 0);
        answer.encode(&mut waiting[start..]).expect("there is as much room as it needs");
    }
}

/// A socket that takes nothing.
struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
