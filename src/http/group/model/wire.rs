//! The wire of the model: sockets of which the model says how much they take, and what came to the clients.

use std::{
    io,
    net::{TcpListener, TcpStream},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress};
use tokio::io::AsyncWrite;

use crate::{
    http::{
        batch::{Encoded, Form},
        gzip::{self, Sum},
    },
    message::Id,
};

/// The near end of a socket: how much it takes, and what it has taken.
#[derive(Default)]
pub struct Near {
    pub taken: Vec<u8>,
    /// How many bytes it takes before it is full. `None` if it takes all.
    pub room: Option<usize>,
    /// The task of the connection is writing, or may write. Then the group may not.
    pub is_tasks: bool,
}

impl Near {
    pub fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.room.map_or(bytes.len(), |room| room.min(bytes.len()));
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.room = self.room.map(|room| room - count);
        self.taken.extend_from_slice(&bytes[..count]);
        Ok(count)
    }
}

/// The socket as the task of the connection has it.
pub struct Own(pub Arc<Mutex<Near>>);

impl AsyncWrite for Own {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.0.lock().expect("one thread").take(bytes) {
            Err(_) => Poll::Pending,
            taken => Poll::Ready(taken),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Something that came to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Came {
    Message(Id),
    Ephemeral(String),
    Gap(String),
}

/// A socket that gets no bytes: the model answers every write.
pub fn socket() -> tokio::net::TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection");
    let (near, _) = listener.accept().expect("a connection");
    drop(far);
    near.set_nonblocking(true).expect("it can");
    tokio::net::TcpStream::from_std(near).expect("a socket")
}

/// Bytes of a reader's own.
pub fn encoded(form: Form, plain: &[u8]) -> Encoded {
    match form {
        Form::Gzip(_) => Encoded { bytes: gzip::piece(plain), plain: Sum::of(plain) },
        _ => Encoded { bytes: Bytes::copy_from_slice(plain), plain: Sum::default() },
    }
}

/// The lines that have come whole. They must have come in whole chunks, and each chunk in whole lines.
pub fn plain(mut bytes: &[u8], is_whole: bool, form: Form) -> Vec<u8> {
    let (mut inflate, mut plain) = (Decompress::new(false), Vec::new());
    while let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") {
        let size = std::str::from_utf8(&bytes[..end]).expect("text");
        let size = usize::from_str_radix(size, 16).expect("the size of a chunk");
        let Some(chunk) = bytes.get(end + 2..end + 2 + size) else { break };
        let Some(line_end) = bytes.get(end + 2 + size..end + 4 + size) else { break };
        assert_eq!(line_end, b"\r\n");
        if let Form::Gzip(_) = form {
            plain.reserve(64 << 10);
            inflate.decompress_vec(chunk, &mut plain, FlushDecompress::Sync).expect("whole blocks");
        } else {
            plain.extend_from_slice(chunk);
        }
        assert!(plain.ends_with(b"\n"), "a chunk ends with a line");
        bytes = &bytes[end + 4 + size..];
    }
    assert!(!is_whole || bytes.is_empty(), "a piece is cut off");
    plain
}

/// Everything that has come whole.
pub fn parse(bytes: &[u8], is_whole: bool, form: Form) -> Vec<Came> {
    let came = |line: &[u8]| {
        let value: serde_json::Value = serde_json::from_slice(line).expect("a whole line");
        match (&value["gap"], &value["data"]) {
            (serde_json::Value::String(topic), _) => Came::Gap(topic.clone()),
            (_, serde_json::Value::String(text)) => match text.parse() {
                Ok(id) => Came::Message(Id::new(id)),
                Err(_) => Came::Ephemeral(text.clone()),
            },
            _ => panic!("{value}"),
        }
    };
    let plain = plain(bytes, is_whole, form);
    plain.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(came).collect()
}

/// The ids among this.
pub fn ids(came: &[Came]) -> Vec<Id> {
    let id = |came: &Came| match came {
        Came::Message(id) => Some(*id),
        _ => None,
    };
    came.iter().filter_map(id).collect()
}
