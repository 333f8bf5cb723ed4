//! The configuration file: TOML, in which every value knows its line.

use std::fmt::Display;

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

/// The content of a file. Each caller takes out the names that it knows; a name that is left over is a
/// mistake.
pub struct File<'a> {
    path: &'a str,
    text: &'a str,
    table: DeTable<'a>,
}

impl<'a> File<'a> {
    /// Reads as much of the file as can be read, and adds what is wrong with the rest to `mistakes`.
    pub fn parse(path: &'a str, text: &'a str, mistakes: &mut Vec<String>) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        let file = Self { path, text, table: table.into_inner() };
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            mistakes.push(file.mistake(at, error.message()));
        }
        file
    }

    /// A setting as text, as a flag would have it, with its line. The values of a list are joined by commas.
    pub fn take_setting(&mut self, name: &str, mistakes: &mut Vec<String>) -> Option<(String, usize)> {
        let value = self.table.remove(name)?;
        let at = value.span().start;
        match plain(value.get_ref()) {
            Some(text) => Some((text, self.line(at))),
            None => {
                mistakes.push(self.mistake(
                    at,
                    format!(
                        "{name}: expected text, a whole number, true, false or a list, not a {}",
                        value.get_ref().type_str()
                    ),
                ));
                None
            }
        }
    }

    /// The tables `[[name]]`, each with its line. Each one that cannot be read is a mistake of its own.
    pub fn take_tables<T: DeserializeOwned>(
        &mut self,
        name: &str,
        mistakes: &mut Vec<String>,
    ) -> Vec<(T, usize)> {
        let Some(value) = self.table.remove(name) else { return Vec::new() };
        let at = value.span().start;
        let DeValue::Array(rows) = value.into_inner() else {
            mistakes.push(self.mistake(at, format!("{name}: expected tables, each written as [[{name}]]")));
            return Vec::new();
        };
        rows.into_iter().filter_map(|row| self.read(name, row, mistakes)).collect()
    }

    /// The table `[name]`, with its line.
    pub fn take_table<T: DeserializeOwned>(
        &mut self,
        name: &str,
        mistakes: &mut Vec<String>,
    ) -> Option<(T, usize)> {
        let value = self.table.remove(name)?;
        self.read(name, value, mistakes)
    }

    /// A mistake with its place: the file and the line.
    pub fn mistake_in_line(&self, line: usize, what: impl Display) -> String {
        format!("{}:{line}: {what}", self.path)
    }

    /// The names that no caller took, as mistakes.
    pub fn leftovers(&self) -> Vec<String> {
        let unknown = |(name, _): (&Spanned<_>, &_)| {
            let name: &Spanned<std::borrow::Cow<'_, str>> = name;
            self.mistake(name.span().start, format!("unknown setting `{}`", name.get_ref()))
        };
        self.table.iter().map(unknown).collect()
    }

    fn read<T: DeserializeOwned>(
        &self,
        name: &str,
        value: Spanned<DeValue<'a>>,
        mistakes: &mut Vec<String>,
    ) -> Option<(T, usize)> {
        let at = value.span().start;
        match T::deserialize(ValueDeserializer::from(value)) {
            Ok(read) => Some((read, self.line(at))),
            Err(error) => {
                let at = error.span().map_or(at, |span| span.start);
                // The rest quotes the value, which may be a secret.
                let what = match error.message().split_once(", expected ") {
                    Some((quoting, expected)) if quoting.starts_with("invalid ") => {
                        format!("expected {expected}")
                    }
                    _ => error.message().to_owned(),
                };
                mistakes.push(self.mistake(at, format!("{name}: {what}")));
                None
            }
        }
    }

    fn mistake(&self, at: usize, what: impl Display) -> String {
        self.mistake_in_line(self.line(at), what)
    }

    fn line(&self, at: usize) -> usize {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }
}

fn plain(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
        }
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Array(values) => values
            .iter()
            .map(|value| plain(value.get_ref()))
            .collect::<Option<Vec<_>>>()
            .map(|all| all.join(",")),
        _ => None,
    }
}
