//! A store that loses something behind the back of replicas and their readers, and what everybody is told then.

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
    /// On every replica and every transport, level with what was published so far.
    live: Vec<Reader>,
    pub published: Vec<Cursor>,
}

impl Scene {
    /// Readers who have been given the first messages, of the topic and of a pattern.
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

    /// Each over another replica. Ids never go back.
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

    /// Everything but the first `kept` messages is gone: everybody who stands before what comes now is told so,
    /// once, and on the connection that they have.
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
        // Who comes back with an older cursor is given what is left, told, and then given what came since.
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

    /// The messages between are gone from the topic: who is behind is told, who is level is not.
    pub async fn only_those_behind_are_told(mut self) {
        let before = self.published.len();
        self.publish(3).await;
        self.read_to_the_end().await;
        let after = self.published[before..].to_vec();
        for reader in &self.live {
            assert!(reader.gaps.is_empty(), "{}: {:?}", reader.name, reader.gaps);
            assert_eq!(reader.given, self.published, "{}", reader.name);
        }
        // What the replicas hold in memory is still given; another one has only the store.
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
