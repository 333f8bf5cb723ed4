//! The faults of a round, one after the other.

use std::{net::SocketAddr, time::Duration};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rustix::process::Signal;
use tokio::time::sleep;

use super::world::{SETTINGS, World, now_us};
use crate::{deployment::until_ready, replicas::Replica, support::redis::Redis};

const REPLICAS: usize = 3;

pub struct Faults {
    random: SmallRng,
    redis: Redis,
    /// Redis has everything after a restart.
    keeps: bool,
    replicas: Vec<Replica>,
}

impl Faults {
    pub async fn start(seed: u64, redis: Redis, keeps: bool) -> (Self, Vec<SocketAddr>) {
        let mut replicas = Vec::new();
        for _ in 0..REPLICAS {
            replicas.push(Replica::with(redis.url(), SETTINGS).await);
        }
        let addrs = replicas.iter().map(|replica| replica.addr).collect();
        (Self { random: SmallRng::seed_from_u64(seed), redis, keeps, replicas }, addrs)
    }

    pub async fn befall(&mut self, world: &World, is_long: bool) {
        // A replica that was killed counts as living for some seconds, and no end of a subject is answered meanwhile.
        world.until_a_subject_was_ended().await;
        self.between(2000).await;
        if !is_long {
            self.end_replica(world, Signal::KILL).await;
            self.between(500).await;
            self.lose_redis(world).await;
            self.between(1000).await;
            return;
        }
        for number in 0..6 {
            match self.random.random_range(0..7) {
                0 => self.end_replica(world, Signal::KILL).await,
                1 => self.end_replica(world, Signal::TERM).await,
                2 => self.hang_replica(world, 11_000..14_000).await,
                3 => self.hang_replica(world, 100..9_000).await,
                4 => self.lose_redis(world).await,
                5 => println!("{} links cut", self.redis.kill_links()),
                _ => {
                    let ms = self.random.random_range(100..5000);
                    println!("Redis hangs for {ms} ms");
                    self.redis.stop();
                    sleep(Duration::from_millis(ms)).await;
                    self.redis.go_on();
                }
            }
            if number == 0 {
                world.note_first_fault();
            }
            self.between(4000).await;
        }
        for replica in &self.replicas {
            until_ready(replica.addr).await;
        }
        // All faults together may be shorter than the time until a replica counts as gone.
        world.until_a_subject_was_ended().await;
    }

    async fn between(&mut self, ms: u64) {
        sleep(Duration::from_millis(self.random.random_range(ms / 4..ms))).await;
    }

    async fn end_replica(&mut self, world: &World, signal: Signal) {
        let (number, began) = (self.random.random_range(0..REPLICAS), now_us());
        println!("replica {number} gets {signal:?}");
        world.journal().faults.push((number, began, u64::MAX));
        self.replicas[number].signal(signal);
        self.replicas[number].start_again().await;
        world.journal().faults.last_mut().expect("it has begun").2 = now_us();
    }

    async fn hang_replica(&mut self, world: &World, ms: std::ops::Range<u64>) {
        let (number, began, ms) =
            (self.random.random_range(0..REPLICAS), now_us(), self.random.random_range(ms));
        println!("replica {number} hangs for {ms} ms");
        world.journal().faults.push((number, began, u64::MAX));
        self.replicas[number].stop().await;
        sleep(Duration::from_millis(ms)).await;
        self.replicas[number].signal(Signal::CONT);
        until_ready(self.replicas[number].addr).await;
        world.journal().faults.last_mut().expect("it has begun").2 = now_us();
    }

    async fn lose_redis(&mut self, world: &World) {
        println!("Redis is killed, and {}", if self.keeps { "keeps everything" } else { "loses everything" });
        if !self.keeps {
            let at = world.tick();
            world.journal().losses.push(at);
        }
        self.redis.kill();
        self.between(1000).await;
        self.redis.start_again();
        for replica in &self.replicas {
            until_ready(replica.addr).await;
        }
    }

    pub fn stop(self) {}
}
