//! The configuration file of the packages has every key of the agent, and nothing else.

#![allow(clippy::indexing_slicing, reason = "a test ends where something is missing")]

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::Path;

use miaf_agent::config::Config;

type Outcome = Result<(), Box<dyn Error>>;

fn shipped() -> std::io::Result<String> {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../config.toml"))
}

/// The file with its examples and defaults enabled: a "#" without a space after it is removed.
fn with_examples() -> std::io::Result<String> {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(example) if !example.is_empty() && !example.starts_with(' ') => example.to_owned() + "\n",
        _ => line.to_owned() + "\n",
    };
    Ok(shipped()?.lines().map(line).collect())
}

fn load(text: &str) -> Result<Config, Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("config.toml");
    fs::write(&file, text)?;
    Ok(Config::load(&file, None)?)
}

#[test]
fn as_shipped_the_device_is_unconfigured_and_the_groups_are_set() -> Outcome {
    let config = load(&shipped()?)?;
    assert!(config.mis.is_none());
    assert_eq!(config.files.group.as_deref(), Some("miaf"));
    assert_eq!(config.files.key_group.as_deref(), Some("miaf-sign"));
    let shipped: toml::Table = shipped()?.parse()?;
    assert_eq!(shipped["socket"]["group"].as_str(), Some("miaf"));
    assert_eq!(shipped["socket"]["sign_group"].as_str(), Some("miaf-sign"));
    Ok(())
}

#[test]
fn every_example_is_understood() -> Outcome {
    // Of keys that exclude each other, one.
    let sources = ["discovery_url = ", "origin = ", "bundle_url = ", "bundle_file = "];
    for (source, other) in sources.into_iter().zip(["cert_file = ", "cert = "].into_iter().cycle()) {
        let text = with_examples()?;
        let is_excluded = |line: &str| {
            let is_other_source = sources.iter().any(|key| *key != source && line.starts_with(key));
            let has_document = source == "discovery_url = " || source == "origin = ";
            is_other_source
                || line.starts_with(other)
                || line.starts_with("require = ") // it rules out the software keys of other examples
                || (line.starts_with("bundle_origins = ") && !has_document)
        };
        let kept = text.lines().filter(|line| !is_excluded(line));
        let config = load(&kept.collect::<Vec<_>>().join("\n"))?;
        assert!(config.mis.is_some() && config.bootstrap.is_some());
        assert_eq!(config.identities.len(), 6);
    }
    Ok(())
}

#[test]
fn it_has_the_keys_of_the_documentation() -> Outcome {
    let mut in_file = BTreeSet::new();
    for (name, value) in with_examples()?.parse::<toml::Table>()? {
        keys_of(&name, &value, &mut in_file);
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let mut in_page = BTreeSet::new();
    for row in fs::read_to_string(page)?.lines().skip_while(|line| !line.starts_with("| key |")).skip(2) {
        let Some(row) = row.strip_prefix("| ") else { break };
        let keys = row.split(" | ").next().unwrap_or_default();
        in_page.extend(keys.split(", ").map(|key| key.trim_matches('`').to_owned()));
    }
    assert_eq!(in_file, in_page);
    Ok(())
}

fn keys_of(name: &str, value: &toml::Value, keys: &mut BTreeSet<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                keys_of(&format!("{name}.{key}"), value, keys);
            }
        }
        toml::Value::Array(tables) if tables.iter().all(toml::Value::is_table) && !tables.is_empty() => {
            tables.iter().for_each(|table| keys_of(name, table, keys));
        }
        _ => _ = keys.insert(name.to_owned()),
    }
}
