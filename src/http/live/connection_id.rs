//! The id of a connection, which leads to the replica that holds it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// 32 hexadecimal digits: the name of the replica, and a number at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u128);

/// The text is no id of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 32 hexadecimal digits")]
pub struct ParseConnectionIdError;

impl ConnectionId {
    pub fn of(replica: u64, number: u64) -> Self {
        Self(u128::from(replica) << 64 | u128::from(number))
    }

    /// The name of the replica that holds the connection.
    pub fn replica(self) -> u64 {
        (self.0 >> 64) as u64
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for ConnectionId {
    type Err = ParseConnectionIdError;

    /// Only the digits as the server writes them, so that one connection has one name.
    fn from_str(text: &str) -> Result<Self, ParseConnectionIdError> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 32 || !text.bytes().all(is_digit) {
            return Err(ParseConnectionIdError);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| ParseConnectionIdError)
    }
}

impl Serialize for ConnectionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ConnectionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_leads_to_its_replica_and_is_written_in_one_way() {
        let id = ConnectionId::of(0xab, 7);
        assert_eq!(id.to_string(), "00000000000000ab0000000000000007");
        assert_eq!((id.to_string().parse(), id.replica()), (Ok(id), 0xab));
        let text = id.to_string();
        for wrong in ["", &text[1..], &text.to_uppercase(), &format!("{text}0"), &format!("+{}", &text[1..])]
        {
            assert_eq!(wrong.parse::<ConnectionId>(), Err(ParseConnectionIdError), "{wrong}");
        }
    }
}
