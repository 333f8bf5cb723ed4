//! The connection itself: it is made, lost and made again, and knows the time of Redis.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, ConnectionAddr, PushInfo, PushKind, RedisError, aio::MultiplexedConnection,
};
use tokio::time::{Instant, sleep_until, timeout};

use super::{ANSWER_TIMEOUT, COPY_FOR, RETRY_AFTER, Store, is_within};
use crate::log::redis::{clock::StoreClock, primary::ConnectError};

/// How long a call waits for a connection that is being made, before it fails with nothing sent.
const PATIENCE: Duration = Duration::from_millis(500);

/// One connection. Its number keeps a late error on it from ending the next one.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) number: u64,
    pub(super) redis: MultiplexedConnection,
    /// When a script last checked which primary the connection leads to.
    looked: Arc<Mutex<Option<Instant>>>,
    /// `None` after Redis has shown another time.
    clock: Arc<Mutex<Option<StoreClock>>>,
}

impl Connection {
    pub(super) fn looked(&self) -> MutexGuard<'_, Option<Instant>> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The clock of Redis. It is asked for if it is not known.
    pub(super) async fn clock(&mut self) -> Result<StoreClock, RedisError> {
        let known = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        match known {
            Some(clock) => Ok(clock),
            None => self.ask_time().await,
        }
    }

    async fn ask_time(&mut self) -> Result<StoreClock, RedisError> {
        let asked = StoreClock::ask(&mut self.redis).await?;
        let mut known = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let clock = asked.or_better(*known);
        *known = Some(clock);
        Ok(clock)
    }

    /// Forgets the time, which was wrong for a script that was sent then. One for which another call has asked since is
    /// kept.
    pub(super) fn forget_time(&self, sent: Instant) {
        let mut known = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        *known = known.filter(|known| known.asked_at() > sent);
    }
}

impl Store {
    /// Drops the connection if it is still in use. Calls that wait for an answer on it will get none.
    pub(super) fn drop_connection(&self, number: u64) -> bool {
        self.connection.send_if_modified(|connection| {
            let is_this = connection.as_ref().is_some_and(|connection| connection.number == number);
            if is_this {
                *connection = None;
            }
            is_this
        })
    }

    /// Drops the connection, and logs why.
    pub(super) fn lose(&self, number: u64, why: &dyn std::fmt::Display) {
        if self.drop_connection(number) {
            tracing::warn!(redis = %self.address(), %why, "the publishing connection is lost");
        }
    }

    /// The number of the current connection, to drop it later if it turns out to be dead.
    pub fn current(&self) -> Option<u64> {
        self.connection.borrow().as_ref().map(|connection| connection.number)
    }

    /// Resolves when there is a connection with another number than `known`.
    pub async fn renewed(&self, known: Option<u64>) {
        let mut connection = self.connection.subscribe();
        let is_other = |connection: &Option<Connection>| {
            connection.as_ref().is_some_and(|connection| Some(connection.number) != known)
        };
        // The sender is in self, so the channel never closes.
        let _ = connection.wait_for(is_other).await;
    }

    /// Drops a connection on which no answer came.
    pub fn give_up(&self, number: u64) {
        self.lose(number, &"it does not answer");
    }

    /// Connects whenever there is no connection. Never ends.
    pub async fn keep_connected(self: Arc<Self>) {
        let mut is_policy_known = false;
        let mut was_told = false;
        for number in 0.. {
            let began = Instant::now();
            match self.connect(number).await {
                Ok((addr, connection)) => {
                    if is_within(&self.left_copy_at, 2 * COPY_FOR) {
                        tracing::debug!(redis = %addr, "the publishing connection is up");
                    } else {
                        tracing::info!(redis = %addr, "the publishing connection is up");
                    }
                    self.connection.send_replace(Some(connection));
                    // First, because this logs what is wrong.
                    let _ = self.check().await;
                    if !is_policy_known {
                        is_policy_known = self.warn_of_eviction().await;
                    }
                    was_told = false;
                    let mut connection = self.connection.subscribe();
                    tokio::select! {
                        _ = connection.wait_for(Option::is_none) => {}
                        () = self.keep_retaining() => {}
                        () = self.primary.moved(&addr) => self.lose(number, &"the sentinels name another primary"),
                    }
                }
                Err(error) if !was_told => {
                    tracing::warn!(redis = %self.address(), %error, "redis cannot be reached");
                    was_told = true;
                }
                Err(error) => tracing::debug!(%error, "redis cannot be reached"),
            }
            sleep_until(began + RETRY_AFTER).await;
        }
    }

    /// Checks whether every message that is acknowledged from now on is on disk, and asks Redis for its time.
    pub async fn look_around(&self) {
        let Some(mut connection) = self.connection.borrow().clone() else { return };
        let _ = connection.ask_time().await;
        let connection = connection.redis;
        self.is_durable.store(is_durable(connection).await, Ordering::Release);
    }

    async fn connect(self: &Arc<Self>, number: u64) -> Result<(ConnectionAddr, Connection), ConnectError> {
        let store = Arc::downgrade(self);
        // A close is noticed at once. A script that was sent after it would have an unknown outcome.
        let take = move |push: PushInfo| {
            if let (PushKind::Disconnection, Some(store)) = (push.kind, store.upgrade()) {
                store.lose(number, &"it was closed");
            }
            Ok::<(), std::convert::Infallible>(())
        };
        let config =
            AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_TIMEOUT)).set_push_sender(take);
        let (addr, redis) = self.primary.connect(config).await?;
        self.is_durable.store(is_durable(redis.clone()).await, Ordering::Release);
        let mut connection = Connection { number, redis, looked: Arc::default(), clock: Arc::default() };
        // If its user may not ask, the check says so.
        let _ = connection.ask_time().await;
        Ok((addr, connection))
    }

    pub(super) async fn connected(&self) -> Option<Connection> {
        if let Some(connection) = &*self.connection.borrow() {
            return Some(connection.clone());
        }
        let mut connection = self.connection.subscribe();
        let made = timeout(PATIENCE, connection.wait_for(Option::is_some)).await;
        made.ok()?.ok()?.clone()
    }

    /// Asks Redis for its policy, and warns if messages may be evicted. False if there is no connection to ask.
    async fn warn_of_eviction(&self) -> bool {
        let Some(connection) = self.connection.borrow().clone() else { return false };
        match setting(connection.redis, "maxmemory-policy").await {
            Some(policy) if policy == "noeviction" => {}
            Some(policy) => tracing::warn!(
                %policy,
                "redis may evict retained messages when its memory is full; set maxmemory-policy to noeviction"
            ),
            None if self.current() != Some(connection.number) => return false,
            None => tracing::warn!("redis does not tell its maxmemory-policy; it should be noeviction"),
        }
        true
    }
}

async fn is_durable(connection: MultiplexedConnection) -> bool {
    setting(connection.clone(), "appendonly").await.as_deref() == Some("yes")
        && setting(connection, "appendfsync").await.as_deref() == Some("always")
}

async fn setting(mut connection: MultiplexedConnection, name: &str) -> Option<String> {
    let mut command = redis::cmd("CONFIG");
    let answer: Result<std::collections::HashMap<String, String>, _> =
        command.arg("GET").arg(name).query_async(&mut connection).await;
    answer.ok()?.remove(name)
}
