//! The rules in force: keys, grants, origins and hosts. They may change while the server runs.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::{App, hook::Hook, identify::Context, issuers::Issuers};
use crate::{
    auth::Authority,
    config::{Certificate, Config, Host, Origin},
};

/// The configured keys, grants, origins and hosts. They may change while the server runs.
pub struct Rules {
    pub authority: Authority,
    pub issuers: Issuers,
    pub hook: Option<Arc<Hook>>,
    pub origins: Vec<Origin>,
    pub hosts: Vec<Host>,
    /// Cancelled once other rules are in force.
    pub replaced: CancellationToken,
}

impl Rules {
    /// The rules of this configuration. Keys and answers that were learned under the rules `before` are kept, if they still count.
    fn of(config: &Config, before: Option<&Self>) -> Self {
        let mut authority = config.authority();
        let none = Issuers::default();
        let issuers = Issuers::of(&mut authority, before.map_or(&none, |before| &before.issuers));
        let hook = authority.hook.clone().map(|settings| {
            let known = before.and_then(|before| before.hook.as_ref());
            let known = known.filter(|hook| *hook.settings == *settings);
            known.cloned().unwrap_or_else(|| Arc::new(Hook::new(settings)))
        });
        Self {
            authority,
            issuers,
            hook,
            origins: config.allowed_origins.clone(),
            hosts: config.allowed_hosts.clone(),
            replaced: CancellationToken::new(),
        }
    }
}

/// The rules that are in force.
pub struct InForce {
    rules: ArcSwap<Rules>,
    context: Arc<Context>,
}

impl InForce {
    pub fn new(config: &Config, context: Context) -> Self {
        Self { rules: ArcSwap::from_pointee(Rules::of(config, None)), context: Arc::new(context) }
    }

    pub fn load(&self) -> arc_swap::Guard<Arc<Rules>> {
        self.rules.load()
    }

    pub fn load_full(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Begins to fetch the keys of all issuers that are not known yet.
    pub fn begin_fetching(&self) {
        self.load().issuers.begin(&self.context);
    }

    /// Puts other rules in force. Every connection then checks if it may stay.
    fn replace(&self, config: &Config) {
        let rules = Rules::of(config, Some(&self.load()));
        self.rules.swap(Arc::new(rules)).replaced.cancel();
    }
}

impl App {
    /// Takes over keys, grants, origins, the certificate and retention by pattern of `config` while connections are open. Connections that are still
    /// allowed notice nothing; the others end.
    ///
    /// # Errors
    /// If a server that requires credentials would no longer require any: then nothing changes. A file that
    /// is just being written looks like that.
    pub fn reconfigure(&self, config: &Config) -> Result<(), Reopened> {
        if config.authority().is_open() && !self.rules.load().authority.is_open() {
            return Err(Reopened);
        }
        self.rules.replace(config);
        match (&self.tls, &config.certificate) {
            (Some(tls), Some(certificate)) if self.has_certificate_of_files() => tls.show(certificate),
            (None, None) => {}
            // Its certificate comes by ACME.
            (Some(_), None) if !self.has_certificate_of_files() => {}
            _ => tracing::warn!("--tls-cert was added or removed; restart the server to apply it"),
        }
        self.broker.retain_by(config.retention().rules);
        Ok(())
    }

    /// Shows this certificate to the connections that come from now on, if the server began with one of files.
    pub fn show_certificate(&self, certificate: &Certificate) {
        if let Some(tls) = self.tls.as_ref().filter(|_| self.has_certificate_of_files()) {
            tls.show(certificate);
        }
    }

    /// False also if the certificate comes by ACME.
    fn has_certificate_of_files(&self) -> bool {
        self.config.certificate.is_some()
    }

    /// Says for the metrics if the last read of the files had a mistake, so that a part of the settings is older than they.
    pub fn rejects_files(&self, is_rejected: bool) {
        self.metrics.config_rejected.set(is_rejected.into());
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no credentials are configured any more, which would open this server; restart it if that is intended"
)]
/// The new rules would open a server that requires credentials.
pub struct Reopened;
