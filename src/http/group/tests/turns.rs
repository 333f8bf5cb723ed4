//! The tests of turns: how much groups write before other tasks may run.

use super::*;

/// How many members three full groups write this message to, at most, before another task has its turn.
async fn most_at_once(text: &str) -> usize {
    let readers = Readers::new();
    let parked = readers.parked(3 * MAX_MEMBERS).await;
    assert_eq!(readers.app.groups.all().len(), 3);
    let writes = Arc::new(AtomicUsize::new(0));
    let counted = writes.clone();
    scripted::set(Some(Box::new(move |_, bytes| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(bytes.len())
    })));
    readers.publish(text, None).await;
    let count = parked.len();
    let other = tokio::spawn(async move {
        let (mut before, mut most) = (0, 0);
        while before < count {
            // It is ready again at once, and at the end of the queue.
            let mut is_ready = false;
            let turn = std::future::poll_fn(|cx| {
                if std::mem::replace(&mut is_ready, true) {
                    return Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            });
            turn.await;
            let now = writes.load(Ordering::Relaxed);
            (before, most) = (now, most.max(now - before));
        }
        most
    });
    let most = other.await.expect("it ends");
    scripted::set(None);
    most
}

/// Otherwise a request would wait for as long as several large groups take.
#[tokio::test]
async fn all_groups_write_to_few_members_before_another_task_has_its_turn() {
    assert_eq!(most_at_once("one").await, WRITES_AT_ONCE);
}

/// Otherwise a request would wait until a long message was copied, or encrypted, for very many members.
#[tokio::test]
async fn a_long_message_takes_several_turns_for_each_member() {
    assert_eq!(most_at_once(&"x".repeat(12 << 10)).await, WRITES_AT_ONCE / 2);
    assert_eq!(most_at_once(&"x".repeat(200 << 10)).await, 1);
    // A small group has fewer turns before it knows how long the message is.
    let readers = Readers::new();
    let mut parked = readers.parked(2).await;
    let group = readers.app.groups.any().expect("a group");
    assert_eq!(group.next_turns(), 2);
    let text = "x".repeat(20 << 10);
    readers.publish(&text, None).await;
    assert!(group.has_batch() && group.write_some(2), "one is left");
    assert_eq!(group.next_turns(), 3);
    assert!(!group.write_some(3));
    assert!(parked.iter_mut().all(|reader| reader.received() == [&*text]));
}

/// Otherwise all groups would hold the bytes of their messages at once, while few of them can write.
#[tokio::test]
async fn a_group_holds_no_bytes_while_it_waits_for_a_turn_and_no_turn_while_it_waits_for_messages() {
    let readers = Readers::new();
    let mut parked = readers.parked(2).await;
    let (group, turns) = (readers.app.groups.any().expect("a group"), readers.app.groups.turns.clone());
    settle().await;
    assert_eq!(turns.available_permits(), WRITES_AT_ONCE);
    let taken = turns.acquire_many(WRITES_AT_ONCE as u32).await.expect("never closed");
    readers.publish("one", None).await;
    settle().await;
    assert!(group.state().batch.is_none());
    // They come together, though the group found out about the first alone.
    readers.publish("two", None).await;
    let mut late = readers.reader("late").await;
    assert!(!readers.park(&mut late), "the group has yet to join the messages");
    drop(taken);
    settle().await;
    assert!(readers.park(&mut late));
    readers.publish("three", None).await;
    settle().await;
    for reader in &mut parked {
        assert_eq!(reader.received(), ["one", "two", "three"]);
    }
    assert_eq!(late.received(), ["three"]);
    assert_eq!(turns.available_permits(), WRITES_AT_ONCE);
}

/// Otherwise all small groups would hold the bytes of a long message at once, and wait for the turns of each other.
#[tokio::test]
async fn a_small_group_keeps_its_turns_until_all_members_have_a_long_message() {
    let readers = Readers::new();
    let mut parked = readers.parked(2).await;
    let (group, turns) = (readers.app.groups.any().expect("a group"), readers.app.groups.turns.clone());
    settle().await;
    // Two are left, and the rest of the batch would take three.
    let taken = turns.acquire_many(WRITES_AT_ONCE as u32 - 2).await.expect("never closed");
    let text = "x".repeat(20 << 10);
    readers.publish(&text, None).await;
    settle().await;
    assert!(group.state().batch.is_none());
    assert!(parked.iter_mut().all(|reader| reader.received() == [&*text]));
    drop(taken);
    assert_eq!(turns.available_permits(), WRITES_AT_ONCE);
}

/// Otherwise a group that was large takes the turns of others for members that it has no more.
#[tokio::test]
async fn a_group_takes_turns_for_the_members_that_it_has_yet_to_write_to() {
    let readers = Readers::new();
    let mut parked = readers.parked(MAX_MEMBERS).await;
    let group = readers.app.groups.any().expect("a group");
    assert_eq!(group.next_turns(), WRITES_AT_ONCE);
    // Only the last ones stay: one more than a step writes to.
    for reader in &mut parked[..MAX_MEMBERS - WRITES_AT_ONCE - 1] {
        reader.leave();
    }
    readers.publish("one", None).await;
    assert!(group.has_batch() && group.write_some(WRITES_AT_ONCE), "one is left");
    assert_eq!(group.next_turns(), 1);
    assert!(!group.write_some(WRITES_AT_ONCE));
    // Behind the members there are places that nobody has.
    parked[MAX_MEMBERS - 1].leave();
    readers.publish("two", None).await;
    assert!(group.has_batch() && !group.write_some(WRITES_AT_ONCE), "all fit into one step");
    for reader in &mut parked[MAX_MEMBERS - WRITES_AT_ONCE - 1..MAX_MEMBERS - 1] {
        assert_eq!(reader.received(), ["one", "two"]);
    }
}
