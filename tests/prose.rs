//! The language of the project: comments and documents in which each sentence can be read once.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A sentence that opens with one of these has its subject late or nowhere, and the reader begins again.
const BACKWARDS: [&str; 16] = [
    "What",
    "Who",
    "Whoever",
    "Whom",
    "Whose",
    "Where",
    "Of",
    "Nobody",
    "Somebody",
    "Anybody",
    "Everybody",
    "Whether",
    "None",
    "Nothing",
    "Wherever",
    "Whatever",
];

const PLACES: [&str; 6] = ["src", "docs", "web", "tests", "benches", "README.md"];

#[test]
fn sentences_open_with_their_subject() {
    let mut files = Vec::new();
    for place in PLACES {
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(place), &mut files);
    }
    assert!(files.len() > 100, "the files were not found");
    let mut sentences = 0;
    let mut backwards = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).expect("a text");
        for paragraph in paragraphs(file, &text) {
            for sentence in paragraph.split_inclusive(['.', '!', '?', ':']) {
                sentences += 1;
                let opening = sentence.split_whitespace().next().unwrap_or_default();
                if BACKWARDS.contains(&opening) && !sentence.ends_with('?') {
                    backwards.push(format!("{}: {}", file.display(), sentence.trim()));
                }
            }
        }
    }
    assert!(sentences > 3000, "only {sentences} sentences were found");
    assert!(backwards.is_empty(), "{} sentences open backwards:\n{}", backwards.len(), backwards.join("\n"));
}

fn collect(place: &Path, files: &mut Vec<PathBuf>) {
    if place.ends_with("node_modules") {
        // Other projects wrote these.
    } else if place.is_dir() {
        for entry in fs::read_dir(place).expect("a folder") {
            collect(&entry.expect("an entry").path(), files);
        }
    } else if marker(place).is_some() {
        files.push(place.to_owned());
    }
}

/// The texts with which a line of prose begins in a file of this kind.
fn marker(file: &Path) -> Option<&'static [&'static str]> {
    match file.extension()?.to_str()? {
        "rs" | "js" => Some(&["//! ", "/// ", "// "]),
        "lua" => Some(&["-- "]),
        "md" => Some(&["- ", ""]),
        _ => None,
    }
}

/// The prose of a file: comments, or the sentences of a document outside of its blocks, tables and headings.
fn paragraphs(file: &Path, text: &str) -> Vec<String> {
    let markers = marker(file).unwrap_or_default();
    let is_document = markers.contains(&"");
    let (mut paragraphs, mut is_block) = (vec![String::new()], false);
    for line in text.lines() {
        let line = line.trim_start();
        is_block ^= line.trim_start_matches(['/', '!', ' ']).starts_with("```");
        let prose = markers.iter().find_map(|marker| line.strip_prefix(marker));
        let is_other = is_document && line.starts_with(['|', '#', '`']);
        let prose = prose.filter(|_| !is_block && !is_other);
        match (prose, paragraphs.last_mut()) {
            // A line of a document is a paragraph; comments go on.
            (Some(prose), Some(last)) if !is_document && !last.is_empty() => {
                last.push(' ');
                last.push_str(prose);
            }
            (Some(prose), _) => paragraphs.push(prose.to_owned()),
            (None, _) => paragraphs.push(String::new()),
        }
    }
    paragraphs
}
