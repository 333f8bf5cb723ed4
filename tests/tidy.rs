//! Checks that the compiler does not make: which room knows which, and that the documents match the code.

#[path = "tidy/refusals.rs"]
mod refusals;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rejoin::{http::Code, log::Reason};

/// For each room the names that must not occur in it: higher rooms, and crates that are not its business.
const WALLS: [(&str, &[&str], &[&str]); 7] = [
    (
        "message",
        &["log", "broker", "http", "config", "client"],
        &["tokio", "axum", "http", "hyper", "tungstenite"],
    ),
    ("log", &["broker", "http", "config", "client"], &["axum", "http", "hyper", "tungstenite"]),
    ("broker", &["http", "config", "client"], &["axum", "http", "hyper", "tungstenite"]),
    (
        "auth",
        &["log", "broker", "http", "config", "client"],
        &["tokio", "axum", "http", "hyper", "tungstenite"],
    ),
    ("config", &["http", "broker", "client"], &["axum", "hyper", "tungstenite"]),
    ("shutdown", &["message", "log", "broker", "http", "config", "client"], &["axum", "http", "hyper"]),
    ("client", &["message", "log", "broker", "http", "config", "auth", "shutdown"], &["axum", "hyper"]),
];

/// The transports, which know nothing of each other.
const ADAPTERS: [&str; 3] = ["stream", "poll", "websocket"];

#[test]
fn every_source_file_begins_with_a_module_comment() {
    for source in sources() {
        assert!(source.text.starts_with("//! "), "{} does not open with //!", source.name());
    }
}

#[test]
fn arrows_between_rooms_point_one_way() {
    for source in sources() {
        let Some((room, above, strangers)) = WALLS.iter().find(|(room, ..)| *room == source.module[0]) else {
            continue;
        };
        for path in source.paths() {
            assert!(!above.contains(&&*path[0]), "{room} names {}: {}", path.join("::"), source.name());
        }
        for stranger in *strangers {
            assert!(!source.names_crate(stranger), "{room} names the crate {stranger}: {}", source.name());
        }
    }
}

#[test]
fn a_server_that_is_embedded_builds_only_the_crates_that_it_names() {
    let manifest: toml::Table = read("Cargo.toml").parse().expect("a manifest");
    let dependencies = manifest["dependencies"].as_table().expect("dependencies");
    let rooms = read("src/lib.rs");
    let is_of_server = |source: &Source| {
        let room = &source.module[0];
        room != "client" && (room == "lib" || rooms.contains(&format!("mod {room};")))
    };
    let server: Vec<_> = sources().into_iter().filter(is_of_server).collect();
    for (name, dependency) in dependencies {
        let is_optional = dependency.get("optional").is_some_and(|optional| optional.as_bool() == Some(true));
        let is_named = || {
            let name = name.replace('-', "_");
            server.iter().any(|source| source.code().contains(&format!("{name}::")))
        };
        assert!(
            is_optional || is_named(),
            "no room of the server names {name}: make it optional in Cargo.toml"
        );
    }
}

/// The statuses of answers that are no error.
const NO_ERRORS: [&str; 6] =
    ["OK", "CREATED", "ACCEPTED", "NO_CONTENT", "SWITCHING_PROTOCOLS", "NOT_MODIFIED"];

#[test]
fn one_file_alone_turns_errors_into_statuses_and_close_codes() {
    for source in sources() {
        if source.name().ends_with("http/problem.rs") {
            continue;
        }
        for status in source.text.split("StatusCode::").skip(1) {
            let is_of_name = |c: char| c.is_ascii_uppercase() || c == '_';
            let name = status.split(|c| !is_of_name(c)).next().unwrap_or_default();
            assert!(name.is_empty() || NO_ERRORS.contains(&name), "StatusCode::{name} in {}", source.name());
        }
        for call in ["close(", "close_slow(", "fail("] {
            let has_code = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
            assert!(
                !source.text.split(call).skip(1).any(has_code),
                "{call} with a number in {}",
                source.name()
            );
        }
    }
}

#[test]
fn a_transport_knows_nothing_of_the_others() {
    for source in sources() {
        let ["http", adapter, ..] = &*source.module.iter().map(String::as_str).collect::<Vec<_>>() else {
            continue;
        };
        if !ADAPTERS.contains(adapter) {
            continue;
        }
        for path in source.paths().iter().filter(|path| path[0] == "http") {
            let other = path.get(1).filter(|name| *name != adapter && ADAPTERS.contains(&&***name));
            assert_eq!(other, None, "{adapter} names {}: {}", path.join("::"), source.name());
        }
    }
}

#[test]
fn the_map_in_the_architecture_names_exactly_the_source_files() {
    let map: BTreeSet<String> =
        spans(&read("docs/architecture.md")).into_iter().filter(|span| span.ends_with(".rs")).collect();
    let files: BTreeSet<String> = sources().iter().map(Source::name).collect();
    let missing: Vec<_> = files.difference(&map).collect();
    assert!(missing.is_empty(), "docs/architecture.md does not name {missing:?}");
    let gone: Vec<_> = map.difference(&files).filter(|name| !root().join(name).exists()).collect();
    assert!(gone.is_empty(), "docs/architecture.md names {gone:?}, which do not exist");
}

#[test]
fn the_protocol_lists_every_code_with_its_status_and_close() {
    let protocol = read("docs/protocol.md");
    let table = section(&protocol, "\n## Errors\n");
    let mut listed = Vec::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(without_parentheses).collect();
        let [codes, statuses, closes] = &*cells else { panic!("not three cells: {row}") };
        let codes = spans(codes);
        let (statuses, closes) = (for_each_code(statuses, codes.len()), for_each_code(closes, codes.len()));
        listed.extend(
            codes.into_iter().zip(statuses).zip(closes).map(|((code, status), close)| (code, status, close)),
        );
    }
    let or_dash = |number: Option<u16>| number.map_or("-".to_owned(), |number| number.to_string());
    let known = Code::ALL.map(|code| {
        let status = code.status().map(|status| status.as_u16());
        (code.to_string(), or_dash(status), or_dash(code.close()))
    });
    assert_eq!(BTreeSet::from_iter(listed.iter().cloned()), BTreeSet::from(known));
    assert_eq!(listed.len(), Code::ALL.len(), "a code is listed twice");
}

#[test]
fn the_protocol_names_every_reason_of_a_gap() {
    let protocol = read("docs/protocol.md");
    let row = protocol.lines().find(|line| line.contains(r#""type":"gap""#)).expect("the frame has a row");
    let listed =
        row.split_once("`reason`:").expect("the row lists them").1.split(". ").next().unwrap_or_default();
    assert_eq!(spans(listed), Reason::ALL.map(Reason::as_str));
}

#[test]
fn documents_and_program_have_the_same_flags() {
    let help = |arguments: &[&str]| {
        let help = Command::new(env!("CARGO_BIN_EXE_rejoin")).args(arguments).output().expect("it runs");
        String::from_utf8(help.stdout).expect("UTF-8")
    };
    let known: BTreeSet<String> = flags(&help(&["--help"]));
    let protocol = read("docs/protocol.md");
    let (now, not_yet) = protocol.split_once("\n## Not yet\n").expect("a section for missing parts");

    let here: BTreeSet<String> =
        ["--help", "--version"].map(str::to_owned).into_iter().chain(flags(now)).collect();
    assert_eq!(here, known, "docs/protocol.md and rejoin --help name other flags");
    let planned =
        not_yet.split_once("**Flags**:").map_or("", |(_, listed)| listed.lines().next().unwrap_or_default());
    assert!(
        flags(planned).is_disjoint(&known),
        "docs/protocol.md lists existing flags under Not yet: {planned:?}"
    );

    let of_commands = [
        &["pub"][..],
        &["sub"],
        &["bench"],
        &["init"],
        &["config"],
        &["token"],
        &["token", "check"],
        &["key", "new"],
    ]
    .map(|command| flags(&help(&[command, &["--help"]].concat())));
    let known: BTreeSet<String> = known.into_iter().chain(of_commands.into_iter().flatten()).collect();
    let documents = ["guarantees", "architecture", "operations", "clients", "security"]
        .map(|name| format!("docs/{name}.md"));
    for name in ["README.md"].into_iter().chain(documents.iter().map(String::as_str)) {
        let unknown: Vec<_> = flags(&without_cargo(&read(name))).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{name} names {unknown:?}, which rejoin --help does not");
    }
}

#[test]
fn every_threat_names_existing_tests() {
    let security = read("docs/security.md");
    let mut tests = String::new();
    for folder in ["src", "tests"] {
        texts_in(&root().join(folder), &mut tests);
    }
    let rows: Vec<_> =
        section(&security, "\n## Threats\n").lines().filter(|line| line.starts_with("| **")).collect();
    assert!(rows.len() >= 12, "{rows:?}");
    for row in rows {
        let shown = row.trim_end_matches('|').rsplit('|').next().expect("a last cell");
        let names = spans(shown);
        assert!(!names.is_empty(), "nothing shows {row}");
        for name in names {
            assert!(tests.contains(&format!("fn {name}()")), "there is no test {name}: {row}");
        }
    }
}

/// Collects all Rust code under a folder in one text.
fn texts_in(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            texts_in(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path).expect("a source file"));
        }
    }
}

/// A file under `src`.
struct Source {
    /// Relative to `src`.
    path: PathBuf,
    /// The module that it holds.
    module: Vec<String>,
    text: String,
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let mut sources = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let path = path.strip_prefix(&src).expect("it lies there").to_owned();
                let module =
                    path.with_extension("").iter().map(|part| part.to_string_lossy().into()).collect();
                sources.push(Source { path, module, text });
            }
        }
    }
    assert!(sources.len() > 20, "the sources were not found");
    sources
}

impl Source {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The code, without comments.
    fn code(&self) -> String {
        let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
        self.text.lines().map(code).collect::<Vec<_>>().join("\n")
    }

    /// Every path of this crate that the code names, from the root of the crate.
    fn paths(&self) -> Vec<Vec<String>> {
        let code = self.code();
        let mut paths = Vec::new();
        for (start, _) in code.match_indices("crate::") {
            if !is_within_path(&code[..start]) {
                collect_paths(&code[start + "crate::".len()..], &[], &mut paths);
            }
        }
        for (start, _) in code.match_indices("super::") {
            if !is_within_path(&code[..start]) {
                let rest = &code[start..];
                let ups = rest.split("::").take_while(|part| *part == "super").count();
                let base = &self.module[..self.module.len().saturating_sub(ups)];
                collect_paths(&rest[ups * "super::".len()..], base, &mut paths);
            }
        }
        // Tests inside a file are one module further down, so `super` may be their own file.
        paths.retain(|path| !path.is_empty());
        paths
    }

    fn names_crate(&self, name: &str) -> bool {
        let code = self.code();
        let path = format!("{name}::");
        code.match_indices(&path).any(|(start, _)| !is_within_path(&code[..start]))
            || code.contains(&format!("use {name};"))
    }
}

/// True if the text after `before` only continues a longer path or name.
fn is_within_path(before: &str) -> bool {
    before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
}

/// Reads a path, or everything that a `use` names after a prefix, and returns its length.
fn collect_paths(text: &str, prefix: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        if rest.starts_with('{') {
            at += 1;
            while !text[at..].starts_with('}') {
                let rest = &text[at..];
                let skip = rest.len() - rest.trim_start_matches([' ', '\n', ',']).len();
                at += skip;
                if skip == 0 {
                    let len = collect_paths(rest, &path, paths);
                    let alias = text[at + len..].find([',', '}']).expect("a group ends");
                    at += len + alias;
                }
            }
            return at + 1;
        }
        let name: String =
            rest.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '*')).collect();
        at += name.len();
        path.push(name);
        if !text[at..].starts_with("::") {
            paths.push(path);
            return at;
        }
        at += 2;
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The text after `heading`, up to the next heading.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) = text.split_once(heading).unwrap_or_else(|| panic!("no {heading:?}"));
    rest.split("\n## ").next().unwrap_or_default()
}

/// The text in backticks.
fn spans(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn without_parentheses(text: &str) -> String {
    let mut depth = 0;
    let mut kept = String::new();
    for c in text.chars() {
        depth += usize::from(c == '(');
        if depth == 0 {
            kept.push(c);
        }
        depth -= usize::from(c == ')' && depth > 0);
    }
    kept
}

/// The values of a cell: one for each code, or one for all of them.
fn for_each_code(cell: &str, codes: usize) -> Vec<String> {
    let values: Vec<_> = cell.split(',').map(|value| value.trim().to_owned()).collect();
    if values.len() == 1 { vec![values[0].clone(); codes] } else { values }
}

/// The long flags that a text names.
fn flags(text: &str) -> BTreeSet<String> {
    let is_of_flag = |c: char| c.is_ascii_lowercase() || c == '-';
    text.split(|c: char| !is_of_flag(c))
        .filter(|word| word.strip_prefix("--").is_some_and(|name| name.starts_with(|c: char| c != '-')))
        .map(str::to_owned)
        .collect()
}

/// Removes the arguments of cargo from each line: they end at ` -- `, where the program's own arguments
/// begin.
fn without_cargo(text: &str) -> String {
    let own = |line: &str| match line.trim_start_matches('`').strip_prefix("cargo ") {
        Some(cargo) => cargo.split_once(" -- ").map_or("", |(_, own)| own).to_owned(),
        None => line.to_owned(),
    };
    text.lines().map(own).collect::<Vec<_>>().join("\n")
}
