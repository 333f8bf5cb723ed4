//! The syntax of values. An error names the expected form and never repeats the value.

use std::{
    fmt,
    num::{IntErrorKind, ParseIntError},
    time::Duration,
};

use rustls::pki_types::DnsName;
use tracing::level_filters::LevelFilter;
use url::Url;

use super::shown::PUT_SECRET;
use crate::auth::{is_blanked, is_secret};

/// Longer than any sensible setting, and far below the point where adding times overflows.
const LONGEST: Duration = Duration::from_secs(10 * 31_557_600);
/// More than any machine has, and far below the point where a product overflows.
const MOST: u64 = 1 << 50;

/// A text that is never shown, also not with the configuration.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl Secret {
    /// Parses a size such as `512KiB`.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "" => Err("expected a secret, not an empty text"),
            stars if is_blanked(stars) => Err(PUT_SECRET),
            key if !is_secret(key) => Err(
                "expected a secret, not a PEM key or a JWK: with it, every owner of the public key could sign; \
                 put the key in a [[jwt]] of the file of --config",
            ),
            secret => Ok(Self(secret.to_owned())),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Parses a duration such as `90s`, of at most 10 years.
///
/// # Errors
/// What was expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("expected a duration, for example 90s, 10m or 2h: {error}"))?;
    if duration.is_zero() {
        return Err("must be more than zero".into());
    }
    if duration > LONGEST {
        return Err("must be at most 10 years".into());
    }
    Ok(duration)
}

pub fn size(text: &str) -> Result<usize, &'static str> {
    let size: bytesize::ByteSize =
        text.parse().map_err(|_| "expected a size, for example 512KiB or 16MiB")?;
    match size.as_u64() {
        0 => Err("must be more than zero"),
        MOST.. => Err("must be less than 1PiB"),
        size => usize::try_from(size).map_err(|_| "must be less than this machine can address"),
    }
}

/// Parses the name of a host in DNS, in ASCII and without a wildcard.
pub fn dns_name(text: &str) -> Result<String, &'static str> {
    match DnsName::try_from(text) {
        Ok(name) if !text.ends_with('.') => Ok(name.as_ref().to_ascii_lowercase()),
        _ => Err("expected the name of a host, for example push.example; other letters as xn--…, and no *"),
    }
}

/// Parses a URL that begins with `https://`.
pub fn https_url(text: &str) -> Result<Url, &'static str> {
    text.parse()
        .ok()
        .filter(|url: &Url| url.scheme() == "https")
        .ok_or("expected a URL that begins with https://")
}

pub fn count(text: &str) -> Result<usize, &'static str> {
    match text.parse::<u64>() {
        Ok(0) => Err("must be at least 1"),
        Ok(count @ 1..MOST) => usize::try_from(count).map_err(|_| "must be less than this machine can count"),
        Ok(_) => Err("must be less than 2^50"),
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => Err("must be less than 2^50"),
        Err(_) => Err("expected a whole number, at least 1"),
    }
}

/// Parses a whole number, which may be 0.
///
/// # Errors
/// What was expected.
pub fn whole_number(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => "must be less than 2^32",
        _ => "expected a whole number that is not negative",
    })
}

pub fn copies(text: &str) -> Result<usize, &'static str> {
    whole_number(text).map(|number| number as usize)
}

pub fn yes_or_no(text: &str) -> Result<bool, &'static str> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("expected true or false"),
    }
}

pub fn level(text: &str) -> Result<LevelFilter, &'static str> {
    let known = ["off", "error", "warn", "info", "debug", "trace"];
    let level = if known.contains(&text) { text.parse().ok() } else { None };
    level.ok_or("expected off, error, warn, info, debug or trace")
}
