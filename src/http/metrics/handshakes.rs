//! Handshakes of TLS, the certificate that they show, and the orders of the next one.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{IntCounter, IntGauge, Registry};

use super::{counters, gauge};

/// The result of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    Done,
    /// It was the proof that an authority has asked for (RFC 8737).
    Proof,
    /// The server has no certificate yet.
    NoCertificate,
    /// The client spoke HTTP without TLS.
    Plain,
    /// The client has left.
    Ended,
    /// It did not end within the time for a request, or the server ended first.
    Unfinished,
    /// The client refused to go on: most often it does not trust the certificate.
    Rejected,
    /// Both have no version, cipher or protocol in common.
    Incompatible,
    /// It is no TLS, or wrong.
    Malformed,
}

impl Handshake {
    const ALL: [Self; 9] = [
        Self::Done,
        Self::Proof,
        Self::NoCertificate,
        Self::Plain,
        Self::Ended,
        Self::Unfinished,
        Self::Rejected,
        Self::Incompatible,
        Self::Malformed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Proof => "proof",
            Self::NoCertificate => "no_certificate",
            Self::Plain => "plain",
            Self::Ended => "ended",
            Self::Unfinished => "unfinished",
            Self::Rejected => "rejected",
            Self::Incompatible => "incompatible",
            Self::Malformed => "malformed",
        }
    }
}

/// The metrics of TLS.
#[derive(Clone, Debug)]
pub struct TlsMetrics {
    /// In the order of [`Handshake::ALL`].
    handshakes: [IntCounter; Handshake::ALL.len()],
    expires: IntGauge,
    /// The orders by ACME that were done, and those that failed.
    #[cfg_attr(
        not(feature = "acme"),
        expect(dead_code, reason = "nothing orders, and the series are there")
    )]
    orders: [IntCounter; 2],
}

impl TlsMetrics {
    pub fn new(registry: &Registry) -> Self {
        let handshakes = counters(
            registry,
            "rejoin_tls_handshakes_total",
            "Handshakes of TLS, by their result.",
            "result",
        );
        let orders = counters(
            registry,
            "rejoin_acme_orders_total",
            "Orders of a certificate by ACME that have ended, by their result.",
            "result",
        );
        Self {
            orders: ["done", "failed"].map(|result| orders.with_label_values(&[result])),
            handshakes: Handshake::ALL.map(|result| handshakes.with_label_values(&[result.as_str()])),
            expires: gauge(
                registry,
                "rejoin_tls_certificate_expires_seconds",
                "When the certificate expires, in seconds since 1970; 0 without one.",
            ),
        }
    }

    pub fn made(&self, result: Handshake) {
        self.handshakes[result as usize].inc();
    }

    /// Counts an order that has ended.
    #[cfg(feature = "acme")]
    pub fn ordered(&self, is_done: bool) {
        let [done, failed] = &self.orders;
        if is_done { done } else { failed }.inc();
    }

    pub fn set_expiry(&self, expires: SystemTime) {
        let seconds = expires.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.expires.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }
}
