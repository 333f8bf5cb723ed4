//! The messages of a reader are read from the store once more, twice, while its client comes back.
//!
//! A message whose entry is missing in the feed makes a replica repair all its readers: their tails drop what
//! they hold, and every reader asks the store. A reader gets such a message in no other way.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use tokio::task::JoinSet;

use crate::{
    across::{json, post},
    deployment::{Deployment, play, rounds, seed},
    holes::store_in_silence,
    proxy::{Proxy, Stall},
    reader::Reader,
    support::{
        checker::Trouble,
        client::{Start, Transport},
        frame::Cursor,
        redis::Redis,
    },
};

const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How many repairs the checker goes through in a round.
const REPAIRS: usize = 8;

/// Two replicas over one Redis. The publishing connection of the first one can be held up, so that its readers
/// wait for the store.
struct Scene {
    redis: Redis,
    proxy: Proxy,
    deployment: Deployment,
}

impl Scene {
    async fn set() -> Option<Self> {
        let redis = Redis::start(&[])?;
        let proxy = Proxy::to(redis.addr(), Duration::ZERO).await;
        let deployment = Deployment::over(&[proxy.url(), redis.url()]).await;
        Some(Self { redis, proxy, deployment })
    }

    fn here(&self) -> SocketAddr {
        self.deployment.addrs()[0]
    }

    fn there(&self) -> SocketAddr {
        self.deployment.addrs()[1]
    }

    async fn publish(&self, topic: &str) -> Cursor {
        let answer = json(post(self.there(), &format!("/topics/{topic}"), None, "x").await).await;
        answer["id"].as_str().and_then(|id| id.parse().ok()).expect("an id")
    }

    /// Stores two messages without their entries, and one whose entry shows that they are missing.
    async fn cause_repair(&self, [topic, other]: &[String; 2]) -> Vec<Cursor> {
        let silent = [topic, other].map(|topic| store_in_silence(&self.redis, topic).to_string());
        let mut ids: Vec<_> = silent.iter().map(|id| id.parse().expect("an id")).collect();
        ids.push(self.publish(topic).await);
        ids
    }

    async fn delete(&self, topic: &str) {
        let client = crate::support::http_client().build().expect("a client");
        let url = format!("http://{}/topics/{topic}", self.there());
        assert_eq!(client.delete(url).send().await.expect("an answer").status(), 204);
    }

    /// Two repairs while the client comes back, and one more when it is there again. Returns the messages after
    /// its cursor, by repair, and the reader that came back.
    async fn repair_twice(
        &self,
        Case { transport, topics, filter }: &Case,
        deletes: bool,
    ) -> ([Vec<Cursor>; 3], Reader) {
        let first = self.publish(&topics[0]).await;
        let mut reader = Reader::open(self.here(), *transport, filter, Start::All).await;
        reader.until(first).await;
        assert_eq!((&*reader.given, reader.cursor), (&[first][..], first));
        let held = self.proxy.held();
        self.proxy.stall(Stall::Publishing);
        let one = self.cause_repair(topics).await;
        // The reader waits for the store now. Its client leaves, and asks again from its cursor.
        while self.proxy.held() == held {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        drop(reader);
        let mut back = JoinSet::new();
        let (here, transport, filter, next) = (self.here(), *transport, filter.clone(), one[0]);
        back.spawn(async move {
            let mut reader = Reader::open_patiently(here, transport, &filter, Start::After(first)).await;
            reader.until(next).await;
            reader
        });
        let two = self.cause_repair(topics).await;
        if deletes {
            for topic in BTreeSet::from_iter(topics) {
                self.delete(topic).await;
            }
        }
        let three = self.cause_repair(topics).await;
        self.proxy.stall(Stall::Nothing);
        let mut reader = back.join_next().await.expect("a task").expect("it came back");
        reader.until(three[2]).await;
        ([one, two, three], reader)
    }
}

/// A reader, and the topics that it reads.
struct Case {
    transport: Transport,
    topics: [String; 2],
    filter: String,
}

/// For each transport a reader of one topic, and a reader of a pattern. The second topic of the pattern has no
/// message that comes by the feed, so nothing of its own shows what is missing.
fn cases(word: &str) -> Vec<Case> {
    let of = |transport: Transport| {
        let name = |rest: &str| format!("{word}.{transport}.{rest}");
        let one = Case { transport, topics: [name("one"), name("one")], filter: name("one") };
        [one, Case { transport, topics: [name("more.a"), name("more.b")], filter: name("more.*") }]
    };
    Transport::ALL.into_iter().flat_map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_repairs_of_one_reader_while_its_client_comes_back_lose_and_double_nothing() {
    let Some(scene) = Scene::set().await else { return };
    for case in cases("repaired") {
        let (published, mut reader) = scene.repair_twice(&case, false).await;
        let fourth = scene.cause_repair(&case.topics).await;
        reader.until(fourth[2]).await;
        assert_eq!(reader.given, [published.concat(), fourth].concat(), "{}", reader.name);
        assert!(reader.gaps.is_empty(), "{}: {:?}", reader.name, reader.gaps);
    }
    scene.deployment.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_between_two_repairs_of_one_reader_is_told_once_and_first() {
    let Some(scene) = Scene::set().await else { return };
    for case in cases("deleted") {
        let ([.., three], mut reader) = scene.repair_twice(&case, true).await;
        let fourth = scene.cause_repair(&case.topics).await;
        reader.until(fourth[2]).await;
        assert_eq!(reader.given, [three, fourth].concat(), "{}", reader.name);
        let lost: BTreeSet<_> = case.topics.iter().collect();
        let told: Vec<_> = reader.gaps.iter().map(|gap| (&gap.topic, &*gap.reason)).collect();
        let expected: Vec<_> = lost.into_iter().map(|topic| (topic, "deleted")).collect();
        assert_eq!(BTreeSet::from_iter(&told), BTreeSet::from_iter(&expected), "{}", reader.name);
        assert_eq!(reader.told_after, vec![0; expected.len()], "{}: {:?}", reader.name, reader.gaps);
    }
    scene.deployment.stop().await;
}

/// The clients of the checker are cut off all the time, and come back on any transport and at any replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repairs_again_and_again_lose_nothing_of_clients_that_come_and_go() {
    let Some(scene) = Scene::set().await else { return };
    let seed = seed();
    // The checker knows nothing of these topics, but its readers are repaired too.
    let topics = ["elsewhere.a", "elsewhere.b"].map(str::to_owned);
    let mut witnesses = Vec::new();
    for addr in scene.deployment.addrs() {
        for transport in Transport::ALL {
            witnesses.push(Reader::open(addr, transport, "elsewhere.*", Start::All).await);
        }
    }
    let mut stored = Vec::new();
    play(&scene.deployment, seed, Trouble::None, async |progress| {
        for _ in 0..REPAIRS * rounds() {
            stored.extend(scene.cause_repair(&topics).await);
            progress.by(5).await;
            stored.extend(scene.cause_repair(&topics).await);
            progress.by(20).await;
        }
    })
    .await;
    println!("{} repairs", stored.len() / 3);
    for witness in &mut witnesses {
        witness.until(*stored.last().expect("some")).await;
        assert_eq!(witness.given, stored, "{}", witness.name);
        assert!(witness.gaps.is_empty(), "{}: {:?}", witness.name, witness.gaps);
    }
    scene.deployment.stop().await;
}
