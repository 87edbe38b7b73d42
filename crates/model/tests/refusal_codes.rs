//! `docs/refusals.md` is where users look a refusal's code up: it has every code that the sources make, and no other.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The product's sources without their tests.
fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !matches!(&*name, "tests" | "examples" | "target") {
            sources(&path, found);
        } else if name.ends_with(".rs") && !matches!(&*name, "tests.rs" | "testing.rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push(text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned());
        }
    }
}

fn is_code(text: &str) -> bool {
    let known = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '-';
    text.starts_with(|char: char| char.is_ascii_lowercase()) && text.chars().all(known)
}

/// The codes in a source: the first argument of `Refusal::new` and of functions named `refuse`, and the first of a pair or
/// triple that an arm of a `match` gives, if a text for people follows it.
fn codes_in(text: &str, codes: &mut BTreeSet<String>) {
    for (at, _) in text.match_indices('"') {
        let before = text[..at].trim_end();
        let Some((literal, after)) = text[at + 1..].split_once('"') else { continue };
        let Some(after) = after.trim_start().strip_prefix(',') else { continue };
        let Some(before) = before.strip_suffix('(').filter(|_| is_code(literal)) else { continue };
        let before = before.trim_end();
        let is_call = before.ends_with("Refusal::new") || before.ends_with("refuse");
        let after = after.trim_start();
        let is_text = after.starts_with("format!")
            || after
                .strip_prefix('"')
                .and_then(|rest| rest.split_once('"'))
                .is_some_and(|(text, _)| text.contains(' '));
        let is_arm = (before.ends_with("=>") || before.ends_with("=> {")) && is_text;
        if is_call || is_arm {
            codes.insert(literal.to_owned());
        }
    }
}

fn codes_of_sources() -> BTreeSet<String> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        sources(&entry.unwrap().path().join("src"), &mut texts);
    }
    let mut codes = BTreeSet::new();
    texts.iter().for_each(|text| codes_in(text, &mut codes));
    codes
}

/// The words in backquotes in the first cells of the tables.
fn codes_of_document() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("docs/refusals.md")).unwrap();
    let cells = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" |"));
    let words = cells.flat_map(|(cell, _)| cell.split(", "));
    words.map(|word| word.trim_matches('`').to_owned()).collect()
}

#[test]
fn every_code_is_documented_and_every_documented_code_exists() {
    let (made, told) = (codes_of_sources(), codes_of_document());
    let untold: Vec<_> = made.difference(&told).collect();
    let unmade: Vec<_> = told.difference(&made).collect();
    assert!(untold.is_empty(), "not in docs/refusals.md: {untold:?}");
    assert!(unmade.is_empty(), "in docs/refusals.md, and made nowhere: {unmade:?}");
    assert!(made.len() > 50, "the sources are not read right: {made:?}");
}

#[test]
fn codes_are_found_where_they_are_made() {
    let mut codes = BTreeSet::new();
    let text = r#"
        Refusal::new("one-way", reason, "do this"); refuse(
            "another-way", format!("x"), y);
        let pair = match it { A => ("third-way", "a remedy"), B => { ("fourth-way", format!("x")) } };
        set("no-code", 1); let keys = ("kind-of", "driver"); [("vfio", "a host's device", "x")]
        Refusal::new(code, reason, "remedy")
    "#;
    codes_in(text, &mut codes);
    let expected = ["another-way", "fourth-way", "one-way", "third-way"].map(str::to_owned);
    assert_eq!(codes, BTreeSet::from(expected));
}
