//! Clients that are present, watchers that are told, and the members that there must be.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use reqwest::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    clients::Stream,
    journal::{Hold, Leave},
    world::{AGAIN_AFTER, Phase, World, backend, now_us, number_of, token},
};

const ROOMS: u64 = 2;

/// Holds a random subject present in a random topic, again and again. The last hold ends after the storm.
pub async fn hold(world: Arc<World>, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut longest = 300;
    while world.phase() != Phase::Over {
        let room = format!("r.{}", random.random_range(0..ROOMS));
        let sub = format!("u{}", random.random_range(0..6));
        let replica = world.any(&mut random);
        let path = format!("/events?presence&topic={room}");
        let Some((mut stream, _)) = Stream::open(&world, replica, &path, &token(&sub)).await else {
            sleep(AGAIN_AFTER).await;
            continue;
        };
        let (opened, at) = (world.tick(), (room.clone(), sub.clone()));
        *world.journal().held.entry(at.clone()).or_default() += 1;
        let lasts = random.random_range(50..longest);
        // The first holds are short, so that some members surely leave.
        longest = 4000;
        let leaves = async {
            world.pause(&mut random, lasts..lasts + 1).await;
            if world.phase() != Phase::Storm {
                world.until(Phase::Over).await;
            }
        };
        let ended = async {
            while let Some(frame) = stream.next().await {
                if frame["type"] == "closing" {
                    return;
                }
            }
        };
        tokio::select! {
            () = ended => {}
            () = leaves => {}
        }
        {
            let mut journal = world.journal();
            let count = journal.held.get_mut(&at).expect("it was held");
            *count -= 1;
            if *count == 0 {
                journal.held.remove(&at);
            }
            journal.holds.push(Hold { topic: room, sub, replica, opened, closed: world.tick() });
        }
        drop(stream);
        if random.random_bool(0.5) {
            world.pause(&mut random, 50..3000).await;
        }
    }
}

/// The members of a topic, as one replica lists them, with their cursor.
async fn members(world: &World, replica: usize, room: &str) -> Option<(u64, BTreeMap<String, u64>)> {
    let path = format!("/topics/{room}/presence?limit=1000");
    let (200, page) = world.ask(replica, Method::GET, &path, None).await? else { return None };
    let one = |member: &Value| {
        let sub = member["sub"].as_str().expect("a subject").to_owned();
        (sub, member["connections"].as_u64().expect("a number"))
    };
    Some((number_of(&page["cursor"]), page["members"].as_array().expect("a list").iter().map(one).collect()))
}

/// Reads the members of each topic, and then applies every change to them, one by one. A gap begins that anew.
pub async fn watch(world: Arc<World>, seed: u64, number: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let room = format!("r.{number}");
    'anew: while world.phase() != Phase::Over {
        let Some((mut cursor, known)) = members(&world, world.any(&mut random), &room).await else {
            sleep(AGAIN_AFTER).await;
            continue;
        };
        let mut here: Vec<String> = known.into_keys().collect();
        world.journal().watched.insert((number, room.clone()), here.clone());
        while world.phase() != Phase::Over {
            let path = format!("/topics/$presence.{room}?after={cursor}");
            let Some((mut stream, _)) = Stream::open(&world, world.any(&mut random), &path, &backend()).await
            else {
                sleep(AGAIN_AFTER).await;
                continue;
            };
            let lasts = random.random_range(100..10_000);
            let (mut leaves, over) =
                (std::pin::pin!(sleep(Duration::from_millis(lasts))), world.until(Phase::Over));
            let mut over = std::pin::pin!(over);
            loop {
                let frame = tokio::select! {
                    frame = stream.next() => frame,
                    () = &mut leaves, if world.phase() == Phase::Storm => None,
                    () = &mut over => None,
                };
                let Some(frame) = frame else { break };
                match frame["type"].as_str() {
                    Some("gap") => continue 'anew,
                    Some("message") => {}
                    _ => continue,
                }
                cursor = number_of(&frame["id"]);
                let sub = frame["data"]["sub"].as_str().expect("a subject").to_owned();
                let known = here.iter().position(|one| *one == sub);
                match (frame["event"].as_str(), known) {
                    (Some("join"), None) => here.push(sub),
                    (Some("leave"), Some(at)) => {
                        here.remove(at);
                        let (topic, at, at_us) = (room.clone(), world.tick(), now_us());
                        world.journal().leaves.push(Leave { topic, sub, id: cursor, at, at_us });
                    }
                    _ => panic!("{frame} for {here:?}"),
                }
                here.sort();
                world.journal().watched.insert((number, room.clone()), here.clone());
            }
        }
    }
}

/// Waits until the members of each topic are those that clients hold, at each replica and for each watcher.
///
/// # Panics
/// If they never are.
pub async fn until_true(world: &World, patience: Duration) {
    let until = Instant::now() + patience;
    loop {
        let mut wrong = Vec::new();
        for (replica, room) in
            (0..world.addrs.len()).flat_map(|one| (0..ROOMS).map(move |room| (one, format!("r.{room}"))))
        {
            let listed = members(world, replica, &room).await.map(|(_, members)| members);
            let journal = world.journal();
            let held = journal.held.iter().filter(|((topic, _), _)| *topic == room);
            let held: BTreeMap<String, u64> = held.map(|((_, sub), count)| (sub.clone(), *count)).collect();
            let watched = journal.watched.iter().find(|((_, topic), _)| *topic == room).map(|(_, here)| here);
            if listed.as_ref() != Some(&held) || watched != Some(&held.keys().cloned().collect()) {
                wrong.push(format!("{room} at {replica}: {listed:?}, watched {watched:?}, held {held:?}"));
            }
        }
        if wrong.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "{wrong:#?}");
        sleep(AGAIN_AFTER).await;
    }
}
