//! Scenes of the model in which each step is given.

use super::*;

/// Plays a scene in a world of its own, in which every reader parks as soon as it can.
fn scene(play: impl FnOnce(&mut World<'_>)) {
    let mut ground = Ground::new();
    let pages = ground.pages.handle().clone();
    let _inside = pages.enter();
    play(&mut World::with(StdRng::seed_from_u64(1), 0, Parking::Always, &mut ground));
    scripted::set(None);
}

/// The group looks at the log because a link was lost. Otherwise the reader would wait for the next message.
#[test]
fn a_reader_at_the_door_joins_once_its_group_has_read_the_log_for_nothing() {
    scene(|world| {
        for _ in 0..2 {
            world.open(&Start::Now, TOPICS[0]);
        }
        world.settle();
        assert_eq!(world.counts.parked, 2);
        world.store.probe();
        world.store.lose_link();
        world.store.settle();
        world.open(&Start::Now, TOPICS[0]);
        world.run_reader(2);
        assert!(world.readers[2].parked.is_none(), "the group has yet to read the log");
        world.settle();
        assert!(world.readers.iter().all(|reader| reader.parked.is_some()));
    });
}

/// Otherwise the others could not join it until as much has arrived.
#[test]
fn a_reader_that_has_more_than_has_arrived_founds_no_group() {
    scene(|world| {
        let arrived = world.store.newest_id();
        let ahead = world.store.publish("a", None);
        for cursor in [ahead, arrived, arrived] {
            world.open(&Start::After(cursor), TOPICS[0]);
        }
        (0..3).for_each(|index| world.run_reader(index));
        let is_parked: Vec<_> = world.readers.iter().map(|reader| reader.parked.is_some()).collect();
        assert_eq!(is_parked, [false, true, true]);
    });
}

/// Otherwise both would wake each other until as much has arrived.
#[test]
fn a_reader_ahead_of_its_group_waits_at_the_door_without_waking_itself() {
    scene(|world| {
        for _ in 0..2 {
            world.open(&Start::Now, TOPICS[0]);
        }
        world.settle();
        let ahead = world.store.publish("a", None);
        world.open(&Start::After(ahead), TOPICS[0]);
        world.run_reader(2);
        assert!(world.readers[2].parked.is_none());
        assert!(world.run_group(0), "it was asked to look");
        assert!(!world.readers[2].task.0.load(Ordering::Relaxed) && !world.run_group(0));
        world.settle();
        assert!(world.readers.iter().all(|reader| reader.parked.is_some()));
    });
}

/// The task of a connection tells its client that the log does not answer, and a group tells nothing.
#[test]
fn members_go_on_by_themselves_while_the_log_does_not_answer() {
    scene(|world| {
        for _ in 0..2 {
            world.open(&Start::Now, TOPICS[0]);
        }
        world.settle();
        world.store.publish("a", None);
        while world.store.step() {}
        world.store.lose_link();
        world.store.trim("a", true, false);
        assert!(world.run_group(0) && world.run_group(0));
        for index in 0..2 {
            assert!(world.readers[index].task.0.load(Ordering::Relaxed), "the group has let it go");
            world.run_reader(index);
            let subscription = world.readers[index].subscription.as_ref().expect("it reads by itself");
            assert!(subscription.is_reading());
        }
    });
}
