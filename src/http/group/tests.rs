//! The tests of groups: readers that park, and each way in which they leave.

mod counts;
mod joining;
mod leaving;
mod turns;

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    sync::{Arc, atomic::AtomicUsize},
    time::SystemTime,
};

use futures_util::{FutureExt, StreamExt};
use socket2::SockRef;

use super::{
    super::{
        batch::Form,
        gzip::Sum,
        outbox::Outbox,
        shared_socket::{SharedSocket, scripted},
        socket::Socket,
    },
    *,
};
use crate::{
    broker::{Broker, Delivery},
    config::Config,
    http::{App, metrics::Transport, wire::Framing},
    log::{Append, MemoryLog, Start},
    message::{Draft, Payload},
    shutdown::Shutdown,
};

struct Readers {
    app: Arc<App>,
    broker: Broker,
    form: Form,
}

/// One reader and the far end of its socket.
struct Reader {
    subscription: Option<Subscription>,
    parked: Option<Parked>,
    socket: SharedSocket,
    far: TcpStream,
    ends_at: Option<SystemTime>,
}

impl Readers {
    fn new() -> Self {
        let broker = Broker::new(MemoryLog::start(Config::default().retention()));
        let app = App::new(broker.clone(), Arc::new(Config::default()), Shutdown::new());
        Self { app, broker, form: Form::Body(Framing::Ndjson) }
    }

    async fn reader(&self, connection: &str) -> Reader {
        self.reader_of(connection, &["a".to_owned()]).await
    }

    async fn reader_of(&self, connection: &str, patterns: &[String]) -> Reader {
        let patterns = patterns.iter().map(|pattern| pattern.parse().expect("a pattern")).collect();
        let mut subscription =
            self.broker.subscribe(patterns, &Start::Now, connection).await.expect("it begins");
        assert!(subscription.next().now_or_never().is_none(), "it is caught up");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection");
        let (near, _) = listener.accept().expect("a connection");
        near.set_nonblocking(true).expect("it can");
        let socket = tokio::net::TcpStream::from_std(near).expect("a socket");
        socket.writable().await.expect("it is open");
        let socket = SharedSocket(Arc::new(Socket::Plain(socket)));
        Reader { subscription: Some(subscription), parked: None, socket, far, ends_at: None }
    }

    async fn readers(&self, count: usize) -> Vec<Reader> {
        let mut readers = Vec::new();
        for number in 0..count {
            readers.push(self.reader(&format!("c{number}")).await);
        }
        readers
    }

    /// Tries to park. True if the reader is a member now.
    fn park(&self, reader: &mut Reader) -> bool {
        self.park_by(reader, Waker::noop())
    }

    fn park_by(&self, reader: &mut Reader, waker: &Waker) -> bool {
        let rules = self.app.rules.load_full();
        let comer = Comer {
            form: self.form,
            socket: &reader.socket,
            metrics: self.app.metrics.of(Transport::Ndjson),
            rules: &rules,
            ends_at: reader.ends_at,
        };
        let subscription = reader.subscription.as_mut().expect("it reads by itself");
        reader.parked = self.app.groups.park(subscription, &comer, waker);
        if reader.parked.is_some() {
            reader.subscription = None;
        }
        reader.parked.is_some()
    }

    async fn parked(&self, count: usize) -> Vec<Reader> {
        let mut readers = self.readers(count).await;
        for reader in &mut readers {
            assert!(self.park(reader));
        }
        readers
    }

    async fn publish(&self, text: &str, exclude: Option<&str>) {
        let (topic, payload) = ("a".parse().expect("a topic"), Payload::text(text));
        let draft = Draft { topic, event: None, payload, exclude: exclude.map(Into::into), by: None };
        let append = Append { draft, idempotency_key: None, if_match: None };
        self.broker.publish(append).await.expect("stored");
    }

    async fn followers(&self) -> usize {
        let topics = self.broker.topics("", 10).await.expect("the topics");
        topics.iter().map(|topic| topic.subscribers).sum()
    }
}

impl Reader {
    /// Reads by itself again. Returns the rest of what the group has begun to write.
    fn leave(&mut self) -> Bytes {
        let left = self.parked.take().expect("it is parked").leave().expect("it has not left");
        self.subscription = Some(left.subscription);
        left.rest
    }

    /// The payloads that a reader which reads by itself gives out now.
    fn own(&mut self) -> Vec<String> {
        let subscription = self.subscription.as_mut().expect("it reads by itself");
        let next = || match subscription.next().now_or_never().flatten() {
            Some(Delivery::Message(message)) => Some(String::from_utf8_lossy(message.bytes()).into()),
            Some(Delivery::Gap(gap)) => Some(format!("{gap:?}")),
            None => None,
        };
        std::iter::from_fn(next).collect()
    }

    /// The payloads that have come to the far end, in chunks.
    fn received(&mut self) -> Vec<String> {
        // On this machine, what was written has arrived.
        self.far.set_nonblocking(true).expect("it can");
        let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
        while let Ok(1..) = self.far.read(&mut piece).inspect(|length| bytes.extend(&piece[..*length])) {}
        let text = String::from_utf8(bytes).expect("text");
        let lines = text.lines().filter(|line| line.starts_with('{'));
        let data = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).expect("whole lines");
            value["data"].as_str().expect("a text").to_owned()
        };
        lines.map(data).collect()
    }
}

impl Group {
    /// Joins the messages that have come, as its task does once it has a turn. False if there are none.
    fn has_batch(&self) -> bool {
        self.gather(&mut Context::from_waker(Waker::noop()));
        self.state().batch.is_some()
    }
}

/// Lets the tasks of the groups run.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_group_writes_to_all_and_each_leaves_at_its_place() {
    let readers = Readers::new();
    let mut alone = readers.readers(1).await;
    assert!(!readers.park(&mut alone[0]), "a reader that is alone stays alone");
    let mut parked = readers.parked(2 * WRITES_AT_ONCE + 3).await;
    assert!(readers.park(&mut alone[0]), "it has company now");
    parked.append(&mut alone);
    readers.publish("one", None).await;
    settle().await;
    assert_eq!(readers.followers().await, parked.len());
    readers.publish("two", None).await;
    settle().await;
    for reader in &mut parked {
        assert_eq!(reader.received(), ["one", "two"]);
        assert!(reader.leave().is_empty() && reader.own().is_empty());
    }
    readers.publish("three", None).await;
    assert_eq!(parked[0].own(), ["three"]);
    assert!(readers.app.groups.is_empty(), "a group without members ends");
    assert_eq!(readers.followers().await, parked.len());
    parked.clear();
    assert_eq!(readers.followers().await, 0);
}

#[tokio::test]
async fn a_reader_that_leaves_before_the_batch_reads_it_by_itself() {
    let readers = Readers::new();
    let mut parked = readers.parked(2).await;
    readers.publish("one", None).await;
    // The group has not run since.
    parked[0].leave();
    settle().await;
    assert_eq!((parked[0].own(), parked[0].received()), (vec!["one".into()], vec![]));
    assert_eq!(parked[1].received(), ["one"]);
    assert!(readers.park(&mut parked[0]), "both have everything");
    readers.publish("two", None).await;
    settle().await;
    assert_eq!((parked[0].received(), parked[1].received()), (vec!["two".into()], vec!["two".into()]));
}

#[tokio::test]
async fn only_the_excluded_reader_leaves() {
    let readers = Readers::new();
    let mut parked = readers.parked(3).await;
    readers.publish("one", Some("c1")).await;
    settle().await;
    readers.publish("two", None).await;
    settle().await;
    parked[1].leave();
    assert_eq!((parked[1].own(), parked[1].received()), (vec!["two".into()], vec![]));
    assert_eq!(
        (parked[0].received(), parked[2].received()),
        (["one", "two"].map(str::to_owned).to_vec(), ["one", "two"].map(str::to_owned).to_vec())
    );
}

#[tokio::test]
async fn a_socket_that_takes_a_part_gets_the_rest_from_its_reader() {
    let readers = Readers::new();
    let mut waiting = readers.readers(2).await;
    for reader in &mut waiting {
        SockRef::from(reader.socket.0.tcp()).set_send_buffer_size(4096).expect("it can");
        SockRef::from(&reader.far).set_recv_buffer_size(4096).expect("it can");
        assert!(readers.park(reader));
    }
    let text = "x".repeat(200_000);
    readers.publish(&text, None).await;
    settle().await;
    assert!(readers.app.groups.is_empty(), "both have left");
    for reader in &mut waiting {
        let rest = reader.leave();
        assert!(!rest.is_empty() && reader.own().is_empty(), "the socket has taken a part");
        let mut outbox = Outbox::default();
        outbox.push_begun(rest);
        assert!(!outbox.drop_unbegun(), "it is begun");
        let mut far = reader.far.try_clone().expect("a second handle");
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            far.read_to_string(&mut text).map(|_| text).expect("text")
        });
        while !outbox.is_empty() {
            std::future::poll_fn(|cx| outbox.poll_write(&mut reader.socket, cx)).await.expect("written");
        }
        SockRef::from(reader.socket.0.tcp()).shutdown(std::net::Shutdown::Write).expect("it can");
        let came = reading.join().expect("it reads");
        assert_eq!(came.matches('x').count(), text.len(), "the message came once");
    }
}

#[tokio::test]
async fn nothing_is_written_to_a_reader_whose_rights_have_ended() {
    let readers = Readers::new();
    let mut parked = readers.readers(2).await;
    parked[0].ends_at = Some(SystemTime::now());
    for reader in &mut parked {
        assert!(readers.park(reader));
    }
    readers.publish("one", None).await;
    settle().await;
    assert_eq!((parked[0].received(), parked[1].received()), (vec![], vec!["one".into()]));

    readers.app.reconfigure(&Config::default()).expect("it stays open");
    readers.publish("two", None).await;
    settle().await;
    assert_eq!((parked[0].received(), parked[1].received()), (vec![], vec![]));
    parked[1].leave();
    assert_eq!(parked[1].own(), ["two"]);
}

#[tokio::test]
async fn a_gap_lets_each_reader_go_on_by_itself() {
    let readers = Readers::new();
    let mut parked = readers.parked(2).await;
    readers.publish("one", None).await;
    readers.broker.delete(&"a".parse().expect("a topic")).await.expect("deleted");
    settle().await;
    readers.publish("two", None).await;
    settle().await;
    for reader in &mut parked {
        let came = reader.received();
        reader.leave();
        let own = loop {
            settle().await;
            let own = reader.own();
            if !own.is_empty() {
                break own;
            }
        };
        assert!(came.is_empty() && own[0].contains("Deleted"), "{own:?}");
    }
}

#[tokio::test]
async fn readers_of_a_group_that_panics_in_a_batch_go_on_by_themselves() {
    let readers = Readers::new();
    let mut parked = readers.parked(3).await;
    let group = readers.app.groups.any().expect("a group");
    readers.publish("one", None).await;
    assert!(group.has_batch());
    {
        let mut state = group.state();
        let State { batch: Some(batch), members, .. } = &mut *state else { panic!("a batch") };
        assert!(matches!(batch.write_to(&members[0]), Written::Completely));
        batch.next = 1;
    }
    let panicking = tokio::spawn(async move {
        let _rescue = Rescue(&group);
        panic!("as a mistake in a group would");
    });
    assert!(panicking.await.is_err());
    for (index, reader) in parked.iter_mut().enumerate() {
        reader.leave();
        let came = (reader.received(), reader.own());
        let one = vec!["one".to_owned()];
        assert_eq!(came, if index == 0 { (one, vec![]) } else { (vec![], one) });
    }
    assert!(readers.app.groups.is_empty());
}

#[tokio::test]
async fn readers_of_a_group_that_panics_know_the_sum_of_what_each_was_given() {
    let readers = Readers { form: Form::Gzip(Framing::Ndjson), ..Readers::new() };
    let parked = readers.parked(3).await;
    let group = readers.app.groups.any().expect("a group");
    readers.publish("one", None).await;
    assert!(group.has_batch());
    group.state().batch.as_mut().expect("a batch").next = 1;
    drop(Rescue(&group));
    let given = |reader: &Reader| reader.parked.as_ref().expect("parked").leave().expect("let go").given;
    let plain: Vec<_> = parked.iter().map(|reader| given(reader).plain).collect();
    assert!(plain[0] != Sum::default() && plain[1..] == [Sum::default(); 2], "{plain:?}");
}

#[tokio::test]
async fn ephemeral_messages_come_to_readers_in_a_group_once() {
    let readers = Readers::new();
    let mut parked = readers.parked(2).await;
    let announce = async |text: &str| {
        let (topic, payload) = ("a".parse().expect("a topic"), Payload::text(text));
        let draft = Draft { topic, event: None, payload, exclude: None, by: None };
        readers.broker.announce(draft).await.expect("announced");
    };
    announce("one").await;
    parked[0].leave();
    assert_eq!(parked[0].own(), ["one"]);
    settle().await;
    assert!(readers.park(&mut parked[0]));
    announce("two").await;
    settle().await;
    assert_eq!(
        (parked[0].received(), parked[1].received()),
        (vec!["two".into()], ["one", "two"].map(str::to_owned).to_vec())
    );
}
