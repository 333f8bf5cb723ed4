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
//! - [`client`]: a client of a server, which knows none of them

pub mod auth;
pub mod broker;
#[cfg(feature = "client")]
pub mod client;
pub mod config;
pub mod http;
pub mod log;
pub mod message;
mod shutdown;
#[cfg(test)]
mod warnings;

use std::{
    io::{self, ErrorKind},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    broker::Broker,
    config::LogKind,
    log::{Log, MemoryLog, RedisLog},
};
pub use crate::{
    config::Config,
    http::{App, Drained, Listeners, router},
    shutdown::Shutdown,
};

/// Serves on a `TcpListener`, or on several [`Listeners`], until `shutdown` asks for the end, and returns how that went.
///
/// # Errors
/// As [`Server::start`] and [`Server::serve`].
///
/// # Cancel safety
/// As [`Server::serve`].
pub async fn serve(
    listeners: impl Into<Listeners>,
    config: Arc<Config>,
    shutdown: Shutdown,
) -> io::Result<Drained> {
    let listeners = listeners.into();
    Server::start(config, shutdown).await?.serve(listeners).await
}

/// How long the log has at least to write its state file, however much of the grace the connections have used: ten
/// seconds, in which a disk that stalls may come back, and a second for each 32 MiB, which a slow disk writes in it.
pub fn save_within(retained_bytes: usize) -> Duration {
    Duration::from_secs(10 + retained_bytes as u64 / (32 << 20))
}

/// A server that is ready and does not serve yet. A caller can [`reconfigure`](App::reconfigure) it.
pub struct Server {
    app: Arc<App>,
    /// The log in memory, if it is to be saved at the end.
    memory: Option<Arc<MemoryLog>>,
    #[cfg(feature = "acme")]
    acme: Option<http::Acme>,
    config: Arc<Config>,
    shutdown: Shutdown,
}

impl Server {
    /// # Errors
    /// If settings contradict each other, see [`Config::contradictions`], if the file of [`Config::state`]
    /// cannot be used, or if the store in Redis has a format that this version does not know.
    /// [`ErrorKind::Interrupted`] if `shutdown` asks for the end before the server is ready.
    ///
    /// # Cancel safety
    /// As [`MemoryLog::resume`].
    pub async fn start(config: Arc<Config>, shutdown: Shutdown) -> io::Result<Self> {
        let contradictions = config.contradictions();
        if !contradictions.is_empty() {
            let all: Vec<_> = contradictions.iter().map(|contradiction| contradiction.what).collect();
            return Err(io::Error::new(ErrorKind::InvalidInput, all.join("; ")));
        }
        // Before the log, which takes over the state file.
        #[cfg(feature = "acme")]
        let acme = tokio::select! {
            biased;
            acme = http::Acme::open(&config) => acme?,
            () = shutdown.draining() => return Err(ErrorKind::Interrupted.into()),
        };
        let (log, memory) = tokio::select! {
            // A log that has taken over the state file must give it back, so it serves and then drains.
            biased;
            log = log_of(&config) => log?,
            () = shutdown.draining() => return Err(ErrorKind::Interrupted.into()),
        };
        let app = App::new(Broker::new(log), config.clone(), shutdown.clone());
        Ok(Self {
            app,
            memory,
            #[cfg(feature = "acme")]
            acme,
            config,
            shutdown,
        })
    }

    /// The state that all requests share.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Serves on a `TcpListener`, or on several [`Listeners`], until the end, and returns how that went.
    ///
    /// # Errors
    /// If the file of [`Config::state`] cannot be written before the grace expires, or, if that is later, within
    /// [`save_within`] of the retained bytes.
    ///
    /// # Cancel safety
    /// Dropping this closes the listeners. Open connections go on until they end by themselves, and the file of
    /// [`Config::state`] is not written: the next start takes that for a crash. Use [`Shutdown`] to end in order.
    pub async fn serve(self, listeners: impl Into<Listeners>) -> io::Result<Drained> {
        // So that the first clients need not wait for the keys of their issuers.
        self.app.begin_fetching();
        let grace_passes = async {
            self.shutdown.draining().await;
            Instant::now() + self.config.drain_grace
        };
        let serving = async { tokio::join!(http::serve(self.app.clone(), listeners), grace_passes) };
        #[cfg(feature = "acme")]
        let serving = renewing(self.acme, &self.app, &self.shutdown, serving);
        let (drained, end) = serving.await;
        if let Some(memory) = self.memory {
            let retained = memory.stats().await.map_or(0, |stats| stats.bytes);
            let end = end.max(Instant::now() + save_within(retained));
            memory.end(end).await.map_err(|error| of_state(&self.config, &error))?;
        }
        Ok(drained)
    }
}

/// Serves, and orders certificates until the drain begins.
#[cfg(feature = "acme")]
async fn renewing<T>(
    acme: Option<http::Acme>,
    app: &App,
    shutdown: &Shutdown,
    serving: impl Future<Output = T>,
) -> T {
    let Some(acme) = acme else { return serving.await };
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        // The certificate of the last start is shown before the first connection is accepted.
        biased;
        never = acme.renew(app) => match never {},
        served = &mut serving => return served,
        // The server that comes next waits for the folder.
        () = shutdown.draining() => {}
    }
    serving.await
}

/// The log that is configured, and the same log again if it is to be saved at the end.
async fn log_of(config: &Config) -> io::Result<(Arc<dyn Log>, Option<Arc<MemoryLog>>)> {
    let retention = config.retention();
    match (&config.log, &config.state) {
        (LogKind::Memory, Some(path)) => {
            let memory = MemoryLog::resume(retention, path.clone()).await;
            let memory = memory.map_err(|error| of_state(config, &error))?;
            Ok((memory.clone(), Some(memory)))
        }
        (LogKind::Memory, None) => Ok((MemoryLog::start(retention), None)),
        (LogKind::Redis(address), _) => {
            let log = RedisLog::start((**address).clone(), &retention, config.redis_confirm);
            log.check_format().await?;
            Ok((log, None))
        }
    }
}

fn of_state(config: &Config, error: &io::Error) -> io::Error {
    let path = config.state.as_deref().unwrap_or_else(|| Path::new(""));
    io::Error::new(error.kind(), format!("--state {}: {error}", path.display()))
}
