//! Cuts a body that arrives in pieces into the JSON values that it lists, before it has ended.

/// The byte order mark, with which some programs begin a file.
const MARK: &[u8] = "\u{feff}".as_bytes();

/// The kind of list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// One value on each line.
    Ndjson,
    /// A JSON array.
    Array,
}

/// One value of the list. Its reader checks that it is JSON.
#[derive(Debug, PartialEq, Eq)]
pub enum Value {
    Bytes(Vec<u8>),
    /// The value is longer than the limit, and was skipped.
    TooLong,
}

/// The list itself is broken, so the values after this cannot be separated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not a JSON array; send [ and ] around the messages, or application/x-ndjson")]
pub struct NotAnArray;

/// Splits one body. It holds no more than one value.
#[derive(Debug)]
pub struct Splitter {
    list: List,
    limit: usize,
    /// How many bytes of a byte order mark the body began with.
    mark: usize,
    value: Vec<u8>,
    too_long: bool,
    at: At,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Begin,
    /// After `[`: a value or the end.
    First,
    Value,
    End,
}

impl Splitter {
    pub fn new(list: List, limit: usize) -> Self {
        let at = if list == List::Array { At::Begin } else { At::Value };
        let value = Vec::new();
        Self { list, limit, mark: 0, value, too_long: false, at, depth: 0, in_string: false, escaped: false }
    }

    /// The length of the longest value.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many bytes of a value wait for the rest of it.
    pub fn kept(&self) -> usize {
        self.value.len()
    }

    /// Returns the values that `bytes` complete.
    ///
    /// # Errors
    /// [`NotAnArray`] if the body is not the expected array.
    pub fn push(&mut self, bytes: &[u8], values: &mut Vec<Value>) -> Result<(), NotAnArray> {
        match self.list {
            List::Ndjson => {
                let mut rest = bytes;
                while let Some(end) = memchr::memchr(b'\n', rest) {
                    self.keep(&rest[..end]);
                    self.complete(values);
                    rest = &rest[end + 1..];
                }
                self.keep(rest);
                Ok(())
            }
            List::Array => bytes.iter().try_for_each(|byte| self.push_byte(*byte, values)),
        }
    }

    /// Returns the last value, which needs no separator after it.
    ///
    /// # Errors
    /// [`NotAnArray`] if the array was not closed.
    pub fn finish(&mut self, values: &mut Vec<Value>) -> Result<(), NotAnArray> {
        match self.list {
            List::Ndjson => self.complete(values),
            List::Array if self.at == At::End => {}
            List::Array => return Err(NotAnArray),
        }
        Ok(())
    }

    fn push_byte(&mut self, byte: u8, values: &mut Vec<Value>) -> Result<(), NotAnArray> {
        let is_space = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        match (self.at, byte) {
            // A byte order mark before JSON is ignored (RFC 8259 §8.1).
            (At::Begin, _) if MARK.get(self.mark) == Some(&byte) => self.mark += 1,
            (At::Begin, _) if self.mark > 0 && self.mark < MARK.len() => return Err(NotAnArray),
            (At::Value, _) if self.in_string => {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                self.keep(&[byte]);
            }
            (_, _) if is_space && (self.at != At::Value || self.value.is_empty()) => self.mark = MARK.len(),
            (At::Begin, b'[') => self.at = At::First,
            (At::First, b']') => self.at = At::End,
            (At::Begin | At::End, _) | (At::First, b',') => return Err(NotAnArray),
            (At::Value, b',' | b']') if self.depth == 0 => {
                if self.value.is_empty() && !self.too_long {
                    return Err(NotAnArray);
                }
                self.complete(values);
                self.at = if byte == b']' { At::End } else { At::Value };
            }
            (At::First | At::Value, _) => {
                self.at = At::Value;
                match byte {
                    b'"' => self.in_string = true,
                    b'[' | b'{' => self.depth += 1,
                    b']' | b'}' => self.depth = self.depth.checked_sub(1).ok_or(NotAnArray)?,
                    _ => {}
                }
                self.keep(&[byte]);
            }
        }
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.value.len() + bytes.len() > self.limit {
            self.too_long = true;
        }
        if !self.too_long {
            self.value.extend_from_slice(bytes);
        }
    }

    fn complete(&mut self, values: &mut Vec<Value>) {
        let mut value = std::mem::take(&mut self.value);
        if self.list == List::Ndjson
            && std::mem::replace(&mut self.mark, MARK.len()) == 0
            && value.starts_with(MARK)
        {
            value.drain(..MARK.len());
        }
        if std::mem::take(&mut self.too_long) {
            values.push(Value::TooLong);
        } else if !value.trim_ascii().is_empty() {
            values.push(Value::Bytes(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(list: List, body: &str, piece: usize) -> (Vec<String>, Result<(), NotAnArray>) {
        let mut splitter = Splitter::new(list, 20);
        let mut values = Vec::new();
        let result = body
            .as_bytes()
            .chunks(piece)
            .try_for_each(|bytes| splitter.push(bytes, &mut values))
            .and_then(|()| splitter.finish(&mut values));
        let text = |value| match value {
            Value::Bytes(bytes) => String::from_utf8(bytes).expect("UTF-8").trim().to_owned(),
            Value::TooLong => "too long".to_owned(),
        };
        (values.into_iter().map(text).collect(), result)
    }

    #[test]
    fn the_values_do_not_depend_on_how_the_body_was_cut() {
        let array = r#" [ {"a":[1,"],"]} , "\"]," , 3,"aaaaaaaaaaaaaaaaaaaaaaaa", {}] "#;
        let lines = "{\"a\":1}\n\n\r\nx\naaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n{}";
        for piece in 1..array.len() {
            let (values, result) = split(List::Array, array, piece);
            assert_eq!(values, [r#"{"a":[1,"],"]}"#, r#""\"],""#, "3", "too long", "{}"]);
            assert_eq!(result, Ok(()));
            let (values, result) = split(List::Ndjson, lines, piece);
            assert_eq!(values, ["{\"a\":1}", "x", "too long", "{}"]);
            assert_eq!(result, Ok(()));
        }
    }

    #[test]
    fn a_byte_order_mark_at_the_beginning_is_ignored() {
        for piece in 1..9 {
            assert_eq!(split(List::Array, "\u{feff} [1,2]", piece), (vec!["1".into(), "2".into()], Ok(())));
            let (values, _) = split(List::Ndjson, "\u{feff}1\n\u{feff}2", piece);
            assert_eq!(values, ["1", "\u{feff}2"], "only at the beginning");
        }
        for wrong in ["\u{feff}", "\u{feff}\u{feff}[1]", " \u{feff}[1]"] {
            assert_eq!(split(List::Array, wrong, 9).1, Err(NotAnArray), "{wrong:?}");
        }
        let mut splitter = Splitter::new(List::Array, 20);
        assert_eq!(splitter.push(b"\xef[1]", &mut Vec::new()), Err(NotAnArray), "only a part of the mark");
    }

    #[test]
    fn a_broken_array_is_noticed_where_it_breaks() {
        assert_eq!(split(List::Array, "[]", 9), (vec![], Ok(())));
        for (body, complete) in
            [("", 0), ("{}", 0), ("[1", 0), ("[1,", 1), ("[1,]", 1), ("[1]2", 1), ("[,1]", 0), ("[}", 0)]
        {
            let (values, result) = split(List::Array, body, 9);
            assert_eq!((values.len(), result), (complete, Err(NotAnArray)), "{body}");
        }
    }
}
