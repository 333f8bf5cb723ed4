//! Questions and answers, as they are written to the stream of a replica.

use bytes::Bytes;
use tokio::time::Instant;

/// A question, or the answer to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Letter {
    Question(Question),
    Answer {
        number: u64,
        text: Bytes,
    },
    /// The question was not looked at, because too many wait.
    Busy {
        number: u64,
    },
}

/// A question, and the replica that waits for the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub from: u64,
    pub number: u64,
    /// By the clock of the store, in milliseconds. It was not sent earlier.
    pub sent: u64,
    pub text: Bytes,
}

/// A letter, and the replica that it goes to. After `until` it is not sent.
pub struct Outgoing {
    pub to: u64,
    pub letter: Letter,
    pub until: Instant,
}

/// The name of a replica in Redis.
pub fn name(name: u64) -> String {
    format!("{name:016x}")
}

impl Letter {
    /// The name of the field, and its value.
    pub fn written(&self) -> (&'static str, Vec<u8>) {
        match self {
            Self::Question(Question { from, number, sent, text }) => {
                ("q", [format!("{} {number} {sent} ", name(*from)).as_bytes(), text].concat())
            }
            Self::Answer { number, text } => ("a", [format!("{number} ").as_bytes(), text].concat()),
            Self::Busy { number } => ("b", number.to_string().into_bytes()),
        }
    }

    /// The letters of an entry. Fields that are not ours are passed over.
    pub fn all(fields: Vec<Vec<u8>>) -> impl Iterator<Item = Self> {
        let mut fields = fields.into_iter();
        std::iter::from_fn(move || Some((fields.next()?, fields.next()?)))
            .filter_map(|(field, value)| Self::read(&field, Bytes::from(value)))
    }

    fn read(field: &[u8], mut value: Bytes) -> Option<Self> {
        let mut word = || {
            let end = memchr::memchr(b' ', &value).unwrap_or(value.len());
            let word = value.split_to(end);
            // The space behind it.
            let _ = value.split_to(value.len().min(1));
            String::from_utf8(word.to_vec()).ok()
        };
        match field {
            b"q" => {
                let from = u64::from_str_radix(&word()?, 16).ok()?;
                let (number, sent) = (word()?.parse().ok()?, word()?.parse().ok()?);
                Some(Self::Question(Question { from, number, sent, text: value }))
            }
            b"a" => Some(Self::Answer { number: word()?.parse().ok()?, text: value }),
            b"b" => Some(Self::Busy { number: word()?.parse().ok()? }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_read_as_they_were_written_and_others_are_passed_over() {
        let text = Bytes::from_static(b"{\"a b\": 1}");
        let letters = [
            Letter::Question(Question { from: 7, number: 8, sent: 9, text: text.clone() }),
            Letter::Answer { number: 8, text },
            Letter::Answer { number: 0, text: Bytes::new() },
            Letter::Busy { number: 3 },
        ];
        let mut fields = Vec::new();
        for letter in &letters {
            let (field, value) = letter.written();
            fields.extend([field.into(), value]);
            fields.extend([b"x".to_vec(), b"foreign".to_vec(), b"q".to_vec(), b"zz 1".to_vec()]);
        }
        fields.push(b"a".to_vec());
        assert_eq!(Letter::all(fields).collect::<Vec<_>>(), letters);
    }
}
