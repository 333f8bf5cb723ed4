//! Finds the primary: at a fixed address, or by asking the Sentinels.
//!
//! This module makes connections, and knows nothing of their use.

use std::{collections::HashMap, future::pending, time::Duration};

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
        let infos = address.sentinels().map(|sentinels| sentinels.infos.clone()).unwrap_or_default();
        let new = |info| Sentinel { info, connection: Mutex::default() };
        Self { address, sentinels: infos.into_iter().map(new).collect() }
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

    /// How to connect to the primary. More than half of the Sentinels decide. If they disagree or do not
    /// answer, the Sentinel that has seen the latest failover decides.
    async fn find(&self) -> Result<ConnectionInfo, ConnectError> {
        let Some(sentinels) = self.address.sentinels() else { return Ok(self.address.node()) };
        let mut answers: FuturesUnordered<_> =
            self.sentinels.iter().map(|sentinel| sentinel.ask(&sentinels.master)).collect();
        let (mut named, mut failed) = (Vec::<Named>::new(), None);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(Some(primary)) => {
                    named.push(primary);
                    let votes = named.iter().filter(|other| Some(*other) == named.last()).count();
                    if 2 * votes > self.sentinels.len() {
                        break;
                    }
                }
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        match (named.into_iter().max_by_key(|primary| primary.epoch), failed) {
            (Some(Named { host, port, .. }), _) => Ok(self.address.node_at(host, port)),
            (None, Some(error)) => Err(ConnectError::NoSentinel(error)),
            (None, None) => Err(ConnectError::UnknownMaster),
        }
    }
}

impl Sentinel {
    /// Asks this Sentinel for the primary. `None` if it knows no primary of that name.
    async fn ask(&self, master: &str) -> Result<Option<Named>, RedisError> {
        let mut kept = self.connection.lock().await;
        // The connection is kept only if the Sentinel has answered.
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        let place: Option<(String, u16)> = question.query_async(&mut connection).await?;
        let named = match place {
            None => None,
            Some((host, port)) => {
                let mut question = redis::cmd("SENTINEL");
                question.arg("MASTER").arg(master);
                let known: HashMap<String, String> = question.query_async(&mut connection).await?;
                let epoch = known.get("config-epoch").and_then(|epoch| epoch.parse().ok());
                Some(Named { host, port, epoch: epoch.unwrap_or_default() })
            }
        };
        *kept = Some(connection);
        Ok(named)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ASK_TIMEOUT))
            .set_response_timeout(Some(ASK_TIMEOUT));
        Client::open(self.info.clone())?.get_multiplexed_async_connection_with_config(&config).await
    }
}

async fn is_primary(connection: &mut MultiplexedConnection) -> Result<bool, RedisError> {
    // Behind the role stand the number of copies and more.
    let role: Vec<redis::Value> = redis::cmd("ROLE").query_async(connection).await?;
    let role = role.into_iter().next().map(redis::from_redis_value::<String>);
    Ok(role.is_some_and(|role| role.is_ok_and(|role| role == "master")))
}
