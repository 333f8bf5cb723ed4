//! The certificate of the server and its key, from PEM.

use std::{sync::Arc, time::SystemTime};

use rustls::{
    Error, InconsistentKeys,
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};
use time::{Date, Duration as Span, OffsetDateTime, Time};

/// A warning is logged if a certificate ends sooner than this, or than this part of its life if that is shorter:
/// one that lives for six days is renewed two days before its end.
const ENDS_SOON: Span = Span::days(14);
const LAST_PART: i32 = 4;

/// A certificate with its chain, and the private key that fits it.
#[derive(Clone, Debug)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    begins: OffsetDateTime,
    expires: OffsetDateTime,
}

/// Why two texts are no certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("expected certificates in PEM (-----BEGIN CERTIFICATE-----), the server's own first")]
    NoCertificate,
    #[error("the first certificate cannot be read")]
    Unreadable,
    #[error("expected a private key in PEM, without a password (-----BEGIN PRIVATE KEY-----)")]
    NoKey,
    #[error("a key of this kind cannot sign: use RSA, ECDSA or Ed25519")]
    UnknownKey,
    #[error("the key does not fit the first certificate of --tls-cert")]
    OtherKey,
}

impl CertificateError {
    /// True if the mistake is in the text of the key.
    pub fn is_of_key(&self) -> bool {
        matches!(self, Self::NoKey | Self::UnknownKey | Self::OtherKey)
    }
}

impl Certificate {
    /// Reads a chain, which begins with the server's own certificate, and its private key.
    ///
    /// # Errors
    /// If one of them is no PEM, or if the key does not fit the certificate.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, CertificateError> {
        let chain: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
        let chain = chain.map_err(|_| CertificateError::NoCertificate)?;
        let own = chain.first().ok_or(CertificateError::NoCertificate)?;
        let (begins, expires) = validity(own).ok_or(CertificateError::Unreadable)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| CertificateError::NoKey)?;
        let key =
            CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(
                |error| match error {
                    Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => CertificateError::OtherKey,
                    Error::InvalidCertificate(_) => CertificateError::Unreadable,
                    _ => CertificateError::UnknownKey,
                },
            )?;
        Ok(Self { key: Arc::new(key), begins, expires })
    }

    /// That of the tests, with another end.
    #[cfg(test)]
    pub(crate) fn that_ends_at(end: SystemTime) -> Self {
        let own = Self::from_pem(tests::CHAIN, tests::KEY).expect("a pair");
        Self { expires: end.into(), ..own }
    }

    /// The certificate and its key, for the library that speaks TLS.
    pub(crate) fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// The time after which clients accept it no more.
    pub fn expires(&self) -> SystemTime {
        self.expires.into()
    }

    /// The time to renew it: a third of its life is left.
    pub fn renew_at(&self) -> SystemTime {
        let lifetime = self.expires - self.begins;
        (self.expires - lifetime / 3_i32).into()
    }

    /// Logs when it ends, as a warning if that is soon.
    pub(crate) fn log(&self) {
        if !self.warn_if_it_ends_soon() {
            let expires = humantime::format_rfc3339_seconds(self.expires());
            tracing::info!(%expires, "certificate of --tls-cert in force");
        }
    }

    /// True if it has logged a warning.
    pub(crate) fn warn_if_it_ends_soon(&self) -> bool {
        let expires = humantime::format_rfc3339_seconds(self.expires());
        let left = self.expires - OffsetDateTime::now_utc();
        let ends_soon = self.ends_soon(left);
        if left.is_negative() {
            tracing::warn!(%expires, "the certificate of --tls-cert has expired: clients refuse it; renew it");
        } else if ends_soon {
            tracing::warn!(%expires, days = left.whole_days(), "the certificate of --tls-cert ends soon; renew it");
        }
        ends_soon
    }

    /// True if it should have been renewed before so little is left.
    fn ends_soon(&self, left: Span) -> bool {
        left < ENDS_SOON.min((self.expires - self.begins) / LAST_PART) || left.is_negative()
    }
}

/// The beginning and the end of the validity in a certificate (RFC 5280 §4.1). The library that speaks TLS does not tell it, and one that
/// reads all of a certificate would be ten times this.
fn validity(certificate: &[u8]) -> Option<(OffsetDateTime, OffsetDateTime)> {
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    let (SEQUENCE, certificate, _) = element(certificate)? else { return None };
    let (SEQUENCE, mut signed, _) = element(certificate)? else { return None };
    if let (VERSION, _, rest) = element(signed)? {
        signed = rest;
    }
    // Its number, the algorithm of its signature, and its issuer.
    for _ in 0..3 {
        (_, _, signed) = element(signed)?;
    }
    let (SEQUENCE, validity, _) = element(signed)? else { return None };
    let (kind, text, validity) = element(validity)?;
    let begins = moment(kind, text)?;
    let (kind, text, _) = element(validity)?;
    Some((begins, moment(kind, text)?))
}

/// The kind of the first element of DER (X.690), its content, and the bytes after it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[kind, length], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match length {
        ..=0x7f => (usize::from(length), rest),
        0x81 | 0x82 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (digits.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((kind, content, rest))
}

/// A time as `YYMMDDHHMMSSZ` or with four digits of the year. The log could not write one before 1970.
fn moment(kind: u8, text: &[u8]) -> Option<OffsetDateTime> {
    const TWO_DIGITS: u8 = 0x17;
    let text = str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let text = match kind {
        TWO_DIGITS if text < "50" => format!("20{text}"),
        TWO_DIGITS => format!("19{text}"),
        _ => text.to_owned(),
    };
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u8>().ok();
    let year = text.get(..4)?.parse().ok()?;
    let date = Date::from_calendar_date(year, number(4, 6)?.try_into().ok()?, number(6, 8)?).ok()?;
    let time = Time::from_hms(number(8, 10)?, number(10, 12)?, number(12, 14)?).ok()?;
    Some(date.with_time(time).assume_utc()).filter(|moment| *moment >= OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate of `localhost`, made by openssl, its key, and another key.
    pub const CHAIN: &str = include_str!("../../tests/support/tls/certificate.pem");
    pub const KEY: &str = include_str!("../../tests/support/tls/key.pem");
    const OTHER_KEY: &str = include_str!("../../tests/support/tls/other-key.pem");

    #[test]
    fn a_pair_is_read_and_each_mistake_has_its_words() {
        let good = Certificate::from_pem(CHAIN, KEY).expect("a pair");
        assert_eq!(humantime::format_rfc3339_seconds(good.expires()).to_string(), "2059-10-05T09:33:16Z");
        let renewed = humantime::format_rfc3339_seconds(good.renew_at()).to_string();
        assert!(renewed.starts_with("2046-"), "two thirds of the time since 2020: {renewed}");
        let wrong = |chain: &str, key: &str| Certificate::from_pem(chain, key).expect_err("a mistake");
        assert_eq!(wrong("", KEY), CertificateError::NoCertificate);
        assert_eq!(wrong(KEY, CHAIN), CertificateError::NoCertificate);
        assert_eq!(wrong(&CHAIN.replacen("MII", "MIJ", 1), KEY), CertificateError::Unreadable);
        assert_eq!(wrong(CHAIN, ""), CertificateError::NoKey);
        assert_eq!(wrong(CHAIN, CHAIN), CertificateError::NoKey);
        assert_eq!(wrong(CHAIN, OTHER_KEY), CertificateError::OtherKey);
        assert!(CertificateError::OtherKey.is_of_key() && !CertificateError::Unreadable.is_of_key());
    }

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_forms_and_nothing_else_is() {
        let read = |kind, text: &[u8]| moment(kind, text).map(|time| time.unix_timestamp());
        assert_eq!(read(0x17, b"700101000000Z"), Some(0));
        assert_eq!(read(0x17, b"491231235959Z"), Some(2_524_607_999));
        assert_eq!(read(0x18, b"20500101000000Z"), Some(2_524_608_000));
        for wrong in [&b"20500101000000"[..], b"2050010100000Z", b"20501301000000Z", b"Z", b"", b"\xff"] {
            assert_eq!(read(0x18, wrong), None, "{wrong:?}");
        }
        // The log cannot write such a time, and ended the server.
        assert_eq!((read(0x17, b"691231235959Z"), read(0x18, b"00010101000000Z")), (None, None));
    }

    /// The server warned each day of a certificate that lives for six days.
    #[test]
    fn a_certificate_ends_soon_once_it_should_have_been_renewed() {
        let living = |life: Span| {
            let own = Certificate::from_pem(CHAIN, KEY).expect("a pair");
            Certificate { expires: own.begins + life, ..own }
        };
        for (life, soon, not_soon) in [
            (Span::days(90), Span::days(13), Span::days(15)),
            (Span::days(6), Span::hours(35), Span::hours(37)),
            (Span::days(-1), Span::hours(-1), Span::hours(1)),
        ] {
            assert!(living(life).ends_soon(soon) && !living(life).ends_soon(not_soon), "{life}");
        }
    }

    /// The file comes from the operator, but a damaged one must not end the server.
    #[test]
    fn every_beginning_of_a_certificate_is_read_without_harm() {
        let own = CertificateDer::from_pem_slice(CHAIN.as_bytes()).expect("a certificate");
        assert!(validity(&own).is_some());
        for end in 0..own.len() {
            assert_eq!(validity(&own[..end]), None, "{end}");
        }
    }
}
