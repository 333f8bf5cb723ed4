//! The blocks of code of a document.

use std::fmt;

pub struct Block {
    document: &'static str,
    line: usize,
    language: String,
    is_marked: bool,
    pub text: String,
}

/// What a block has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    Nothing,
    /// Each line is a command.
    Commands,
    /// It hears what is published.
    Listens,
    /// And when it is cut off, it comes back to what it missed, and says what is gone.
    Returns,
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
        let returns = ["while", "onclose", "EventSource", "sse-connect"];
        match &*self.language {
            _ if self.is_marked => Promise::Nothing,
            _ if returns.iter().any(|word| self.text.contains(word)) => Promise::Returns,
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

    /// A poll's answer has its gaps behind its messages; a shell shows it as it came.
    pub fn prints_whole_answers(&self) -> bool {
        self.language == "sh"
    }

    /// By what it is run.
    pub fn interpreter(&self) -> [&'static str; 2] {
        match &*self.language {
            "sh" => ["sh", "-c"],
            "python" => ["python3", "-uc"],
            other => panic!("{self}: nothing here runs {other}"),
        }
    }
}

/// What a block says, where the server is at `url`.
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
