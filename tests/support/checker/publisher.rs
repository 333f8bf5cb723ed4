//! Publishers: one message at a time, in batches, and over a WebSocket. They are never cut, so that the
//! outcome of everything they publish is known.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rand::{Rng, rngs::StdRng};
use reqwest::Client;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    MESSAGES, World,
    payload::Payload,
    truth::{Published, TOPICS},
};
use crate::support::{
    client::{Connection, Manner, Start, Stop, Transport, Wish},
    frame::{Cursor, Frame},
};

/// The pace of each publisher, so that the load is one that a small machine carries. Nothing waits for it.
const PAUSE_MS: std::ops::Range<u64> = 2..16;

/// Publishes until the subscribers have had all the cuts they need, and a last message to every topic.
pub async fn publish(world: Arc<World>, number: usize) -> Result<(), String> {
    let name = format!("publisher {number}");
    let mut publisher = Publisher {
        rng: world.rng(&name),
        client: Client::builder().no_proxy().build().expect("a client without options that can fail"),
        last_id: 0,
        last_ids: BTreeMap::new(),
        world,
    };
    let mut socket = publisher.socket().await?;
    while *publisher.world.restless.borrow() > 0 || publisher.world.truth.acknowledged() < MESSAGES {
        publisher.world.note(&name, "waits for what it published to be acknowledged".to_owned());
        let way = match number {
            0 => publisher.batch().await,
            1 => publisher.command(&mut socket).await,
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
    last_id: Cursor,
    last_ids: BTreeMap<&'static str, Cursor>,
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

    async fn single(&mut self, topic: &'static str) -> Result<(), String> {
        let payload = self.draw(topic);
        let mut url = reqwest::Url::parse(&format!("http://{}/topics/", self.world.server)).expect("a URL");
        url.path_segments_mut().expect("a URL with a path").pop_if_empty().push(topic);
        if let Some(event) = &payload.event {
            url.query_pairs_mut().append_pair("event", event);
        }
        let request = self.client.post(url).header("content-type", payload.content_type());
        let response = request.body(payload.bytes()).send().await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = response.text().await.map_err(|error| error.to_string())?;
        match serde_json::from_str(&body) {
            Ok(Receipt { id: Some(id), topic: Some(named), .. }) if status == 201 && named == topic => {
                self.acknowledge(&id, self.last_id, topic, &payload)
            }
            _ => Err(format!("publishing to {topic} was answered with {status} {body}")),
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
        let request = self.client.post(format!("http://{}/publish", self.world.server));
        let request = request.header("content-type", content_type).body(body);
        let response = request.send().await.map_err(|error| error.to_string())?;
        let body = response.text().await.map_err(|error| error.to_string())?;
        let receipts: Vec<Receipt> =
            serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        if receipts.len() != sent.len() {
            return Err(format!("{} items were answered with {body}", sent.len()));
        }
        let before = self.last_id;
        for ((topics, payload), receipt) in sent.iter().zip(&receipts) {
            for &topic in topics {
                let id = if topics.len() > 1 { receipt.ids.get(topic) } else { receipt.id.as_ref() };
                let id = id.ok_or_else(|| format!("no id for {topic} in {body}"))?;
                self.acknowledge(id, before, topic, payload)?;
            }
        }
        Ok(())
    }

    async fn command(&mut self, socket: &mut Connection) -> Result<(), String> {
        let topic = self.topic();
        let payload = self.draw(topic).compact();
        let reference = self.rng.random::<u32>().into();
        let mut command = payload.item();
        command.extend([
            ("type".to_owned(), json!("publish")),
            ("topic".to_owned(), json!(topic)),
            ("ref".to_owned(), json!(reference)),
        ]);
        socket.send(&Value::Object(command)).await.map_err(|stop| format!("{stop:?}"))?;
        loop {
            match socket.next().await {
                Ok(Frame::Cursor { .. }) => {}
                Ok(Frame::Published(stored)) if stored.reference == Some(reference) => {
                    return self.acknowledge(&stored.id.to_string(), self.last_id, topic, &payload);
                }
                other => return Err(format!("the command publish was answered with {other:?}")),
            }
        }
    }

    /// Ids grow, so what one publisher publishes later is read later. Within a batch (`before` is the newest
    /// id when it was sent) only the order within a topic is promised.
    fn acknowledge(
        &mut self,
        id: &str,
        before: Cursor,
        topic: &'static str,
        payload: &Payload,
    ) -> Result<(), String> {
        let id: Cursor = id.parse().map_err(|error| format!("{error}: the id {id:?}"))?;
        let floor = before.max(self.last_ids.insert(topic, id).unwrap_or(0));
        if id <= floor {
            return Err(format!("the id {id} of {topic} came after {floor}"));
        }
        self.last_id = self.last_id.max(id);
        self.world
            .truth
            .acknowledge(id, Published { topic, event: payload.event.clone(), body: payload.body() })
    }

    /// A WebSocket without a subscription.
    async fn socket(&mut self) -> Result<Connection, String> {
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
        let refused = |stop: Stop| format!("a WebSocket to publish on: {stop:?}");
        let mut socket = Connection::open(self.world.server, &wish).await.map_err(refused)?;
        match socket.next().await.map_err(refused)? {
            Frame::Open { .. } => Ok(socket),
            other => Err(format!("the first frame was {other:?}")),
        }
    }
}
