//! The lists of subjects: requests that change them, and their readers.

use std::sync::Arc;

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use reqwest::Method;

use super::{
    clients::{open, read as read_on},
    journal::End,
    world::{Phase, World},
};

/// Changes the list of one subject, and ends its connections now and then.
pub async fn change(world: Arc<World>, seed: u64, number: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let sub = format!("l{number}");
    let (mut count, mut ended_at) = (0, None);
    while world.phase() == Phase::Storm {
        world.pause(&mut random, 5..150).await;
        count += 1;
        // One end surely comes.
        if count >= 8 && world.needs_end(ended_at) || random.random_bool(0.01) {
            let refuse = if random.random_bool(0.5) { "?refuse=1s" } else { "" };
            let path = format!("/subjects/{sub}{refuse}");
            let Some((asked, answered, _)) = world.insist(&mut random, Method::DELETE, &path).await else {
                return;
            };
            world.journal().ends.push(End { of: sub.clone(), asked, answered });
            ended_at = Some(asked);
            continue;
        }
        let (topic, is_added) = (format!("l.{}", random.random_range(0..4)), random.random_bool(0.5));
        let path = format!("/subjects/{sub}");
        let Some(status) = world.change(&mut random, &sub, topic, is_added, &path).await else { return };
        assert_eq!(status, 204, "a list can always be changed");
    }
}

/// Reads the list of one subject, on one connection after the other, from its cursor on.
pub async fn read(world: Arc<World>, seed: u64, number: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let sub = format!("l{}", number % 3);
    let mut cursor = None;
    while world.phase() != Phase::Over {
        let after = cursor.map(|cursor: u64| format!("&after={cursor}")).unwrap_or_default();
        let path = format!("/events?mine&topic=end{after}");
        let Some((mut stream, _, session)) = open(&world, &mut random, &path, &sub).await else {
            world.pause(&mut random, 20..200).await;
            tokio::time::sleep(super::world::AGAIN_AFTER).await;
            continue;
        };
        world.journal().readers.entry(number).or_default().push(session.clone());
        let lasts = random.random_range(100..6000);
        let leaves = async {
            world.pause(&mut random, lasts..lasts + 1).await;
            if world.phase() != Phase::Storm {
                world.until(Phase::Over).await;
            }
        };
        tokio::select! {
            () = read_on(&world, &mut stream, &session) => {}
            () = leaves => {}
        }
        let mut session = session.lock().expect("no actor panics");
        session.is_over = true;
        cursor = Some(session.cursor());
    }
}
