//! Finds the primary: at a fixed address, or by asking the Sentinels.
//!
//! This module makes connections, and knows nothing of their use.

use std::{
    collections::HashMap,
    future::pending,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, RedisError, aio::MultiplexedConnection,
};
use tokio::{
    sync::Mutex,
    time::{MissedTickBehavior, interval},
};

use super::{Address, store::CONNECT_TIMEOUT};

/// How long a Sentinel may take for each step of its answer.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// How often the Sentinels are asked whether the primary is still the same.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Finds the primary, and connects to it.
pub struct Primary {
    address: Address,
    sentinels: Vec<Sentinel>,
    /// The latest failover that a chosen answer has seen.
    epoch: AtomicU64,
}

/// Why there is no connection to the primary.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("no sentinel answers: {0}")]
    NoSentinel(RedisError),
    #[error("the sentinels know no master of that name")]
    UnknownMaster,
    #[error("the server that the sentinels name is not a primary")]
    NotPrimary,
}

struct Sentinel {
    info: ConnectionInfo,
    /// The connection stays open from one question to the next.
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// The primary that a Sentinel names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    host: String,
    port: u16,
    /// Grows with each failover.
    epoch: u64,
}

impl Primary {
    pub fn new(address: Address) -> Self {
        // TLS needs a provider, and an application that embeds the server may build in several. This fails if one is
        // installed already, which is just as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let infos = address.sentinels().map(|sentinels| sentinels.infos.clone()).unwrap_or_default();
        let new = |info| Sentinel { info, connection: Mutex::default() };
        Self { address, sentinels: infos.into_iter().map(new).collect(), epoch: AtomicU64::new(0) }
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Connects to the primary, and returns its address and the connection.
    ///
    /// # Errors
    /// If the primary cannot be found or reached. Each step has a bounded time.
    ///
    /// # Cancel safety
    /// Dropping this closes the connections that it has opened.
    pub async fn connect(
        &self,
        config: AsyncConnectionConfig,
    ) -> Result<(ConnectionAddr, MultiplexedConnection), ConnectError> {
        let info = self.find().await?;
        let addr = info.addr().clone();
        let config = config.set_connection_timeout(Some(CONNECT_TIMEOUT));
        let mut connection =
            Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await?;
        // For a while after a failover, the Sentinels may still name the old primary, which is a copy now.
        if !self.sentinels.is_empty() && !is_primary(&mut connection).await? {
            return Err(ConnectError::NotPrimary);
        }
        Ok((addr, connection))
    }

    /// Waits until the Sentinels name a primary at another address than `addr`. Never resolves if the address
    /// is fixed.
    pub async fn moved(&self, addr: &ConnectionAddr) {
        if self.sentinels.is_empty() {
            return pending().await;
        }
        let mut is_answered = true;
        let mut questions = interval(ASK_EVERY);
        questions.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            questions.tick().await;
            match self.find().await {
                Ok(info) if info.addr() != addr => return,
                Ok(_) => is_answered = true,
                // The primary may still be healthy.
                Err(why) if std::mem::take(&mut is_answered) => {
                    tracing::warn!(redis = %self.address, %why, "a failover would not be noticed");
                }
                Err(_) => {}
            }
        }
    }

    /// How to connect to the primary, as the Sentinels say.
    async fn find(&self) -> Result<ConnectionInfo, ConnectError> {
        let Some(sentinels) = self.address.sentinels() else { return Ok(self.address.node()) };
        let mut answers: FuturesUnordered<_> =
            self.sentinels.iter().map(|sentinel| sentinel.ask(&sentinels.master)).collect();
        let (mut named, mut failed) = (Vec::<Named>::new(), None);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(primary) => named.extend(primary),
                Err(error) => failed = Some(error),
            }
            if is_decided(&named, self.sentinels.len(), self.epoch.load(Ordering::Relaxed)) {
                break;
            }
        }
        match (latest(&named), failed) {
            (Some(Named { host, port, epoch }), _) => {
                self.epoch.store(*epoch, Ordering::Relaxed);
                Ok(self.address.node_at(host.clone(), *port))
            }
            (None, Some(error)) => Err(ConnectError::NoSentinel(error)),
            (None, None) => Err(ConnectError::UnknownMaster),
        }
    }
}

impl Sentinel {
    /// Asks this Sentinel for the primary. `None` if it knows no primary of that name.
    async fn ask(&self, master: &str) -> Result<Option<Named>, RedisError> {
        let mut kept = self.connection.lock().await;
        let mut connection = match &*kept {
            Some(connection) => connection.clone(),
            None => self.connect().await?,
        };
        let named = ask(&mut connection, master).await;
        // After an error the next question gets a new connection.
        *kept = named.is_ok().then_some(connection);
        named
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ASK_TIMEOUT))
            .set_response_timeout(Some(ASK_TIMEOUT));
        Client::open(self.info.clone())?.get_multiplexed_async_connection_with_config(&config).await
    }
}

async fn ask(connection: &mut MultiplexedConnection, master: &str) -> Result<Option<Named>, RedisError> {
    let mut question = redis::cmd("SENTINEL");
    question.arg("MASTER").arg(master);
    // First the epoch, then the address: a failover in between gives the new address the old epoch, which only
    // makes the answer count less.
    let known: HashMap<String, String> = match question.query_async(connection).await {
        Err(error) if error.to_string().contains("No such master") => return Ok(None),
        known => known?,
    };
    let mut question = redis::cmd("SENTINEL");
    question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
    let place: Option<(String, u16)> = question.query_async(connection).await?;
    let epoch = known.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or_default();
    Ok(place.map(|(host, port)| Named { host, port, epoch }))
}

/// The answer that has seen the latest failover.
fn latest(named: &[Named]) -> Option<&Named> {
    named.iter().max_by_key(|primary| primary.epoch)
}

/// True if no further answer is needed: more than half of the Sentinels name the same primary, and no failover is known
/// that they have not seen.
fn is_decided(named: &[Named], sentinels: usize, seen: u64) -> bool {
    latest(named).is_some_and(|latest| {
        let votes = named.iter().filter(|other| *other == latest).count();
        latest.epoch >= seen && 2 * votes > sentinels
    })
}

async fn is_primary(connection: &mut MultiplexedConnection) -> Result<bool, RedisError> {
    // Behind the role stand the number of copies and more.
    let role: Vec<redis::Value> = redis::cmd("ROLE").query_async(connection).await?;
    let role = role.into_iter().next().map(redis::from_redis_value::<String>);
    Ok(role.is_some_and(|role| role.is_ok_and(|role| role == "master")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(port: u16, epoch: u64) -> Named {
        Named { host: "h".into(), port, epoch }
    }

    #[test]
    fn tls_has_its_cryptography_before_the_first_connection() {
        drop(Primary::new("rediss://127.0.0.1".parse().expect("an address")));
        assert!(rustls::crypto::CryptoProvider::get_default().is_some());
    }

    #[test]
    fn the_sentinels_decide_when_most_agree_and_none_has_seen_a_later_failover() {
        assert!(!is_decided(&[], 3, 0));
        assert!(!is_decided(&[named(1, 7)], 3, 0), "one of three");
        assert!(is_decided(&[named(1, 7), named(1, 7)], 3, 7), "two of three");
        assert!(!is_decided(&[named(1, 7), named(1, 7)], 3, 8), "a later failover was seen before");
        assert!(!is_decided(&[named(2, 8), named(1, 7), named(1, 7)], 3, 0), "one has seen a later failover");
        assert_eq!(latest(&[named(1, 7), named(2, 8), named(1, 7)]), Some(&named(2, 8)));
    }
}
