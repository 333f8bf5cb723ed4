//! Connections whose topics are changed by their ids.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::BoxStream};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use reqwest::Method;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    journal::{End, Got, Session, Shared},
    world::{Phase, World, number_of, token},
};

/// How long a connection may take to open. The replica may hang.
const OPENS_WITHIN: Duration = Duration::from_secs(4);

/// A stream of NDJSON that may end at any time.
pub struct Stream {
    chunks: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    rest: Vec<u8>,
}

impl Stream {
    /// The first frame comes along. `None` if the replica has no place for it, or is away.
    ///
    /// # Panics
    /// If the replica refuses it. Only the readers of lists may be refused, after the end of their subject.
    pub async fn open(world: &World, replica: usize, path: &str, token: &str) -> Option<(Self, Value)> {
        let request = world.get(replica, path, token).header("accept", "application/x-ndjson");
        let opened = async {
            let answer = request.send().await.ok()?;
            let status = answer.status().as_u16();
            let may_end = status == 403 && path.starts_with("/events?mine");
            assert!(status == 200 || status >= 429 || may_end, "{path}: {answer:?}");
            answer.error_for_status_ref().ok()?;
            let mut stream = Self { chunks: answer.bytes_stream().boxed(), rest: Vec::new() };
            let open = stream.next().await?;
            (open["type"] == "open").then_some((stream, open))
        };
        timeout(OPENS_WITHIN, opened).await.ok()?
    }

    /// The next frame, or `None` at the end.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves loses no frame.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("JSON"));
            }
            self.rest.extend_from_slice(&self.chunks.next().await?.ok()?);
        }
    }
}

/// Opens a connection of this subject, with a new session for it.
pub async fn open(
    world: &World,
    random: &mut SmallRng,
    path: &str,
    sub: &str,
) -> Option<(Stream, Value, Shared)> {
    let replica = world.any(random);
    let (stream, open) = Stream::open(world, replica, path, &token(sub)).await?;
    let session = Session {
        sub: sub.to_owned(),
        connection: open["connection"].as_str().expect("an id").to_owned(),
        replica,
        opened: world.tick(),
        from: number_of(&open["cursor"]),
        got: Vec::new(),
        is_over: false,
    };
    Some((stream, open, Arc::new(Mutex::new(session))))
}

/// Reads a connection until it ends.
pub async fn read(world: &World, stream: &mut Stream, session: &Shared) {
    while let Some(frame) = stream.next().await {
        let got = Got::of(world.tick(), &frame);
        session.lock().expect("no actor panics").got.extend(got);
    }
}

/// Connects again and again, and has the topics of the connection changed while it reads.
pub async fn live(world: Arc<World>, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let sub = format!("c{}", seed % 2);
    // When one of its connections was ended by its id.
    let mut ended_at = None;
    while world.phase() == Phase::Storm {
        let Some((mut stream, _, session)) = open(&world, &mut random, "/events?topic=end", &sub).await
        else {
            world.pause(&mut random, 20..200).await;
            continue;
        };
        world.journal().connections.push(session.clone());
        let connection = session.lock().expect("no actor panics").connection.clone();
        let (last_end, is_ending) = (ended_at, AtomicBool::new(false));
        let commanded = async {
            let most = random.random_range(20..120);
            let mut count = 0;
            while world.phase() == Phase::Storm {
                let ends = count >= 5 && world.needs_end(last_end);
                is_ending.store(ends, Ordering::Relaxed);
                if !command(&world, &mut random, &connection, ends).await {
                    break;
                }
                world.pause(&mut random, 5..150).await;
                count += 1;
                if count == most {
                    return false;
                }
            }
            true
        };
        let reading = read(&world, &mut stream, &session);
        tokio::pin!(reading, commanded);
        tokio::select! {
            // The stream may end before the request to end it is answered, which the journal needs.
            () = &mut reading => if is_ending.load(Ordering::Relaxed) { commanded.await; },
            stays = &mut commanded => if stays {
                // A connection that is gone for the others may yet be read for a while.
                tokio::select! {
                    () = reading => {}
                    () = world.until(Phase::Over) => {}
                }
            },
        }
        session.lock().expect("no actor panics").is_over = true;
        let end = world.journal().ends.iter().find(|end| end.of == connection).map(|end| end.asked);
        ended_at = end.or(ended_at);
    }
}

/// Makes one change, or ends the connection. False if it lives no longer.
async fn command(world: &World, random: &mut SmallRng, connection: &str, must_end: bool) -> bool {
    let path = format!("/connections/{connection}");
    if must_end || random.random_bool(0.01) {
        let Some((asked, answered, status)) = world.insist(random, Method::DELETE, &path).await else {
            return false;
        };
        let mut journal = world.journal();
        if status == 204 {
            journal.ends.push(End { of: connection.to_owned(), asked, answered });
        }
        journal.gone.push(connection.to_owned());
        return false;
    }
    let (topic, is_added) = (format!("c.{}", random.random_range(0..4)), random.random_bool(0.6));
    match world.change(random, connection, topic, is_added, &path).await {
        Some(404) => world.journal().gone.push(connection.to_owned()),
        Some(_) => return true,
        None => {}
    }
    false
}
