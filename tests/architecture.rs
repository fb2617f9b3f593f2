//! The rooms of `src/` use each other as docs/architecture.md says, and only downwards.

#![allow(clippy::expect_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

type Uses = BTreeMap<String, BTreeSet<String>>;

/// The block of docs/architecture.md that begins with this line has a room a line, from the top to
/// the bottom: its name, a colon, and the rooms that it uses.
const BEGIN: &str = "```text rooms";

fn documented(page: &str) -> (Vec<String>, Uses) {
    let block = page.split_once(BEGIN).expect("the block of rooms").1.split_once("```").expect("its end").0;
    let lines = block.lines().filter_map(|line| line.split_once(':'));
    let rooms = lines.map(|(room, uses)| {
        (room.trim().to_owned(), uses.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>())
    });
    let rooms: Vec<_> = rooms.collect();
    (rooms.iter().map(|(room, _)| room.clone()).collect(), rooms.into_iter().collect())
}

/// What is compiled into the agent: neither tests nor fuzz targets, nor comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file");
    let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_for_tests(path: &Path) -> bool {
    let names = ["tests", "tests.rs", "fuzzing.rs", "testing.rs"];
    path.iter().any(|part| part.to_str().is_some_and(|part| names.contains(&part)))
}

/// The rooms that this code names: `crate::room`, also within braces.
fn rooms_named(code: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let is_a_path = !code[..at].ends_with(|before: char| before == '_' || before.is_alphanumeric());
        let rest = &code[at + "crate::".len()..];
        if !is_a_path {
            continue;
        }
        let firsts: Vec<&str> = match rest.strip_prefix('{') {
            Some(list) => split_at_commas(list),
            None => vec![rest],
        };
        for first in firsts {
            let name: String =
                first.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if name.starts_with(|c: char| c.is_ascii_lowercase()) {
                named.insert(name);
            }
        }
    }
    named
}

/// The elements of a list up to its closing brace, whatever braces are in it.
fn split_at_commas(list: &str) -> Vec<&str> {
    let (mut depth, mut from, mut elements) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                elements.push(&list[from..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                elements.push(&list[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    elements
}

fn add_uses(path: &Path, room: &str, uses: &mut Uses) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a directory") {
            add_uses(&entry.expect("an entry").path(), room, uses);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") && !is_for_tests(path) {
        uses.entry(room.to_owned()).or_default().extend(rooms_named(&code(path)));
    }
}

fn found(src: &Path) -> Uses {
    let mut uses = Uses::new();
    for entry in fs::read_dir(src).expect("src") {
        let path = entry.expect("an entry").path();
        let room = path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        if !["lib", "main"].contains(&room.as_str()) && !is_for_tests(&path) {
            uses.entry(room.clone()).or_default();
            add_uses(&path, &room, &mut uses);
        }
    }
    for (room, used) in &mut uses {
        used.remove(room);
    }
    uses
}

#[test]
fn rooms_use_each_other_as_documented_and_only_downwards() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/architecture.md")).expect("docs/architecture.md");
    let (order, documented) = documented(&page);
    let found = found(&root.join("src"));
    let shown = |uses: &Uses| {
        let line = |room: &String| {
            let uses: Vec<_> = uses.get(room)?.iter().map(String::as_str).collect();
            Some(format!("{room}: {}", uses.join(" ")))
        };
        let others = uses.keys().filter(|room| !order.contains(room));
        order.iter().chain(others).filter_map(line).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(shown(&documented), shown(&found), "left: as documented, right: as the code has it");
    let place = |room: &String| order.iter().position(|other| other == room);
    for (room, uses) in &found {
        for used in uses {
            assert!(place(used) > place(room), "{room} uses {used}, which is not below it");
        }
    }
}

#[test]
fn rooms_are_found_in_every_form_of_a_path() {
    let named = rooms_named(
        "use crate::a::B; use crate::{c::{D, E}, f, g::H};\n fn x() -> crate::i::J {}\n use miaf_crate::k; crate::L",
    );
    assert_eq!(named, ["a", "c", "f", "g", "i"].map(str::to_owned).into());
}

/// Programs on the device link `miaf-client`, also where there is no TPM software: in containers.
#[test]
fn miaf_client_needs_no_tpm_library() {
    let lock = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).expect("Cargo.lock");
    let lock: toml::Table = lock.parse().expect("TOML");
    let mut uses = BTreeMap::<&str, Vec<&str>>::new();
    for package in lock["package"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("a name");
        let dependencies = package.get("dependencies").and_then(toml::Value::as_array);
        let names = dependencies.into_iter().flatten().filter_map(|one| one.as_str()?.split(' ').next());
        uses.entry(name).or_default().extend(names);
    }
    let mut needed = BTreeSet::new();
    let mut found = vec!["miaf-client"];
    while let Some(name) = found.pop() {
        if needed.insert(name) {
            found.extend(&uses[name]);
        }
    }
    assert!(needed.contains("rustls") && uses.contains_key("tss-esapi"), "{needed:?}");
    let of_tpms: Vec<_> = needed.iter().filter(|name| name.contains("tss")).collect();
    assert!(of_tpms.is_empty(), "{of_tpms:?}");
}
