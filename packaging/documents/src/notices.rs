//! The notices that the licences of the linked crates require: the licence of each crate, and every
//! text once.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;

use crate::linked::{Crate, Linked};

/// Beginnings of the names of licence files.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// The whole file.
pub(crate) fn text(linked: &Linked) -> Result<String, Box<dyn std::error::Error>> {
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let mut texts = Vec::new();
    let mut list = String::new();
    for one in linked.crates.iter().filter(|one| one.checksum.is_some()) {
        let mut refers = Vec::new();
        for text in texts_of(one)? {
            let number = *numbers.entry(essence(&text)).or_insert_with(|| {
                texts.push(text);
                texts.len()
            });
            refers.push(format!("[{number}]"));
        }
        refers.dedup();
        let whose = one.repository.clone().unwrap_or_else(|| one.authors.join(", "));
        let said =
            if refers.is_empty() { "its source has no text of its own".to_owned() } else { refers.join(" ") };
        writeln!(list, "{} {}: {}\n    {whose}\n    {said}", one.name, one.version, one.license)?;
    }

    let mut all = format!(
        "miaf-agent is licensed under MIT or Apache-2.0, at your choice. Linked into it are the libraries below, each\n\
         under its own licence. The numbers lead to the texts that came with them; where a library has none, the text\n\
         of a licence of the same name counts.\n\n{list}\
         Rust standard library {}: MIT OR Apache-2.0\n    https://github.com/rust-lang/rust\n    \
         Copyright (c) The Rust Project contributors\n",
        linked.rust_version
    );
    for (number, text) in (1..).zip(texts) {
        write!(all, "\n{}\n[{number}]\n\n{}\n", "-".repeat(78), text.trim_end())?;
    }
    Ok(all)
}

/// The licence texts in the source of a crate.
fn texts_of(one: &Crate) -> io::Result<Vec<String>> {
    let mut files: Vec<_> = fs::read_dir(&one.directory)?.collect::<Result<_, _>>()?;
    files.sort_by_key(fs::DirEntry::file_name);
    let named = |file: &fs::DirEntry| {
        let name = file.file_name().to_string_lossy().to_uppercase();
        NAMES.iter().any(|start| name.starts_with(start)) && file.path().is_file()
    };
    files.iter().filter(|file| named(file)).map(|file| fs::read_to_string(file.path())).collect()
}

/// A text without its line breaks and indents, and without the Apache licence's advice on its use:
/// two texts that differ in nothing else are the same.
fn essence(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.split_once("END OF TERMS AND CONDITIONS") {
        Some((terms, _)) if terms.starts_with("Apache License") => terms.to_owned(),
        _ => words,
    }
}
