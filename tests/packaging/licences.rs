//! `deny.toml` allows exactly the licences that the program needs, and `packaging/notices` has their texts. `cargo deny`
//! checks more, and needs the network.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

use super::{read, tool};

/// The packages that become part of the program, or that build it, and their licences.
fn licences() -> BTreeMap<String, String> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--locked", "--features", "dist", "--format-version", "1"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let texts = |value: &Value| value.as_array().expect("a list").clone();
    let id_of = |value: &Value| value.as_str().expect("an id").to_owned();

    // For each package those that it needs, except in its tests.
    let mut needs = BTreeMap::new();
    for node in texts(&metadata["resolve"]["nodes"]) {
        let is_needed = |needed: &Value| texts(&needed["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
        let ids: Vec<_> = texts(&node["deps"])
            .iter()
            .filter(|needed| is_needed(needed))
            .map(|needed| id_of(&needed["pkg"]))
            .collect();
        needs.insert(id_of(&node["id"]), ids);
    }
    let mut found = BTreeSet::new();
    let mut next = vec![id_of(&metadata["resolve"]["root"])];
    while let Some(id) = next.pop() {
        if found.insert(id.clone()) {
            next.extend(needs[&id].iter().cloned());
        }
    }
    let packages = texts(&metadata["packages"]);
    let packages = packages.iter().filter(|package| found.contains(&id_of(&package["id"])));
    packages.map(|package| (id_of(&package["name"]), id_of(&package["license"]))).collect()
}

/// True if these licences satisfy an expression of SPDX, in which `/` is an older `OR`.
fn is_satisfied(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let words = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<_> = words.split_whitespace().collect();
    any_of(&mut &words[..], allowed)
}

fn any_of(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut is = all_of(words, allowed);
    while words.first() == Some(&"OR") {
        *words = &words[1..];
        is |= all_of(words, allowed);
    }
    is
}

fn all_of(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut is = one(words, allowed);
    while words.first() == Some(&"AND") {
        *words = &words[1..];
        is &= one(words, allowed);
    }
    is
}

fn one(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let (first, rest) = words.split_first().expect("a licence");
    *words = rest;
    if *first == "(" {
        let is = any_of(words, allowed);
        *words = &words[1..];
        return is;
    }
    let mut name = (*first).to_owned();
    if words.first() == Some(&"WITH") {
        name = format!("{name} WITH {}", words[1]);
        *words = &words[2..];
    }
    allowed.contains(&name)
}

#[test]
fn deny_toml_allows_every_licence_in_use_and_no_other() {
    let deny: toml::Table = read("deny.toml").parse().expect("TOML");
    let allowed: BTreeSet<String> = deny["licenses"]["allow"].clone().try_into().expect("names");
    let licences = licences();
    assert!(licences.len() > 100, "{licences:?}");
    for (package, licence) in &licences {
        assert!(is_satisfied(licence, &allowed), "{package} has the licence {licence}");
    }
    for licence in &allowed {
        let mut fewer = allowed.clone();
        fewer.remove(licence);
        assert!(
            licences.values().any(|each| !is_satisfied(each, &fewer)),
            "{licence} is allowed and no dependency needs it"
        );
    }
}

#[test]
fn the_notices_have_a_text_of_every_library_in_the_program() {
    let Some(printed) = tool("python3", &["packaging/notices"]) else { return };
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let notices = String::from_utf8(printed.stdout).expect("UTF-8");
    let listed =
        |line: &str| line.strip_prefix("- ")?.split_once(": ").map(|(library, _)| library.to_owned());
    let libraries: Vec<_> = notices.lines().skip(2).map_while(listed).collect();
    // The headings of the texts, which end with a colon.
    let owners: BTreeSet<_> = notices
        .lines()
        .filter_map(|line| line.strip_suffix(':'))
        .flat_map(|line| line.split(", ").map(str::to_owned))
        .collect();
    assert!(libraries.len() > 100, "{libraries:?}");
    for library in &libraries {
        assert!(owners.contains(library), "{library} has no text");
    }
    let manifest: toml::Table = read("Cargo.toml").parse().expect("TOML");
    for name in manifest["dependencies"].as_table().expect("a table").keys() {
        assert!(libraries.iter().any(|library| library.starts_with(&format!("{name} "))), "{name}");
    }
    // This one lies in a package with another licence.
    assert!(notices.contains("BSD-2-Clause for jemalloc itself") && notices.contains("Jason Evans"));
}
