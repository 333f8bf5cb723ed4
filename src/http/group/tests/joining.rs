//! The tests of joining: when a reader may join a group, and when it is woken to try again.

use std::task::Wake;

use super::{super::groups::MAX_PATTERNS, *};

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_reader_that_is_further_or_behind_does_not_join() {
    let readers = Readers::new();
    let (mut parked, mut own) = (readers.parked(2).await, readers.readers(3).await);
    readers.publish("one", None).await;
    assert!(readers.park(&mut own[2]), "the group writes it to both");
    assert_eq!(own[1].own(), ["one"]);
    assert!(!readers.park(&mut own[1]), "the group has yet to write it");
    settle().await;
    assert!(!readers.park(&mut own[0]), "the group has written it already");
    assert!(readers.park(&mut own[1]));
    assert_eq!(own[0].own(), ["one"]);
    assert!(readers.park(&mut own[0]));
    readers.publish("two", None).await;
    settle().await;
    assert_eq!(parked[0].received(), ["one", "two"]);
    assert_eq!(own[2].received(), ["one", "two"]);
    own[..2].iter_mut().for_each(|reader| assert_eq!(reader.received(), ["two"]));
}

#[tokio::test]
async fn readers_of_the_same_list_share_a_group() {
    let readers = Readers::new();
    let list = |count: usize| -> Vec<_> {
        let others = (1..count).map(|number| format!("t{number}.*"));
        ["a".to_owned()].into_iter().chain(others).collect()
    };
    let mut parked = Vec::new();
    for (name, count) in [("c0", 10), ("c1", 10), ("c2", 11), ("c3", MAX_PATTERNS), ("c4", MAX_PATTERNS + 1)]
    {
        parked.push(readers.reader_of(name, &list(count)).await);
    }
    // Each topic has another follower.
    let _other = readers.reader_of("other", &list(MAX_PATTERNS + 1)).await;
    let is_parked: Vec<_> = parked.iter_mut().map(|reader| readers.park(reader)).collect();
    assert_eq!(is_parked, [true, true, true, true, false]);
    assert_eq!(readers.app.groups.all().len(), 3, "one for each list");
    readers.publish("one", None).await;
    settle().await;
    for reader in &mut parked[..4] {
        assert_eq!(reader.received(), ["one"]);
        assert!(reader.leave().is_empty() && reader.own().is_empty() && readers.park(reader));
    }
    assert_eq!(readers.app.groups.all().len(), 3, "they find their group again");
    // A topic of its own.
    let own = readers.reader_of("c5", &[list(10), vec!["own".to_owned()]].concat()).await;
    let mut own = [own];
    assert!(!readers.park(&mut own[0]) && !readers.park(&mut own[0]));
    let _company = readers.reader_of("c6", &["own".to_owned()]).await;
    assert!(readers.park(&mut own[0]), "it has company now");
}

/// A task that wakes itself when it leaves would leave and park for ever.
#[tokio::test]
async fn only_the_group_wakes_a_reader() {
    let readers = Readers::new();
    let mut parked = readers.readers(1).await;
    let mut reader = readers.reader("woken").await;
    assert!(readers.park(&mut parked[0]));
    let wakes = Arc::new(Wakes::default());
    let waker = wakes.clone().into();
    for _ in 0..3 {
        assert!(readers.park_by(&mut reader, &waker));
        reader.leave();
        assert!(reader.own().is_empty());
    }
    assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    assert!(readers.park_by(&mut reader, &waker));
    readers.publish("one", Some("woken")).await;
    settle().await;
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "it goes on by itself");
    assert_eq!(parked[0].received(), ["one"]);
}

/// A reader that waits for nothing would stay alone for ever, or until its next heartbeat.
#[tokio::test]
async fn a_reader_that_cannot_join_yet_is_woken_to_try_again() {
    let readers = Readers::new();
    let mut parked = readers.parked(2).await;
    let (mut behind, mut further) = (readers.reader("behind").await, readers.reader("further").await);
    let count = |wakes: &Arc<Wakes>| wakes.0.load(Ordering::Relaxed);
    let (woken_behind, woken_further) = (Arc::new(Wakes::default()), Arc::new(Wakes::default()));
    readers.publish("one", None).await;
    assert_eq!(further.own(), ["one"]);
    assert!(!readers.park_by(&mut further, &woken_further.clone().into()), "the group has yet to write it");
    assert_eq!(count(&woken_further), 0);
    settle().await;
    assert_eq!(count(&woken_further), 1, "the group has written it");
    assert!(!readers.park_by(&mut behind, &woken_behind.clone().into()), "the group has written it already");
    assert_eq!(count(&woken_behind), 1, "it has something to give out");
    // The group ends while a reader waits at its door.
    readers.publish("two", None).await;
    assert_eq!(further.own(), ["two"]);
    assert!(!readers.park_by(&mut further, &woken_further.clone().into()), "the group has yet to write it");
    assert_eq!(count(&woken_further), 1);
    parked.iter_mut().for_each(|reader| assert!(reader.leave().is_empty()));
    assert_eq!(count(&woken_further), 2, "it may found a group");
    assert!(readers.app.groups.is_empty());
    assert!(readers.app.groups.until_ended().now_or_never().is_none(), "its task has yet to end");
    settle().await;
    assert!(readers.app.groups.until_ended().now_or_never().is_some());
}

#[tokio::test]
async fn a_reader_that_comes_while_all_leave_is_woken_once_the_group_has_ended() {
    let readers = Readers::new();
    let (mut parked, mut late) = (readers.parked(2).await, readers.reader("late").await);
    let group = readers.app.groups.any().expect("a group");
    readers.publish("one", None).await;
    readers.broker.delete(&"a".parse().expect("a topic")).await.expect("deleted");
    assert!(group.has_batch(), "a gap");
    let wakes = Arc::new(Wakes::default());
    assert!(!readers.park_by(&mut late, &wakes.clone().into()), "the group has yet to let all go");
    assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    assert!(!group.write_some(WRITES_AT_ONCE), "it has no more members");
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    parked.iter_mut().for_each(|reader| assert!(reader.leave().is_empty()));
}

#[tokio::test]
async fn a_group_that_is_full_takes_another_reader_once_one_has_left() {
    let readers = Readers::new();
    // Only topics that have had a message are listed.
    readers.publish("zero", None).await;
    let mut parked = readers.parked(MAX_MEMBERS).await;
    let group = readers.app.groups.any().expect("a group");
    assert_eq!(readers.followers().await, MAX_MEMBERS);
    let mut late = readers.reader("late").await;
    let (rules, seat) = (readers.app.rules.load_full(), Arc::new(Seat::new(Waker::noop().clone())));
    let socket = late.socket.clone();
    let comer = Comer {
        form: readers.form,
        socket: &socket,
        metrics: readers.app.metrics.of(Transport::Ndjson),
        rules: &rules,
        ends_at: None,
    };
    // As if it had been asked just before the last one joined.
    let joined = group.join(late.subscription.as_mut().expect("it reads by itself"), &comer, &seat);
    assert!(matches!(joined, Joined::Closed));
    parked[0].leave();
    assert_eq!(readers.followers().await, MAX_MEMBERS + 1);
    assert!(readers.park(&mut late));
    assert_eq!(readers.app.groups.all().len(), 1);
    assert!(readers.park(&mut parked[0]));
    assert_eq!(readers.app.groups.all().len(), 2, "the first one is full again");
    assert_eq!(readers.followers().await, MAX_MEMBERS + 1);
}

#[tokio::test]
async fn readers_join_only_those_of_the_same_rules() {
    let readers = Readers::new();
    let mut parked = readers.parked(2).await;
    let mut own = readers.readers(2).await;
    let before = readers.app.rules.load_full();
    readers.app.reconfigure(&Config::default()).expect("it stays open");
    assert!(readers.park(&mut own[0]), "it founds a group");
    assert_eq!(readers.app.groups.all().len(), 2);
    let socket = own[1].socket.clone();
    let comer = Comer {
        form: readers.form,
        socket: &socket,
        metrics: readers.app.metrics.of(Transport::Ndjson),
        rules: &before,
        ends_at: None,
    };
    let subscription = own[1].subscription.as_mut().expect("it reads by itself");
    let joined = readers.app.groups.park(subscription, &comer, Waker::noop());
    assert!(joined.is_none(), "its rights have to be checked first");
    readers.publish("one", None).await;
    settle().await;
    parked.iter_mut().for_each(|reader| assert!(reader.received().is_empty()));
    assert_eq!(own[0].received(), ["one"]);
}

/// Each place at the door is a waker, which readers that come again and again must not use up.
#[tokio::test]
async fn a_reader_waits_at_the_door_once_and_only_as_many_as_a_group_has_members() {
    let readers = Readers::new();
    let _parked = readers.parked(2).await;
    let group = readers.app.groups.any().expect("a group");
    let mut own = readers.readers(MAX_MEMBERS + 1).await;
    readers.publish("one", None).await;
    let wakes: Vec<_> = own.iter().map(|_| Arc::new(Wakes::default())).collect();
    let mut wait = |index: usize| {
        let reader: &mut Reader = &mut own[index];
        reader.own();
        assert!(!readers.park_by(reader, &wakes[index].clone().into()), "the group has yet to write it");
        group.state().door.len()
    };
    assert_eq!((wait(0), wait(0), wait(1)), (1, 1, 2));
    let waiting: Vec<_> = (2..=MAX_MEMBERS).map(wait).collect();
    assert_eq!(waiting.last(), Some(&MAX_MEMBERS));
    settle().await;
    assert!(group.state().door.is_empty());
    let woken = wakes.iter().filter(|wakes| wakes.0.load(Ordering::Relaxed) == 1);
    assert_eq!(woken.count(), MAX_MEMBERS);
}

/// Otherwise it would found another group.
#[tokio::test]
async fn a_reader_finds_the_group_with_room_among_many_that_are_full() {
    let readers = Readers::new();
    let mut parked = readers.parked(3 * MAX_MEMBERS).await;
    assert_eq!(readers.app.groups.all().len(), 3);
    parked[0].leave();
    assert!(readers.park(&mut parked[0]));
    assert_eq!(readers.app.groups.all().len(), 3);
}
