//! `[[retain]]` in the configuration file: limits of retention for the topics of a pattern.

use serde::Deserialize;

use super::{
    File,
    values::{count, duration, size},
};
use crate::log::{MAX_RULES, PRESENCE, Rule};

/// A table, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    topics: String,
    messages: Option<Scalar>,
    age: Option<Scalar>,
    bytes: Option<Scalar>,
}

/// A number, or text as a flag has it.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number, or text such as \"2h\" or \"16MiB\"")]
enum Scalar {
    Number(i64),
    Text(String),
}

/// Takes `[[retain]]` out of the file.
pub fn rules(file: &mut File<'_>, mistakes: &mut Vec<String>) -> Vec<Rule> {
    let tables = file.take_tables::<Written>("retain", mistakes);
    if let Some((_, line)) = tables.get(MAX_RULES) {
        mistakes.push(file.mistake_in_line(*line, format!("retain: at most {MAX_RULES} entries")));
    }
    let mut rules = Vec::new();
    for (written, line) in tables {
        match written.rule() {
            Ok(rule) => rules.push(rule),
            Err(wrong) => mistakes
                .extend(wrong.into_iter().map(|what| file.mistake_in_line(line, format!("retain: {what}")))),
        }
    }
    rules
}

impl Written {
    fn rule(&self) -> Result<Rule, Vec<String>> {
        let mut wrong = Vec::new();
        let topics = self.topics.parse();
        let topics = topics.map_err(|error| wrong.push(format!("topics {:?}: {error}", self.topics))).ok();
        if let Some(of) = self.topics.strip_prefix(PRESENCE) {
            wrong.push(format!("topics {:?}: `{PRESENCE}T` is retained as `T` is; name `{of}`", self.topics));
        }
        let messages = limit("messages", self.messages.as_ref(), count, &mut wrong);
        let age = limit("age", self.age.as_ref(), duration, &mut wrong);
        let bytes = limit("bytes", self.bytes.as_ref(), size, &mut wrong);
        if messages.is_none() && age.is_none() && bytes.is_none() && wrong.is_empty() {
            wrong.push("give messages, age or bytes; without them the entry changes nothing".into());
        }
        match topics {
            Some(topics) if wrong.is_empty() => Ok(Rule { topics, messages, age, bytes }),
            _ => Err(wrong),
        }
    }
}

/// A limit in the syntax of its flag.
fn limit<T, E: std::fmt::Display>(
    name: &str,
    written: Option<&Scalar>,
    parse: impl Fn(&str) -> Result<T, E>,
    wrong: &mut Vec<String>,
) -> Option<T> {
    let text = match written? {
        Scalar::Number(number) => number.to_string(),
        Scalar::Text(text) => text.clone(),
    };
    parse(&text).map_err(|error| wrong.push(format!("{name}: {error}"))).ok()
}
