//! The tests of leaving: where each member stands, and the end of its rights.

use std::time::Duration;

use super::*;

fn cursors(readers: &[Reader]) -> Vec<Id> {
    readers.iter().map(|reader| reader.parked.as_ref().expect("parked").cursor()).collect()
}

#[tokio::test]
async fn each_member_stands_behind_the_batch_once_it_was_written_to() {
    let readers = Readers::new();
    let mut parked = readers.parked(WRITES_AT_ONCE + 2).await;
    let group = readers.app.groups.any().expect("a group");
    let before = cursors(&parked)[0];
    readers.publish("one", Some("c1")).await;
    assert!(group.has_batch());
    assert_eq!(cursors(&parked), [before; WRITES_AT_ONCE + 2]);
    assert!(group.write_some(WRITES_AT_ONCE), "two are left");
    let after = cursors(&parked)[0];
    assert!(after > before);
    // The second one is excluded, so the group has let it go.
    let expected: Vec<_> = [after, before, after, after, before, before].into();
    assert_eq!(cursors(&parked), expected);
    // This one has everything, and takes the place of the one that has left.
    let mut late = readers.reader("late").await;
    assert!(readers.park(&mut late));
    assert_eq!(late.parked.as_ref().expect("parked").cursor(), after);
    parked[WRITES_AT_ONCE].leave();
    assert_eq!(parked[WRITES_AT_ONCE].own(), ["one"]);
    assert!(late.leave().is_empty() && late.own().is_empty());
    parked[0].leave();
    assert!(parked[0].own().is_empty());
    assert!(!group.write_some(WRITES_AT_ONCE));
    assert_eq!(cursors(&parked[WRITES_AT_ONCE + 1..]), [after]);
}

#[tokio::test]
async fn a_reader_that_joins_during_a_batch_stands_behind_it() {
    let readers = Readers::new();
    let _parked = readers.parked(2).await;
    let group = readers.app.groups.any().expect("a group");
    readers.publish("one", None).await;
    assert!(group.has_batch());
    let mut late = readers.reader("late").await;
    assert!(readers.park(&mut late));
    let given = late.parked.as_ref().expect("parked").leave().expect("it has not left");
    assert_eq!((given.given.messages, given.given.bytes), (0, 0));
    late.subscription = Some(given.subscription);
    assert!(late.own().is_empty());
    assert!(readers.park(&mut late));
    assert!(!group.write_some(WRITES_AT_ONCE));
    assert!(late.received().is_empty());
}

/// Otherwise a reader whose rights end soon is given messages for as long as the first one has rights.
#[tokio::test]
async fn a_group_knows_the_end_of_rights_that_comes_first() {
    let readers = Readers::new();
    let mut parked = readers.readers(4).await;
    let (past, later) = (SystemTime::now(), SystemTime::now() + Duration::from_secs(3600));
    let much_later = later + Duration::from_secs(3600);
    for (reader, end) in parked.iter_mut().zip([Some(much_later), Some(past), Some(later), None]) {
        reader.ends_at = end;
        assert!(readers.park(reader));
    }
    let group = readers.app.groups.any().expect("a group");
    assert_eq!(group.state().soonest_end, Some(past));
    readers.publish("one", None).await;
    settle().await;
    assert_eq!(group.state().soonest_end, Some(later), "the first one has left");
    assert_eq!(parked[1].received(), Vec::<String>::new());
    parked[2].leave();
    parked[0].leave();
    readers.publish("two", None).await;
    settle().await;
    assert_eq!(group.state().soonest_end, None, "nobody is left whose rights end");
    assert_eq!(parked[3].received(), ["one", "two"]);
}

/// A socket that takes nothing may do so without an error.
#[tokio::test]
async fn a_reader_whose_socket_takes_nothing_leaves_from_before_the_batch() {
    for is_full in [true, false] {
        let readers = Readers::new();
        let mut parked = readers.parked(2).await;
        let full = parked[1].socket.clone();
        scripted::set(Some(Box::new(move |socket, bytes| match Arc::ptr_eq(&socket.0, &full.0) {
            true if is_full => Err(std::io::ErrorKind::WouldBlock.into()),
            true => Ok(0),
            false => Ok(bytes.len()),
        })));
        readers.publish("one", None).await;
        settle().await;
        scripted::set(None);
        let metrics = readers.app.metrics.of(Transport::Ndjson);
        assert_eq!(metrics.deliveries.get(), 1);
        assert!(parked[1].leave().is_empty());
        assert_eq!(parked[1].own(), ["one"]);
        assert!(parked[0].leave().is_empty() && parked[0].own().is_empty());
    }
}

#[tokio::test]
async fn a_reader_that_is_dropped_leaves() {
    let readers = Readers::new();
    // Only topics that have had a message are listed.
    readers.publish("zero", None).await;
    let mut parked = readers.parked(3).await;
    let group = readers.app.groups.any().expect("a group");
    parked.pop();
    assert_eq!(readers.followers().await, 2);
    assert_eq!(group.state().members.len(), 2);
    let left = parked[0].parked.take().expect("parked");
    assert!(left.leave().is_some() && left.leave().is_none(), "it has left before");
    drop(left);
    assert_eq!(group.state().members.len(), 1);
}

#[tokio::test]
async fn the_task_of_a_quiet_group_ends_with_its_last_member() {
    let readers = Readers::new();
    let parked = readers.parked(2).await;
    settle().await;
    drop(parked);
    settle().await;
    assert!(readers.app.groups.until_ended().now_or_never().is_some());
}

/// Otherwise a client that comes back has a cursor from before much that it needs not be told.
#[tokio::test]
async fn members_stand_as_far_as_their_group_has_looked() {
    let readers = Readers::new();
    let parked = readers.parked(2).await;
    let group = readers.app.groups.any().expect("a group");
    readers.publish("one", None).await;
    assert!(group.has_batch() && !group.write_some(WRITES_AT_ONCE));
    let own = cursors(&parked)[0];
    let (topic, payload) = ("other".parse().expect("a topic"), Payload::text("two"));
    let draft = Draft { topic, event: None, payload, exclude: None, by: None };
    let append = Append { draft, idempotency_key: None, if_match: None };
    let newest = readers.broker.publish(append).await.expect("stored").id();
    assert!(group.poll_ready(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(own < newest);
    assert_eq!(cursors(&parked), [newest; 2]);
}

/// A member that the group has let go holds the group until its task has run.
#[tokio::test]
async fn a_group_without_members_holds_no_bytes() {
    let readers = Readers::new();
    let mut parked = readers.parked(2).await;
    let group = readers.app.groups.any().expect("a group");
    readers.publish("one", None).await;
    assert!(group.has_batch());
    parked.iter_mut().for_each(|reader| assert!(reader.leave().is_empty()));
    assert!(group.state().batch.is_none());
}
