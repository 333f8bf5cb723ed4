//! The three transports of plain HTTP: `reqwest` for the request and the body, `sse-stream` for events.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use reqwest::{Client, Response};
use sse_stream::{Sse as Event, SseByteStream};

use super::{Start, Stop, Transport, Wish};
use crate::support::{
    frame::{Body, Cursor, Frame, Kind, Message},
    http_client,
};

type Chunks = BoxStream<'static, reqwest::Result<Bytes>>;

/// One client for each subscriber's connection, so that no two share a pool.
fn client() -> Client {
    http_client().http1_only().build().expect("a client without options that can fail")
}

async fn ask(client: &Client, addr: SocketAddr, wish: &Wish) -> Result<Response, Stop> {
    let mut request = if wish.goes_by_post() {
        client.post(format!("http://{addr}/events")).json(&wish.body())
    } else {
        client.get(format!("http://{addr}{}", wish.target()))
    };
    if !wish.manner.transport_in_query {
        request = request.header(
            "accept",
            match wish.transport {
                Transport::Sse => "text/event-stream",
                Transport::Ndjson => "application/x-ndjson",
                _ => "application/json",
            },
        );
    }
    if let Some(cursor) = wish.header() {
        request = request.header("last-event-id", cursor);
    }
    let response = request.send().await.map_err(ended)?;
    if response.status() != 200 {
        let status = response.status();
        let body = response.text().await.unwrap_or_default();
        let refusal = format!("{status} {body:?} to {wish:?}");
        return Err(if status == 503 { Stop::Refused(refusal) } else { Stop::Wrong(refusal) });
    }
    Ok(response)
}

/// Every error of the body counts as a cut; the wire knows if there was one.
fn ended(error: reqwest::Error) -> Stop {
    use std::error::Error;
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    Stop::Ended(format!("{error}{source}"))
}

pub struct Sse {
    events: SseByteStream<Chunks>,
    inside: Arc<AtomicBool>,
    raw_topic: Option<String>,
}

impl Sse {
    pub async fn open(addr: SocketAddr, wish: &Wish) -> Result<Self, Stop> {
        let body = ask(&client(), addr, wish).await?.bytes_stream();
        let inside = Arc::new(AtomicBool::new(false));
        let tap = {
            let inside = inside.clone();
            // A blank line ends an event, and no event contains one.
            let mut last_two = *b"\n\n";
            move |chunk: &Bytes| {
                chunk.iter().for_each(|&byte| last_two = [last_two[1], byte]);
                inside.store(last_two != *b"\n\n", Ordering::Relaxed);
            }
        };
        let events = SseByteStream::new(body.inspect_ok(tap).boxed());
        Ok(Self { events, inside, raw_topic: wish.raw_topic() })
    }

    pub async fn next(&mut self) -> Result<Frame, Stop> {
        match self.events.next().await {
            Some(Ok(event)) => self.read(event).map_err(Stop::Wrong),
            Some(Err(sse_stream::Error::Body(error))) => Err(Stop::Ended(error.to_string())),
            Some(Err(error)) => Err(Stop::Wrong(error.to_string())),
            None => Err(Stop::Ended("the stream is over".to_owned())),
        }
    }

    /// The last event id is the cursor for every type of event, so it must match the cursor in the data.
    fn read(&self, event: Event) -> Result<Frame, String> {
        if event.id.is_none() && event.event.as_deref() == Some("rejoin.closing") {
            // The server refused the request before it had a cursor for the client.
            return Ok(Frame::Refusal(event.data.unwrap_or_default()));
        }
        let id = event.id.as_deref().ok_or_else(|| format!("an event without an id: {event:?}"))?;
        let id: Cursor = id.parse().map_err(|error| format!("{error}: the id {id:?}"))?;
        let data = event.data.ok_or("an event without data")?;
        let frame = match (event.event.as_deref(), &self.raw_topic) {
            (Some("rejoin.binary"), Some(_)) => Frame::parse(&data)?,
            (Some(name), _) if name.starts_with("rejoin.") => control(name, &data)?,
            (_, None) => Frame::parse(&data)?,
            (name, Some(topic)) => Frame::Message(Message {
                topic: topic.clone(),
                id,
                event: name.filter(|name| *name != "message").map(str::to_owned),
                body: Body::new(Kind::Raw, data.as_bytes()),
                replay: false,
            }),
        };
        let cursor = match &frame {
            Frame::Open { cursor } | Frame::Cursor { cursor } => *cursor,
            Frame::Message(message) => message.id,
            Frame::Gap(gap) => gap.cursor,
            _ => id,
        };
        if cursor != id { Err(format!("the last event id {id} beside {frame:?}")) } else { Ok(frame) }
    }

    pub fn is_inside_a_frame(&self) -> bool {
        self.inside.load(Ordering::Relaxed)
    }
}

/// `event: rejoin.TYPE` and the object of that type.
fn control(name: &str, data: &str) -> Result<Frame, String> {
    let frame = Frame::parse(data)?;
    let expected = match frame {
        Frame::Open { .. } => "rejoin.open",
        Frame::Gap(_) => "rejoin.gap",
        Frame::Cursor { .. } => "rejoin.cursor",
        Frame::Refusal(_) => "rejoin.closing",
        _ => "another name",
    };
    if name == expected { Ok(frame) } else { Err(format!("the event {name} with {data}")) }
}

pub struct Ndjson {
    chunks: Chunks,
    line: Vec<u8>,
}

impl Ndjson {
    pub async fn open(addr: SocketAddr, wish: &Wish) -> Result<Self, Stop> {
        let chunks = ask(&client(), addr, wish).await?.bytes_stream().boxed();
        Ok(Self { chunks, line: Vec::new() })
    }

    pub async fn next(&mut self) -> Result<Frame, Stop> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.line) {
                let rest = self.line.split_off(end + 1);
                let line = std::mem::replace(&mut self.line, rest);
                let line = str::from_utf8(&line).map_err(|error| Stop::Wrong(error.to_string()))?;
                return Frame::parse(line).map_err(Stop::Wrong);
            }
            match self.chunks.next().await {
                Some(Ok(chunk)) => self.line.extend_from_slice(&chunk),
                Some(Err(error)) => return Err(ended(error)),
                None => return Err(Stop::Ended("the stream is over".to_owned())),
            }
        }
    }

    pub fn is_inside_a_frame(&self) -> bool {
        !self.line.is_empty()
    }
}

/// Polls again and again over one connection, each time with the cursor of the last answer.
pub struct Poll {
    client: Client,
    addr: SocketAddr,
    wish: Wish,
    body: Vec<u8>,
}

impl Poll {
    pub fn new(addr: SocketAddr, wish: &Wish) -> Self {
        Self { client: client(), addr, wish: wish.clone(), body: Vec::new() }
    }

    pub async fn next(&mut self) -> Result<Frame, Stop> {
        self.body.clear();
        let mut chunks = ask(&self.client, self.addr, &self.wish).await?.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            self.body.extend_from_slice(&chunk.map_err(ended)?);
        }
        let body = str::from_utf8(&self.body).map_err(|error| Stop::Wrong(error.to_string()))?;
        let frame = Frame::parse_answer(body).map_err(Stop::Wrong)?;
        if let Frame::Answer(answer) = &frame {
            self.wish.start = Start::After(answer.cursor);
        }
        self.body.clear();
        Ok(frame)
    }

    pub fn is_inside_a_frame(&self) -> bool {
        !self.body.is_empty()
    }
}
