//! The code blocks of a document.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use crate::support::login;

pub struct Block {
    document: &'static str,
    line: usize,
    language: String,
    is_marked: bool,
    pub text: String,
}

/// The promise of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    Nothing,
    /// Each line is a command that ends.
    Commands,
    /// It prints the messages that are published.
    Listens,
    /// It also reconnects after a cut, gets what it missed, and reports a gap.
    Reconnects,
    /// It publishes one message, also if the first answer is lost, and prints the id.
    Publishes,
    /// It is a file of an example, which other tests run.
    IsFile,
}

impl Block {
    pub fn all_of(document: &'static str, text: &str) -> Vec<Self> {
        let mut blocks = Vec::new();
        let mut lines = text.lines().enumerate();
        while let Some((before, line)) = lines.next() {
            let Some(info) = line.strip_prefix("```") else { continue };
            let inside: Vec<_> =
                lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
            let (language, mark) = info.split_once(' ').unwrap_or((info, ""));
            blocks.push(Self {
                document,
                line: before + 1,
                language: language.to_owned(),
                is_marked: mark == "no_run",
                text: inside.join("\n"),
            });
        }
        blocks
    }

    pub fn promise(&self) -> Promise {
        let reconnects = ["while", "onclose", "EventSource", "sse-connect"];
        match &*self.language {
            _ if self.is_marked => Promise::Nothing,
            _ if self.is_of_an_example() => Promise::IsFile,
            "mjs" => Promise::Publishes,
            _ if reconnects.iter().any(|word| self.text.contains(word)) => Promise::Reconnects,
            "sh" => Promise::Commands,
            _ => Promise::Listens,
        }
    }

    pub fn is_of_a_page(&self) -> bool {
        matches!(&*self.language, "js" | "html")
    }

    pub fn is_markup(&self) -> bool {
        self.language == "html"
    }

    /// True if the block prints whole answers. In the answer to a poll the gaps come after the messages, and
    /// a shell prints it unchanged.
    pub fn prints_whole_answers(&self) -> bool {
        self.language == "sh"
    }

    fn is_of_an_example(&self) -> bool {
        let chat = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/chat");
        let files = [login::example(), &chat].map(|folder| fs::read_dir(folder).expect("the example"));
        let mut files = files.into_iter().flatten().map(|entry| entry.expect("an entry").path());
        files.any(|path| {
            path.is_file() && fs::read_to_string(&path).is_ok_and(|text| text.trim_end() == self.text)
        })
    }

    /// The program that a block of Rust shows: one of the examples, which `cargo test` compiles.
    pub fn example(&self) -> Option<PathBuf> {
        if self.language != "rust" {
            return None;
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        let shows_it = |path: &PathBuf| {
            let text = fs::read_to_string(path).expect("an example");
            text.split_once("\n\n").is_some_and(|(_, code)| code.trim_end() == self.text)
        };
        let files = fs::read_dir(folder).expect("examples").map(|entry| entry.expect("an entry").path());
        let mut files = files.filter(|path| path.is_file());
        let file =
            files.find(shows_it).unwrap_or_else(|| panic!("{self}: no file in examples/ is like this"));
        Some(compiled(file.file_stem().expect("it has a name").to_str().expect("UTF-8")))
    }

    /// The command that runs the block.
    pub fn interpreter(&self) -> &'static [&'static str] {
        match &*self.language {
            "sh" => &["sh", "-c"],
            "python" => &["python3", "-uc"],
            "mjs" => &["node", "--input-type=module", "-e"],
            other => panic!("{self}: nothing here runs {other}"),
        }
    }
}

/// The program of an example.
pub fn compiled(example: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_rejoin"));
    program.with_file_name("examples").join(example)
}

/// The text of a block, with `url` as the address of the server.
pub fn at(text: &str, url: &str) -> String {
    let address = url.trim_start_matches("http://");
    assert!(!text.contains("localhost:7070"), "the address is written as 127.0.0.1:7070");
    text.replace("127.0.0.1:7070", address)
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.document, self.line)
    }
}
