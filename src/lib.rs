//! Rejoin pushes messages to clients, and a client that lost its connection can rejoin.
//!
//! Every subscriber is a cursor moving over a log: live delivery, replay, a slow client and a change of
//! transport are one act, *read from the cursor*.
//!
//! The parts of the code, in the order in which to read them; each knows only those below it:
//!
//! - [`http`]: the routes, an adapter for each transport, the accept loop
//! - [`broker`]: publish, subscribe, and the [`Subscription`](broker::Subscription) that moves its cursor
//! - [`log`]: the [`Log`] itself, in memory or in Redis
//! - [`auth`]: credentials and grants: pure values, beside the log
//! - [`message`]: topics, ids, messages: pure values

pub mod auth;
pub mod broker;
pub mod config;
pub mod http;
pub mod log;
pub mod message;
mod shutdown;

use std::{path::Path, sync::Arc};

use tokio::{net::TcpListener, time::Instant};

use crate::{
    broker::Broker,
    config::LogKind,
    log::{Log, MemoryLog, RedisLog},
};
pub use crate::{
    config::Config,
    http::{App, Drained, router},
    shutdown::Shutdown,
};

/// Serves on `listener` until `shutdown` asks for the end, and returns how that went.
///
/// # Errors
/// As [`Server::start`] and [`Server::serve`].
///
/// # Cancel safety
/// As [`Server::serve`].
pub async fn serve(
    listener: TcpListener,
    config: Arc<Config>,
    shutdown: Shutdown,
) -> std::io::Result<Drained> {
    Server::start(config, shutdown).await?.serve(listener).await
}

/// A server that is ready and does not serve yet. A caller can [`reconfigure`](App::reconfigure) it.
pub struct Server {
    app: Arc<App>,
    /// The log in memory, if it is to be saved at the end.
    memory: Option<Arc<MemoryLog>>,
    config: Arc<Config>,
    shutdown: Shutdown,
}

impl Server {
    /// # Errors
    /// If settings contradict each other, see [`Config::contradictions`], if the file of [`Config::state`]
    /// cannot be used, or if the store in Redis has a format that this version does not know.
    pub async fn start(config: Arc<Config>, shutdown: Shutdown) -> std::io::Result<Self> {
        let contradictions = config.contradictions();
        if !contradictions.is_empty() {
            let all: Vec<_> = contradictions.iter().map(|contradiction| contradiction.what).collect();
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, all.join("; ")));
        }
        let retention = config.retention();
        let (log, memory): (Arc<dyn Log>, _) = match &config.log {
            LogKind::Memory => {
                let memory = match &config.state {
                    Some(path) => MemoryLog::resume(retention, path.clone())
                        .await
                        .map_err(|error| of_state(&config, &error))?,
                    None => MemoryLog::start(retention),
                };
                (memory.clone(), Some(memory))
            }
            LogKind::Redis(address) => {
                let log = RedisLog::start((**address).clone(), &retention, config.redis_confirm);
                log.check_format().await?;
                (log, None)
            }
        };
        let app = App::new(Broker::new(log), config.clone(), shutdown.clone());
        Ok(Self { app, memory, config, shutdown })
    }

    /// The state that all requests share.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Serves on `listener` until the end, and returns how that went.
    ///
    /// # Errors
    /// If the file of [`Config::state`] cannot be written.
    ///
    /// # Cancel safety
    /// Dropping this closes the listener. Open connections go on until they end by themselves, and the file of
    /// [`Config::state`] is not written: the next start takes that for a crash. Use [`Shutdown`] to end in order.
    pub async fn serve(self, listener: TcpListener) -> std::io::Result<Drained> {
        let router = router(self.app.clone());
        let grace_passes = async {
            self.shutdown.draining().await;
            Instant::now() + self.config.drain_grace
        };
        let (drained, until) = tokio::join!(http::serve(self.app, router, listener), grace_passes);
        if let Some(memory) = self.memory {
            memory.end(until).await.map_err(|error| of_state(&self.config, &error))?;
        }
        Ok(drained)
    }
}

fn of_state(config: &Config, error: &std::io::Error) -> std::io::Error {
    let path = config.state.as_deref().unwrap_or_else(|| Path::new(""));
    std::io::Error::new(error.kind(), format!("--state {}: {error}", path.display()))
}
