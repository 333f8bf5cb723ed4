//! A model of joining and leaving: the real subscriptions, tails and groups, in an order that a seed decides.
//!
//! No thread and no timer runs. Each step is one of: a reader's task runs, a group finds that it has messages, it joins
//! them and writes to a few members, a part of a message arrives, a page is read, a socket takes bytes again, a client leaves, the log loses
//! something. Parts of messages also arrive while a reader or a group looks at the log: the log of the model lets them,
//! each time that it is asked for something. A task runs only if it was woken, so a wake-up that is lost shows as a
//! message that is missing.

mod judge;
mod reader;
mod scenes;
mod store;
mod wire;

use std::{
    collections::BTreeMap,
    sync::{Mutex as StdMutex, atomic::AtomicBool},
    task::Wake,
};

use futures_util::FutureExt;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::runtime::{Builder, Runtime};

use self::{
    reader::{Flag, Reader},
    store::Store,
    wire::{Near, Own, encoded, ids, parse, socket},
};
use super::{
    super::{
        batch::{Encoded, Form},
        feed,
        gzip::Sum,
        outbox::Outbox,
        shared_socket::{SharedSocket, scripted},
        socket::Socket,
    },
    *,
};
use crate::{
    broker::{Broker, Delivery},
    config::{Config, Parking},
    http::{App, metrics::Transport, wire::Framing},
    log::{MemoryLog, Start},
    shutdown::Shutdown,
};

const STEPS: usize = 400;
/// The topics that readers read: one, two, or many.
const TOPICS: [&[&str]; 3] = [
    &["a"],
    &["a", "b"],
    &["a", "b", "c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9", "d0", "d1"],
];

/// The task of a group.
struct GroupTask {
    group: Arc<Group>,
    flag: Arc<Flag>,
    is_writing: bool,
    has_ended: bool,
}

/// The things that all worlds share.
struct Ground {
    app: Arc<App>,
    /// The pages of readers are read here, one at a time.
    pages: Runtime,
    /// The tasks of groups are here and never run: the model does their steps.
    idle: Runtime,
    sockets: Vec<SharedSocket>,
}

impl Ground {
    fn new() -> Self {
        let runtime = || Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (pages, idle) = (runtime(), runtime());
        let app = {
            let _idle = idle.enter();
            let (log, config) = (MemoryLog::start(Config::default().retention()), Config::default());
            App::new(Broker::new(log), Arc::new(config), Shutdown::new())
        };
        Self { app, pages, idle, sockets: Vec::new() }
    }
}

struct World<'a> {
    ground: &'a mut Ground,
    rng: StdRng,
    store: Arc<Store>,
    broker: Broker,
    groups: Arc<Groups>,
    parking: Parking,
    form: Form,
    /// In some worlds messages arrive late, and in some nothing is lost.
    is_slow: bool,
    is_calm: bool,
    tasks: Vec<GroupTask>,
    readers: Vec<Reader>,
    published: Vec<(Id, &'static str, Option<String>)>,
    wires: Arc<StdMutex<BTreeMap<usize, Arc<StdMutex<Near>>>>>,
    announced: usize,
    opened: usize,
    counts: Counts,
}

/// The things that the seeds have reached, so that a model that does nothing fails.
#[derive(Default)]
struct Counts {
    parked: usize,
    parts: usize,
    left_in_batch: usize,
    gaps: usize,
    ahead: usize,
}

impl<'a> World<'a> {
    fn new(seed: u64, ground: &'a mut Ground) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let parking = [Parking::WithCompany, Parking::Always, Parking::AtRandom(seed)];
        let (haste, parking) = ([0, 5, 30][rng.random_range(0..3)], parking[rng.random_range(0..3)]);
        Self::with(rng, haste, parking, ground)
    }

    fn with(mut rng: StdRng, haste: u32, parking: Parking, ground: &'a mut Ground) -> Self {
        let store = Store::new(rng.random(), haste);
        let wires = Arc::<StdMutex<BTreeMap<usize, Arc<StdMutex<Near>>>>>::default();
        let known = wires.clone();
        scripted::set(Some(Box::new(move |socket: &SharedSocket, bytes: &[u8]| {
            let near = known.lock().expect("one thread")[&Arc::as_ptr(&socket.0).addr()].clone();
            let mut near = near.lock().expect("one thread");
            assert!(
                !near.is_tasks,
                "a group writes to a socket that the task of its connection may write to"
            );
            near.take(bytes)
        })));
        Self {
            broker: Broker::new(store.clone()),
            store,
            groups: Groups::new(ground.app.rules.clone(), parking),
            parking,
            form: [Form::Body(Framing::Ndjson), Form::Gzip(Framing::Ndjson)][rng.random_range(0..2)],
            is_slow: rng.random(),
            is_calm: rng.random(),
            ground,
            rng,
            tasks: Vec::new(),
            readers: Vec::new(),
            published: Vec::new(),
            wires,
            announced: 0,
            opened: 0,
            counts: Counts::default(),
        }
    }

    fn open(&mut self, start: &Start, topics: &'static [&'static str]) {
        self.opened += 1;
        let name = format!("c{}", self.opened);
        let patterns = topics.iter().map(|topic| topic.parse().expect("a pattern")).collect();
        let subscribed = self.broker.subscribe(patterns, start, &name).now_or_never();
        let subscription = subscribed.expect("it does not wait").expect("it begins");
        if self.ground.sockets.len() < self.opened {
            let _inside = self.ground.pages.enter();
            self.ground.sockets.push(SharedSocket(Arc::new(Socket::Plain(socket()))));
        }
        let socket = self.ground.sockets[self.opened - 1].clone();
        let near = Arc::new(StdMutex::new(Near { is_tasks: true, ..Near::default() }));
        self.wires.lock().expect("one thread").insert(Arc::as_ptr(&socket.0).addr(), near.clone());
        let task = Arc::new(Flag(AtomicBool::new(true)));
        self.readers.push(Reader {
            from: subscription.cursor(),
            name,
            topics,
            near,
            socket,
            task,
            subscription: Some(subscription),
            parked: None,
            outbox: Outbox::default(),
            was_level: false,
            ephemerals: Vec::new(),
            generations: Vec::new(),
            is_open: true,
            is_apart: false,
            before: (0, Id::ZERO),
            plain: Sum::default(),
        });
    }

    /// Runs the task of a reader, as `http/feed.rs` does.
    fn run_reader(&mut self, index: usize) {
        let reader = &mut self.readers[index];
        if !reader.is_open || !reader.task.0.swap(false, Ordering::Relaxed) {
            return;
        }
        let waker: Waker = reader.task.clone().into();
        let mut cx = Context::from_waker(&waker);
        if let Some(parked) = reader.parked.take() {
            let cursor = parked.cursor();
            let left = parked.leave().expect("it is still there");
            reader.near.lock().expect("one thread").is_tasks = true;
            assert_eq!(left.subscription.cursor(), cursor, "{}: it leaves where it stood", reader.name);
            let mut all = reader.near.lock().expect("one thread").taken.clone();
            all.extend_from_slice(&left.rest);
            let came = parse(&all, true, self.form);
            assert_eq!(came.len(), reader.before.0 + left.given.messages, "{}: all is counted", reader.name);
            let newest = ids(&came).into_iter().max();
            assert!(cursor >= reader.before.1, "{}: its cursor goes back to {cursor:?}", reader.name);
            assert!(newest.is_none_or(|newest| newest <= cursor), "{}: {newest:?} > {cursor:?}", reader.name);
            if !left.rest.is_empty() {
                self.counts.parts += 1;
                reader.outbox.push_begun(left.rest);
                assert!(!reader.outbox.drop_unbegun(), "a piece that has begun stays");
            }
            reader.plain = reader.plain.then(left.given.plain);
            reader.subscription = Some(left.subscription);
        }
        let subscription = reader.subscription.as_mut().expect("it reads by itself");
        loop {
            while !reader.outbox.is_empty() {
                let mut own = Own(reader.near.clone());
                if reader.outbox.poll_write(&mut own, &mut cx).is_pending() {
                    return;
                }
            }
            match subscription.poll_delivery(&mut cx) {
                Poll::Ready(Delivery::Message(message)) => {
                    let encoded = self.form.encode(&message, subscription.cursor());
                    reader.plain = reader.plain.then(encoded.plain);
                    reader.outbox.push(feed::chunk(&encoded.bytes));
                }
                Poll::Ready(Delivery::Gap(gap)) => {
                    self.counts.gaps += 1;
                    let line = format!("{{\"gap\":\"{}\"}}\n", gap.topic);
                    let Encoded { bytes, plain } = encoded(self.form, line.as_bytes());
                    reader.plain = reader.plain.then(plain);
                    reader.outbox.push(feed::chunk(&bytes));
                }
                Poll::Pending => break,
            }
        }
        reader.was_level |= subscription.place().is_some();
        let rules = self.ground.app.rules.load_full();
        let metrics = self.ground.app.metrics.of(Transport::Ndjson);
        let comer = Comer { form: self.form, socket: &reader.socket, metrics, rules: &rules, ends_at: None };
        let mut near = reader.near.lock().expect("one thread");
        near.is_tasks = false;
        reader.before = (parse(&near.taken, true, self.form).len(), subscription.cursor());
        drop(near);
        let _idle = self.ground.idle.enter();
        reader.is_apart = subscription.place().is_none_or(|place| !self.store.has_arrived(place.cursor()));
        reader.parked = self.groups.park(subscription, &comer, &waker);
        if reader.parked.is_some() {
            self.counts.parked += 1;
            reader.subscription = None;
        } else {
            reader.near.lock().expect("one thread").is_tasks = true;
        }
        for group in self.groups.all() {
            if !self.tasks.iter().any(|task| Arc::ptr_eq(&task.group, &group)) {
                let flag = Arc::new(Flag(AtomicBool::new(true)));
                self.tasks.push(GroupTask { group, flag, is_writing: false, has_ended: false });
            }
        }
    }

    /// Does one step of a group's task, as `Group::run` does. True if there was one.
    fn run_group(&mut self, index: usize) -> bool {
        let task = &mut self.tasks[index];
        let waker: Waker = task.flag.clone().into();
        let mut cx = Context::from_waker(&waker);
        if task.is_writing {
            task.is_writing = task.group.step(&mut cx, task.group.next_turns());
            if !task.is_writing {
                task.flag.0.store(true, Ordering::Relaxed);
            }
            return true;
        }
        if task.has_ended || !task.flag.0.swap(false, Ordering::Relaxed) {
            return false;
        }
        match task.group.poll_ready(&mut cx) {
            Poll::Ready(true) => task.is_writing = true,
            Poll::Ready(false) => task.has_ended = true,
            Poll::Pending => {}
        }
        true
    }

    fn publish(&mut self) {
        let topic = ["a", "a", "b"][self.rng.random_range(0..3)];
        let exclude =
            self.rng.random_bool(0.1).then(|| format!("c{}", self.rng.random_range(1..=self.opened)));
        let id = self.store.publish(topic, exclude.as_deref());
        self.published.push((id, topic, exclude));
    }

    fn announce(&mut self) {
        self.announced += 1;
        let text = format!("e{}", self.announced);
        self.store.announce_text("a", &text);
        let readers = self.readers.iter_mut().filter(|reader| reader.is_open && reader.was_level);
        readers.for_each(|reader| reader.ephemerals.push(text.clone()));
    }

    /// A client is gone, and comes back with the newest id that it has, or with one that has not arrived here.
    fn reconnect(&mut self, index: usize) {
        let reader = &mut self.readers[index];
        if !reader.is_open {
            return;
        }
        (reader.is_open, reader.parked, reader.subscription) = (false, None, None);
        reader.near.lock().expect("one thread").is_tasks = true;
        let topics = reader.topics;
        let came = parse(&reader.near.lock().expect("one thread").taken, false, self.form);
        let mut cursor = ids(&came).into_iter().max().unwrap_or(reader.from);
        if self.rng.random_bool(0.3) {
            cursor = self.store.newest_id();
            self.counts.ahead += 1;
        }
        let start = if self.rng.random_bool(0.2) { Start::Now } else { Start::After(cursor) };
        self.open(&start, topics);
    }

    fn step(&mut self) {
        let readers = self.readers.len();
        let index = self.rng.random_range(0..readers);
        match self.rng.random_range(0..100) {
            0..30 => self.run_reader(index),
            30..50 if !self.tasks.is_empty() => {
                let group = self.rng.random_range(0..self.tasks.len());
                self.run_group(group);
            }
            30..60 if self.is_slow && self.rng.random_bool(0.7) => {}
            30..60 => _ = self.store.step(),
            60..65 => self.read_pages(),
            65..73 => self.publish(),
            73..76 => self.announce(),
            76..79 => self.store.probe(),
            79..88 => {
                // The client sends something, or a timer goes off.
                let left = self.readers[index].parked.is_some();
                let in_batch = self.tasks.iter().any(|task| task.is_writing);
                if left && in_batch {
                    self.counts.left_in_batch += 1;
                }
                self.readers[index].task.clone().wake();
                self.run_reader(index);
            }
            88..92 => {
                let room = [None, Some(0), Some(7), Some(150)][self.rng.random_range(0..4)];
                self.set_room(index, room);
            }
            92..94 => self.reconnect(index),
            94.. if self.is_calm => {}
            94..97 => {
                let topic = ["a", "b"][self.rng.random_range(0..2)];
                self.store.trim(topic, self.rng.random_bool(0.3), self.rng.random_bool(0.3));
            }
            97 => self.store.lose_link(),
            98 => self.store.settle(),
            _ => {
                self.store.fail_over();
                let began = self.store.began();
                let open = self.readers.iter_mut().filter(|reader| reader.is_open && reader.from < began);
                open.for_each(|reader| reader.generations.push(began));
            }
        }
    }

    /// Gives a socket room, and wakes the task that waits for it.
    fn set_room(&mut self, index: usize, room: Option<usize>) {
        let reader = &self.readers[index];
        reader.near.lock().expect("one thread").room = room;
        if reader.parked.is_none() {
            reader.task.clone().wake();
        }
    }

    /// Lets the pages that wait for the store be read.
    fn read_pages(&self) {
        self.ground.pages.block_on(async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        });
    }
}

#[test]
fn readers_join_and_leave_in_every_order_and_miss_nothing() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (first, count) = (number("GROUP_SEED").unwrap_or(1), number("GROUP_SEEDS").unwrap_or(120));
    let mut ground = Ground::new();
    let mut sums = [0; 5];
    let mut failed = Vec::new();
    for seed in first..first + count {
        let run = std::panic::AssertUnwindSafe(|| live(seed, &mut ground));
        match std::panic::catch_unwind(run) {
            Ok(counts) => sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count),
            Err(_) => failed.push(seed),
        }
        scripted::set(None);
    }
    assert!(failed.is_empty(), "run these with GROUP_SEED: {failed:?}");
    println!("parked, parts, left in a batch, gaps, ahead: {sums:?}");
    assert!(count < 100 || sums.iter().all(|sum| *sum > 0), "the seeds reach everything: {sums:?}");
}

/// One world, from its beginning until nothing moves.
fn live(seed: u64, ground: &mut Ground) -> [usize; 5] {
    let pages = ground.pages.handle().clone();
    let _inside = pages.enter();
    let mut world = World::new(seed, ground);
    for number in 0..world.rng.random_range(2..14) {
        world.open(&Start::Now, TOPICS[[0, 0, 1, 0, 2][number % 5]]);
    }
    for _ in 0..STEPS {
        world.step();
    }
    world.settle();
    world.come_together();
    world.judge();
    let Counts { parked, parts, left_in_batch, gaps, ahead } = world.counts;
    [parked, parts, left_in_batch, gaps, ahead]
}
