//! Publishers: they publish one message at a time, in batches, and over a WebSocket. The checker never cuts
//! them, so the outcome of every message is known. If the server is in trouble, they repeat a message with
//! the same key until its outcome is known.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rand::{RngExt, rngs::StdRng};
use reqwest::Client;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Trouble, World,
    payload::Payload,
    truth::{Published, TOPICS},
};
use crate::support::{
    client::{Connection, Manner, Start, Stop, Transport, Wish},
    frame::{Cursor, Frame},
    http_client,
};

/// The pause between two publishes, so that a small machine can carry the load. No test waits for it.
const PAUSE_MS: std::ops::Range<u64> = 2..16;

/// After this time a publisher gives up a server that does not answer, and tries another one.
const PATIENCE: Duration = Duration::from_secs(4);
/// The pause before a publish is repeated.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Publishes until the subscribers have had all their cuts, and then a last message to every topic.
pub async fn publish(world: Arc<World>, number: usize) -> Result<(), String> {
    let name = format!("publisher {number}");
    let mut publisher = Publisher {
        rng: world.rng(&name),
        client: http_client().timeout(PATIENCE).build().expect("a client without options that can fail"),
        name: name.clone(),
        socket: None,
        keys: 0,
        last_id: 0,
        last_ids: BTreeMap::new(),
        world,
    };
    while publisher.world.is_busy() {
        publisher.world.note(&name, "waits for the acknowledgement of a message".to_owned());
        let way = match number {
            0 => publisher.batch().await,
            1 => publisher.command().await,
            _ => publisher.single_somewhere().await,
        };
        way.map_err(|error| format!("{name}: {error}"))?;
        let pause = Duration::from_millis(publisher.rng.random_range(PAUSE_MS));
        tokio::time::sleep(pause).await;
    }
    for topic in TOPICS {
        publisher.single(topic).await.map_err(|error| format!("{name}: {error}"))?;
    }
    publisher.world.is_done(&name);
    Ok(())
}

struct Publisher {
    world: Arc<World>,
    rng: StdRng,
    client: Client,
    name: String,
    /// The socket for commands, opened when it is needed.
    socket: Option<Connection>,
    keys: u64,
    last_id: Cursor,
    last_ids: BTreeMap<&'static str, Cursor>,
}

/// The reason why a publish failed.
enum Failure {
    /// The outcome is unknown, or nothing was stored.
    Unsure(String),
    Wrong(String),
}

#[derive(Deserialize)]
struct Receipt {
    id: Option<String>,
    topic: Option<String>,
    #[serde(default)]
    ids: BTreeMap<String, String>,
}

impl Publisher {
    fn topic(&mut self) -> &'static str {
        TOPICS[self.rng.random_range(0..TOPICS.len())]
    }

    fn draw(&mut self, topic: &'static str) -> Payload {
        let number = self.world.truth.start(topic);
        Payload::draw(topic, number, &mut self.rng)
    }

    async fn single_somewhere(&mut self) -> Result<(), String> {
        let topic = self.topic();
        self.single(topic).await
    }

    /// A new idempotency key, if the server is in trouble and messages may be repeated.
    fn next_key(&mut self) -> Option<String> {
        self.keys += 1;
        let is_troubled = self.world.plan.trouble != Trouble::None;
        is_troubled.then(|| format!("{}-{}-{}", self.world.seed, self.name.replace(' ', "-"), self.keys))
    }

    /// Waits before the publish is repeated, if the run expects trouble.
    async fn wait_or_fail(&mut self, failure: Failure) -> Result<(), String> {
        match failure {
            Failure::Unsure(_) if self.world.plan.trouble != Trouble::None => {
                self.world.tally.repeat();
                tokio::time::sleep(AGAIN_AFTER).await;
                Ok(())
            }
            Failure::Unsure(why) | Failure::Wrong(why) => Err(why),
        }
    }

    async fn single(&mut self, topic: &'static str) -> Result<(), String> {
        let payload = self.draw(topic);
        let key = self.next_key();
        loop {
            match self.post(topic, &payload, key.as_deref()).await {
                Ok(id) => return self.acknowledge(&id, self.last_id, true, topic, &payload),
                Err(failure) => self.wait_or_fail(failure).await?,
            }
        }
    }

    async fn post(
        &mut self,
        topic: &'static str,
        payload: &Payload,
        key: Option<&str>,
    ) -> Result<String, Failure> {
        let server = self.world.server(&mut self.rng);
        let mut url = reqwest::Url::parse(&format!("http://{server}/topics/")).expect("a URL");
        url.path_segments_mut().expect("a URL with a path").pop_if_empty().push(topic);
        if let Some(event) = &payload.event {
            url.query_pairs_mut().append_pair("event", event);
        }
        let mut request = self.client.post(url).header("content-type", payload.content_type());
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let response = request.body(payload.bytes()).send().await.map_err(unsure)?;
        let status = response.status();
        let body = response.text().await.map_err(unsure)?;
        let is_stored = status == 201 || (status == 200 && key.is_some());
        match serde_json::from_str(&body) {
            Ok(Receipt { id: Some(id), topic: Some(named), .. }) if is_stored && named == topic => Ok(id),
            _ => {
                let came = format!("publishing to {topic} was answered with {status} {body}");
                Err(if status == 503 { Failure::Unsure(came) } else { Failure::Wrong(came) })
            }
        }
    }

    /// `POST /publish`: an array or NDJSON, each item to one topic or to two.
    async fn batch(&mut self) -> Result<(), String> {
        let size = self.rng.random_range(1..6);
        let mut items = Vec::new();
        let mut sent = Vec::new();
        for _ in 0..size {
            let topic = self.topic();
            let payload = self.draw(topic).compact();
            let mut item = payload.item();
            if let Some(key) = self.next_key() {
                item.insert("idempotency_key".to_owned(), json!(key));
            }
            let mut topics = vec![topic];
            let other = self.topic();
            if other != topic && self.rng.random_bool(0.3) {
                self.world.truth.start(other);
                topics.push(other);
                item.insert("topics".to_owned(), json!(topics));
            } else {
                item.insert("topic".to_owned(), json!(topic));
            }
            items.push(Value::Object(item));
            sent.push((topics, payload));
        }
        let (content_type, body) = match self.rng.random_bool(0.5) {
            true => ("application/json", Value::Array(items).to_string()),
            false => {
                ("application/x-ndjson", items.iter().map(|item| format!("{item}\n")).collect::<String>())
            }
        };
        let before = self.last_id;
        let mut is_first = true;
        let ids = loop {
            match self.post_batch(content_type, &body, &sent).await {
                Ok(ids) => break ids,
                Err(failure) => self.wait_or_fail(failure).await?,
            }
            is_first = false;
        };
        for (id, topic, payload) in ids {
            // A message that was stored only by a repetition comes after the messages that followed it.
            self.acknowledge(&id, before, is_first, topic, payload)?;
        }
        Ok(())
    }

    /// The id of each item for each of its topics.
    async fn post_batch<'a>(
        &mut self,
        content_type: &str,
        body: &str,
        sent: &'a [(Vec<&'static str>, Payload)],
    ) -> Result<Vec<(String, &'static str, &'a Payload)>, Failure> {
        let request = self.client.post(format!("http://{}/publish", self.world.server(&mut self.rng)));
        let request = request.header("content-type", content_type).body(body.to_owned());
        let response = request.send().await.map_err(unsure)?;
        let is_away = response.status() == 503;
        let body = response.text().await.map_err(unsure)?;
        if is_away {
            return Err(Failure::Unsure(body));
        }
        let receipts: Vec<Receipt> =
            serde_json::from_str(&body).map_err(|error| Failure::Wrong(format!("{error}: {body}")))?;
        if receipts.len() != sent.len() {
            return Err(Failure::Wrong(format!("{} items were answered with {body}", sent.len())));
        }
        let mut ids = Vec::new();
        for ((topics, payload), receipt) in sent.iter().zip(receipts) {
            for &topic in topics {
                let id = if topics.len() > 1 { receipt.ids.get(topic) } else { receipt.id.as_ref() };
                let id = id.ok_or_else(|| Failure::Unsure(format!("no id for {topic} in {body}")))?;
                ids.push((id.clone(), topic, payload));
            }
        }
        Ok(ids)
    }

    async fn command(&mut self) -> Result<(), String> {
        let topic = self.topic();
        let payload = self.draw(topic).compact();
        let key = self.next_key();
        loop {
            let publish = self.say(topic, &payload, key.as_deref());
            let said = tokio::time::timeout(PATIENCE, publish).await;
            match said.unwrap_or_else(|_| Err(Failure::Unsure("no answer".to_owned()))) {
                Ok(id) => return self.acknowledge(&id, self.last_id, true, topic, &payload),
                Err(failure) => self.wait_or_fail(failure).await?,
            }
        }
    }

    async fn say(
        &mut self,
        topic: &'static str,
        payload: &Payload,
        key: Option<&str>,
    ) -> Result<String, Failure> {
        // After an error the next command uses another socket.
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => self.open_socket().await?,
        };
        let reference = self.rng.random::<u32>().into();
        let mut command = payload.item();
        command.extend(key.map(|key| ("idempotency_key".to_owned(), json!(key))));
        command.extend([
            ("type".to_owned(), json!("publish")),
            ("topic".to_owned(), json!(topic)),
            ("ref".to_owned(), json!(reference)),
        ]);
        socket.send(&Value::Object(command)).await.map_err(failure)?;
        loop {
            match socket.next().await {
                Ok(Frame::Cursor { .. }) => {}
                Ok(Frame::Published(stored)) if stored.reference == Some(reference) => {
                    self.socket = Some(socket);
                    return Ok(stored.id.to_string());
                }
                Ok(Frame::Refusal(came)) => return Err(Failure::Unsure(came)),
                Ok(other) => {
                    return Err(Failure::Wrong(format!("the command publish was answered with {other:?}")));
                }
                Err(stop) => return Err(failure(stop)),
            }
        }
    }

    /// Ids grow, so a message that one publisher publishes later has a higher id. Within a batch (`before` is
    /// the newest id when it was sent) only the order within a topic is promised.
    fn acknowledge(
        &mut self,
        id: &str,
        before: Cursor,
        in_order: bool,
        topic: &'static str,
        payload: &Payload,
    ) -> Result<(), String> {
        let id: Cursor = id.parse().map_err(|error| format!("{error}: the id {id:?}"))?;
        let last = self.last_ids.entry(topic).or_default();
        let floor = if in_order { before.max(*last) } else { before };
        *last = id.max(*last);
        if id <= floor {
            return Err(format!("the id {id} of {topic} came after {floor}"));
        }
        self.last_id = self.last_id.max(id);
        self.world
            .truth
            .acknowledge(id, Published { topic, event: payload.event.clone(), body: payload.body() })
    }

    /// A WebSocket without a subscription.
    async fn open_socket(&mut self) -> Result<Connection, Failure> {
        let manner = Manner {
            cursor_in_header: false,
            by_post: false,
            by_path: false,
            transport_in_query: false,
            other_format: false,
            wait_s: 0,
            limit: 1,
        };
        let wish = Wish { transport: Transport::WebSocket, filters: Vec::new(), start: Start::Now, manner };
        let server = self.world.server(&mut self.rng);
        let mut socket = Connection::open(server, &wish).await.map_err(failure)?;
        match socket.next().await.map_err(failure)? {
            Frame::Open { .. } => Ok(socket),
            Frame::Refusal(came) => Err(Failure::Unsure(came)),
            other => Err(Failure::Wrong(format!("the first frame was {other:?}"))),
        }
    }
}

fn unsure(error: reqwest::Error) -> Failure {
    Failure::Unsure(error.to_string())
}

fn failure(stop: Stop) -> Failure {
    match stop {
        Stop::Ended(why) | Stop::Refused(why) | Stop::Closed(why) => Failure::Unsure(why),
        Stop::Wrong(why) => Failure::Wrong(why),
    }
}
