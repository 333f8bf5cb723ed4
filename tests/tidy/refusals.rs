//! `docs/refusals.md` has the words of every refusal of the source, each below its code, and no others.

use std::collections::{BTreeMap, BTreeSet};

use rejoin::http::Code;

use super::{read, sources, spans};

/// The words of errors that refusals quote, or that are a `bad_request` by themselves.
const QUOTED: [&str; 8] = [
    "http/coding.rs",
    "http/credentials.rs",
    "http/live/connection_id.rs",
    "http/publish/split.rs",
    "message/id.rs",
    "message/pattern.rs",
    "message/payload.rs",
    "message/topic.rs",
];
/// The headings of words that have no code.
const INSIDE: &str = "Words inside others";
const CLOSES: &str = "Close codes of the WebSocket protocol";
/// Answers of a build with a feature for measurements.
const NO_PART: &str = "http/websocket/echo.rs";
/// The calls that make a refusal, and the code of those that always have the same.
const CALLS: [(&str, Option<&str>); 4] = [
    ("Problem::new(", None),
    ("Problem::bad_request(", Some("bad_request")),
    ("Problem::undecided(", Some("unavailable")),
    ("Self::new(", None),
];

#[test]
fn the_page_of_refusals_has_the_words_of_each_one_below_its_code() {
    let (written, listed) = (written(), listed());
    assert!(written.values().flatten().count() > 100, "the words were not found: {written:?}");
    for (place, words) in &written {
        let missing: Vec<_> =
            words.iter().filter(|words| !listed.get(place).is_some_and(|all| all.contains(*words))).collect();
        assert!(missing.is_empty(), "docs/refusals.md lacks under {place}: {missing:#?}");
    }
    for (place, words) in &listed {
        let stale: Vec<_> = words
            .iter()
            .filter(|words| !written.get(place).is_some_and(|all| all.contains(*words)))
            .collect();
        assert!(stale.is_empty(), "docs/refusals.md has under {place} words that src lacks: {stale:#?}");
    }
}

#[test]
fn the_page_of_refusals_has_a_heading_for_each_code_with_its_status_and_close() {
    let page = read("docs/refusals.md");
    for code in Code::ALL {
        let status = code.status().map(|status| status.as_u16().to_string());
        let close = code.close().map(|close| format!("close {close}"));
        let numbers = status.into_iter().chain(close).collect::<Vec<_>>().join(", ");
        let heading = format!("\n## `{code}`: {numbers}\n");
        assert!(page.contains(&heading), "docs/refusals.md lacks {heading:?}");
    }
}

/// The words on the page, by code or heading.
fn listed() -> BTreeMap<String, BTreeSet<String>> {
    let (page, mut listed) = (read("docs/refusals.md"), BTreeMap::<String, BTreeSet<String>>::new());
    for section in page.split("\n## ").skip(1) {
        let heading = section.lines().next().expect("a heading");
        let place = spans(heading).first().cloned().unwrap_or_else(|| heading.to_owned());
        for row in section.lines().filter(|line| line.starts_with("| ")) {
            let words = row.trim_matches('|').split(" | ").map(spans).find(|spans| !spans.is_empty());
            let is_words = place == CLOSES || row.starts_with("| `");
            if let Some(words) = words.filter(|_| is_words && place != "Answers without words") {
                listed.entry(place.clone()).or_default().insert(words[0].clone());
            }
        }
    }
    listed
}

/// The words in the source, by code or heading.
fn written() -> BTreeMap<String, BTreeSet<String>> {
    let mut written = BTreeMap::<String, BTreeSet<String>>::new();
    let mut add =
        |place: &str, words: Vec<String>| written.entry(place.to_owned()).or_default().extend(words);
    for source in sources() {
        let name = source.name();
        let text =
            without_comments(source.text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default());
        if QUOTED.contains(&name.as_str()) {
            text.split("#[error(").skip(1).for_each(|rest| add(INSIDE, literals(until(rest, ')'))));
        }
        if name.ends_with("websocket/socket.rs") {
            let reasons = text.split("fn reason_of").nth(1).expect("the reasons of closes");
            add(CLOSES, literals(until(reasons.split_once('{').expect("a body").1, '}')));
        }
        for rest in text.split("socket.close(UNSUPPORTED_DATA,").skip(1) {
            add(CLOSES, literals(until(rest, ')')));
        }
        if !name.starts_with("http") || name == NO_PART {
            continue;
        }
        for (call, code) in CALLS {
            for (at, _) in text.match_indices(call) {
                let arguments = until(&text[at + call.len()..], ')');
                // Other types have a `new` too.
                if call == "Self::new(" && !arguments.trim_start().starts_with("Code::") {
                    continue;
                }
                let (code, words) =
                    (code.map_or_else(|| code_in(arguments), str::to_owned), words(arguments, &text[..at]));
                add(&code, words);
            }
        }
    }
    written.retain(|_, words| !words.is_empty());
    written
}

/// The words of a call: its literals, or those of the variable that it takes them from.
fn words(arguments: &str, before: &str) -> Vec<String> {
    let own = literals(arguments);
    if !own.is_empty() {
        return own;
    }
    let variable = ["detail", "mistake"].into_iter().find(|name| arguments.contains(name));
    let made = variable.and_then(|name| before.rsplit_once(&format!("let {name} =")));
    made.map(|(_, rest)| literals(until(rest, ';'))).unwrap_or_default()
}

/// The code in the arguments of a call. Only the backend of `[hook]` chooses between two.
fn code_in(arguments: &str) -> String {
    let Some((_, rest)) = arguments.split_once("Code::") else { return "unauthorized".to_owned() };
    let name: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
    let snake = name.char_indices().map(|(at, c)| match c.is_uppercase() && at > 0 {
        true => format!("_{}", c.to_ascii_lowercase()),
        false => c.to_ascii_lowercase().to_string(),
    });
    snake.collect()
}

fn without_comments(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The code up to the first `stop` that is in no string and in no bracket of its own.
fn until(text: &str, stop: char) -> &str {
    let (mut depth, mut at) = (0, 0);
    while let Some(c) = text[at..].chars().next() {
        if depth == 0 && c == stop {
            return &text[..at];
        }
        match c {
            '"' => at += literal(&text[at + 1..]).1,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        at += c.len_utf8();
    }
    text
}

/// All literals of the code, in the form of the page.
fn literals(code: &str) -> Vec<String> {
    let (mut found, mut rest) = (Vec::new(), code);
    while let Some((_, after)) = rest.split_once('"') {
        let (text, length) = literal(after);
        found.push(as_listed(&text));
        rest = &after[length..];
    }
    found.retain(|text| !text.trim().is_empty());
    found
}

/// A literal after its opening quote, and its length with the closing one.
fn literal(text: &str) -> (String, usize) {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, at + 1),
            '\\' => match chars.next() {
                // The text goes on behind the white space of the next line.
                Some((at, '\n')) => {
                    let rest = text[at + 1..].trim_start();
                    chars = text.char_indices();
                    let start = text.len() - rest.len();
                    chars.by_ref().take_while(|(at, _)| at + 1 < start).for_each(drop);
                }
                Some((_, c)) => value.push(c),
                None => {}
            },
            c => value.push(c),
        }
    }
    (value, text.len())
}

/// `{name:?}` is shown as `{name}`, and `{{` is one brace.
fn as_listed(text: &str) -> String {
    text.replace(":?}", "}").replace("{{", "{").replace("}}", "}")
}
