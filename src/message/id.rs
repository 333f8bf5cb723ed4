//! Ids, which are also cursors: one number that says how far a reader has come.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The id of a message, and a cursor: "everything up to here".
///
/// It counts microseconds since the Unix epoch, and is unique and strictly growing over all topics of a
/// deployment. It is always below 2^53, so that JavaScript can hold it as a number. In JSON it is a string
/// all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(u64);

/// The text is no id: not all digits, or above 2^53 - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor")]
pub struct ParseIdError;

impl Id {
    /// Before everything. As a cursor it asks for everything that is retained; the server never gives it out.
    pub const ZERO: Self = Self(0);
    /// After every possible id: a cursor that no store has reached.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// The id of this number: microseconds since the Unix epoch.
    pub const fn new(micros: u64) -> Self {
        Self(micros)
    }

    /// The number: microseconds since the Unix epoch.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The id that the clock would give now.
    pub fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(since_epoch.as_micros() as u64)
    }

    /// The id for a message that comes after `self`, where it is `now`.
    pub fn next(self, now: Self) -> Self {
        now.max(Self(self.0 + 1))
    }

    /// The point `age` later.
    pub fn plus(self, age: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(age.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The cursor of a reader that has everything before this message.
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The point `age` earlier.
    pub fn minus(self, age: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(age.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Id {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ParseIdError);
        }
        text.parse().ok().map(Self).filter(|id| *id <= Self::MAX).ok_or(ParseIdError)
    }
}

impl serde::Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // A number makes its own text faster than a formatter does.
        serializer.serialize_str(&self.0.to_string())
    }
}

impl<'de> serde::Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_never_goes_back_when_the_clock_does() {
        let (early, late) = (Id::new(1_000), Id::new(2_000));
        assert_eq!([late.next(early), early.next(late)], [Id::new(2_001), late]);
    }

    #[test]
    fn only_digits_below_two_to_the_53_are_a_cursor() {
        assert_eq!("0".parse(), Ok(Id::ZERO));
        assert_eq!("9007199254740991".parse(), Ok(Id::MAX));
        for wrong in ["", "-1", "+1", "1.0", " 1", "9007199254740992", "99999999999999999999", "x"] {
            assert_eq!(wrong.parse::<Id>(), Err(ParseIdError), "{wrong:?}");
        }
    }
}
