//! Certificates by ACME (RFC 8555): this orders one, and the next one in time. A library speaks the protocol.
//!
//! The authority asks for its proof in a handshake of TLS, at the port of everybody. So no other port is needed.

mod order;
mod proof;
mod question;
mod store;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    io,
    time::{Duration, SystemTime},
};

use tokio::time::{sleep, timeout};

pub use self::proof::Proofs;
use self::{
    order::{Authority, Issued},
    store::{Store, Stored},
};
use super::{App, tls::Tls};
use crate::config::{Certificate, Config, LogKind};

/// How often the clock is looked at: it may be set, and the machine may sleep.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long one order may take. Some authorities ask from several places, one after the other.
const ORDER_WITHIN: Duration = Duration::from_secs(300);
/// The pause after an order that failed. It grows, because authorities count orders that fail: Let's Encrypt allows
/// five an hour, and these pauses make four.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const PAUSE_GROWS: u32 = 12;
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// The certificate of one server, and the way to the next one.
pub struct Acme {
    names: BTreeSet<String>,
    authority: Authority,
    store: Store,
    /// The certificate in force, and if it has the names and the authority of the settings.
    current: Option<(Certificate, bool)>,
}

impl Acme {
    /// Opens the folder of `--tls-acme-state`, and shows the certificate that is there. `None` if ACME is not configured.
    ///
    /// # Errors
    /// If the folder cannot be read and written: without it each start would order, until the authority refuses. If another
    /// server goes on with it.
    ///
    /// # Cancel safety
    /// Dropping this leaves the folder to others.
    pub async fn open(config: &Config) -> io::Result<Option<Self>> {
        let Some(folder) = config.tls_acme_state.as_ref().filter(|_| !config.tls_acme.is_empty()) else {
            return Ok(None);
        };
        let (store, stored) = Store::open(folder.clone()).await.map_err(|error| {
            io::Error::new(error.kind(), format!("--tls-acme-state {}: {error}", folder.display()))
        })?;
        let names = config.tls_acme.iter().cloned().collect();
        let directory = config.tls_acme_directory.to_string();
        let current = stored.and_then(|stored| {
            let certificate = Certificate::from_pem(&stored.certificate, &stored.key);
            let fits = stored.names == names && stored.directory == directory;
            certificate.map_err(|error| store.damaged(&error.to_string())).ok().map(|it| (it, fits))
        });
        if matches!(config.log, LogKind::Redis(_)) {
            tracing::warn!(
                "--tls-acme is for one server, and --log redis:// is for several: the authority may reach any replica, \
                 and only the one that has ordered can answer; with more than one, give all of them --tls-cert"
            );
        }
        let account = config.acme_account.as_ref();
        let authority =
            Authority::new(config.tls_acme_directory.clone(), account).map_err(io::Error::other)?;
        Ok(Some(Self { names, authority, store, current }))
    }

    /// Orders certificates for as long as the server runs.
    ///
    /// # Cancel safety
    /// Dropping this ends an order. The next start makes another one.
    pub async fn renew(mut self, app: &App) -> Infallible {
        let tls = app.tls.as_ref().expect("with ACME the server speaks TLS");
        if let Some((certificate, _)) = &self.current {
            show(tls, certificate);
        }
        let mut pause = FIRST_PAUSE;
        loop {
            self.until_due().await;
            let ordered = self.order(tls).await;
            app.metrics.tls.ordered(ordered.is_ok());
            match ordered {
                Ok(certificate) => {
                    show(tls, &certificate);
                    self.current = Some((certificate, true));
                }
                Err(error) => {
                    let retry_in = humantime::format_duration(pause);
                    let in_force = self.current.as_ref().map_or("none".to_owned(), |(it, _)| expiry(it));
                    tracing::warn!(%error, %retry_in, expires = in_force, "no certificate for --tls-acme this time");
                }
            }
            // A new certificate is due at once too, if the clock of this machine is wrong.
            if self.due_in().is_zero() {
                sleep(pause).await;
                pause = (PAUSE_GROWS * pause).min(LONGEST_PAUSE);
            } else {
                pause = FIRST_PAUSE;
            }
        }
    }

    async fn until_due(&self) {
        loop {
            match self.due_in() {
                Duration::ZERO => return,
                left => sleep(left.min(LOOK_EVERY)).await,
            }
        }
    }

    /// How long no other certificate is needed.
    fn due_in(&self) -> Duration {
        match &self.current {
            Some((certificate, true)) => {
                certificate.renew_at().duration_since(SystemTime::now()).unwrap_or_default()
            }
            _ => Duration::ZERO,
        }
    }

    async fn order(&mut self, tls: &Tls) -> Result<Certificate, String> {
        let names: Vec<_> = self.names.iter().cloned().collect();
        tracing::info!(names = names.join(","), directory = %self.authority.directory(), "ordering a certificate for --tls-acme");
        let ordered = timeout(ORDER_WITHIN, self.authority.order(&names, &self.store, tls.proofs())).await;
        tls.proofs().clear();
        let Issued { certificate: chain, key } =
            ordered.unwrap_or_else(|_| Err(format!("not done within {} s", ORDER_WITHIN.as_secs())))?;
        let certificate = Certificate::from_pem(&chain, &key).map_err(|error| error.to_string())?;
        let directory = self.authority.directory().to_string();
        let stored = Stored { directory, names: self.names.clone(), certificate: chain, key };
        if let Err(error) = self.store.put_certificate(&stored).await {
            tracing::error!(%error, "cannot write to --tls-acme-state: the next start has to order a certificate again");
        }
        Ok(certificate)
    }
}

fn show(tls: &Tls, certificate: &Certificate) {
    if tls.replace(certificate) {
        tracing::info!(expires = expiry(certificate), "certificate of --tls-acme in force");
    }
}

fn expiry(certificate: &Certificate) -> String {
    humantime::format_rfc3339_seconds(certificate.expires()).to_string()
}
