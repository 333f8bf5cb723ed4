//! A store that loses messages while replicas and readers use it, and the gaps that the readers get.

use std::net::SocketAddr;

use serde_json::Value;

use crate::{
    deployment::{Deployment, until_ready},
    reader::Reader,
    support::{
        client::{Start, Transport},
        frame::Cursor,
    },
};

pub const TOPIC: &str = "lost.topic";

pub struct Scene {
    pub deployment: Deployment,
    /// Readers on every replica and transport, all of them caught up.
    live: Vec<Reader>,
    pub published: Vec<Cursor>,
}

impl Scene {
    /// Publishes the first messages, and lets readers of the topic and of a pattern read them.
    pub async fn set(deployment: Deployment, messages: usize) -> Self {
        let mut scene = Self { deployment, live: Vec::new(), published: Vec::new() };
        scene.publish(messages).await;
        for addr in scene.deployment.addrs() {
            for transport in Transport::ALL {
                scene.live.push(Reader::open(addr, transport, TOPIC, Start::All).await);
            }
            scene.live.push(Reader::open(addr, Transport::Ndjson, "lost.*", Start::All).await);
        }
        scene.read_to_the_end().await;
        scene
    }

    /// Publishes each message on the next replica. Checks that ids grow.
    pub async fn publish(&mut self, messages: usize) {
        let addrs = self.deployment.addrs();
        for number in 0..messages {
            let id = publish(addrs[number % addrs.len()]).await;
            assert!(
                self.published.last().is_none_or(|last| *last < id),
                "{id} comes after {:?}",
                self.published
            );
            self.published.push(id);
        }
    }

    pub async fn read_to_the_end(&mut self) {
        let last = *self.published.last().expect("something was published");
        for reader in &mut self.live {
            reader.until(last).await;
        }
    }

    /// Everything but the first `kept` messages is gone. Each reader with an older cursor gets one gap, on
    /// the connection that it has.
    pub async fn all_older_cursors_are_told(mut self, kept: usize) {
        for addr in self.deployment.addrs() {
            until_ready(addr).await;
        }
        let before = self.published.len();
        assert!(kept < before, "nothing was in fact lost");
        self.publish(3).await;
        self.read_to_the_end().await;
        let after = self.published[before..].to_vec();
        for reader in &self.live {
            assert_eq!(reader.gaps.len(), 1, "{}: {:?}", reader.name, reader.gaps);
            assert_eq!(reader.told_after, [before], "{}", reader.name);
            assert_eq!(reader.given, self.published, "{}", reader.name);
        }
        // A client that resumes with an older cursor gets the remaining messages, a gap, and then the new
        // messages.
        for (number, addr) in self.deployment.addrs().into_iter().cycle().take(8).enumerate() {
            let transport = Transport::ALL[number % 4];
            for stood in [0, kept.saturating_sub(1), before - 1] {
                let start = Start::After(self.published[stood]);
                let mut reader = Reader::open(addr, transport, TOPIC, start).await;
                reader.until(after[2]).await;
                let left: Vec<_> = self.published[..kept].iter().skip(stood + 1).copied().collect();
                assert_eq!(reader.gaps.len(), 1, "{}: {:?}", reader.name, reader.gaps);
                assert_eq!(reader.told_after, [left.len()], "{}: {:?}", reader.name, reader.gaps);
                assert_eq!(reader.given, [left, after.clone()].concat(), "{}", reader.name);
            }
            self.is_told_nothing(addr, transport, after[0], &after[1..]).await;
        }
        self.deployment.stop().await;
    }

    /// The first messages are gone from the topic. Readers behind them get a gap, and readers that are caught
    /// up do not.
    pub async fn only_readers_behind_are_told(mut self) {
        let before = self.published.len();
        self.publish(3).await;
        self.read_to_the_end().await;
        let after = self.published[before..].to_vec();
        for reader in &self.live {
            assert!(reader.gaps.is_empty(), "{}: {:?}", reader.name, reader.gaps);
            assert_eq!(reader.given, self.published, "{}", reader.name);
        }
        // The replicas still give the messages in their tails. A new replica has only the store.
        let other = Deployment::over(&[self.url()]).await;
        let addr = other.addrs()[0];
        for transport in Transport::ALL {
            for filter in [TOPIC, "lost.*"] {
                let start = Start::After(self.published[0]);
                let mut reader = Reader::open(addr, transport, filter, start).await;
                reader.until(after[2]).await;
                assert_eq!((reader.gaps.len(), &*reader.told_after), (1, &[0][..]), "{}", reader.name);
                assert_eq!(reader.given, after, "{}", reader.name);
            }
            self.is_told_nothing(addr, transport, self.published[before - 1], &after).await;
        }
        other.stop().await;
        self.deployment.stop().await;
    }

    async fn is_told_nothing(&self, addr: SocketAddr, transport: Transport, after: Cursor, given: &[Cursor]) {
        let mut reader = Reader::open(addr, transport, TOPIC, Start::After(after)).await;
        reader.until(*given.last().expect("something is to come")).await;
        assert!(reader.gaps.is_empty(), "{}: {:?}", reader.name, reader.gaps);
        assert_eq!(reader.given, given, "{}", reader.name);
    }

    fn url(&self) -> String {
        self.deployment.urls[0].clone()
    }
}

async fn publish(addr: SocketAddr) -> Cursor {
    let client = crate::support::http_client().build().expect("a client");
    let request = client.post(format!("http://{addr}/topics/{TOPIC}")).body("x");
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.status(), 201);
    let answer: Value = serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON");
    answer["id"].as_str().and_then(|id| id.parse().ok()).expect("an id")
}
