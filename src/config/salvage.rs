//! Salvage of a configuration that cannot be used: the locations of state and sockets, so that the
//! current identity is served and the commands find the agent.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::sources::{Readable, ReadableText};
use super::{Config, ConfigError};

/// The keys that are salvaged, by table; those of the file itself first. None of them leads outside
/// of this device.
const KEYS: [(&str, &[&str]); 7] = [
    ("", &["state_dir"]),
    ("bundle", &["max_age", "when_stale"]),
    ("key", &["provider", "tcti"]),
    (
        "socket",
        &[
            "path",
            "group",
            "sign_path",
            "sign_group",
            "admin_path",
            "max_connections",
            "max_connections_per_user",
        ],
    ),
    ("workload_api", &["key_users"]),
    ("metrics", &["textfile"]),
    ("log", &["level"]),
];

/// Keys that grant the use of a private key. They are not guessed from a part of the configuration,
/// for the other part may revoke them. Without them only the agent's own user has access.
const GRANTS: [Name; 2] = [("socket", "sign_group"), ("workload_api", "key_users")];

/// Salvaged part of a configuration that is refused.
#[derive(Clone, Debug)]
pub struct Salvaged {
    /// Each value that is valid by itself, otherwise its default; without `[mis]` and
    /// `[bootstrap]`.
    pub config: Config,
    /// Whether `state_dir` was read, or is not set in any readable file. Otherwise the state may be
    /// elsewhere than [`Config::state_dir`].
    pub is_state_known: bool,
}

impl Config {
    /// Salvages a configuration that [`load`](Self::load) refuses.
    ///
    /// # Errors
    /// [`ConfigError`] if even the defaults are refused; no such case is known.
    pub fn salvage(file: &Path, state_directory: Option<&Path>) -> Result<Salvaged, ConfigError> {
        Self::salvage_from(Readable::of(file), file, state_directory)
    }

    pub(super) fn salvage_from(
        readable: Readable,
        file: &Path,
        state_directory: Option<&Path>,
    ) -> Result<Salvaged, ConfigError> {
        let Readable { texts, mut is_whole } = readable;
        let mut found = BTreeMap::new();
        let mut is_state_known = true;
        for ReadableText { mut text, state_dir_lines } in texts {
            let mut is_state_dir_read = false;
            is_whole &= leave_out_errors(&mut text) == 0;
            let (table, _errors) = DeTable::parse_recoverable(&text);
            for (name, value) in values(table.get_ref()) {
                let is_good =
                    |value: &String| Self::parse(&document([(name, value)]), file, state_directory).is_ok();
                match value.filter(is_good) {
                    Some(value) => {
                        is_state_dir_read |= name == STATE_DIR;
                        found.insert(name, value);
                    }
                    // This file was to change what an earlier one grants.
                    None if GRANTS.contains(&name) => drop(found.remove(&name)),
                    None => {}
                }
            }
            match state_dir_lines {
                0 if !is_state_dir_read => {} // as the files before have it
                lines => is_state_known = lines <= 1 && is_state_dir_read,
            }
        }
        if !is_whole {
            found.retain(|name, _| !GRANTS.contains(name));
        }
        let whole = document(found.iter().map(|(name, value)| (*name, value)));
        let (config, is_state_known) = match Self::parse(&whole, file, state_directory) {
            Ok(config) => (config, is_state_known),
            Err(_) => {
                (Self::parse("", file, state_directory)?, is_state_known && !found.contains_key(&STATE_DIR))
            }
        };
        Ok(Salvaged { config, is_state_known })
    }
}

const STATE_DIR: Name = ("", "state_dir");

/// Blanks the first few lines that are no TOML, and returns their number. The parser loses what
/// follows an error otherwise.
fn leave_out_errors(text: &mut String) -> usize {
    const MOST: usize = 8;
    for count in 0..MOST {
        let Err(e) = DeTable::parse(text) else { return count };
        let at = e.span().map_or(text.len(), |span| span.start.min(text.len().saturating_sub(1)));
        let before = text.as_bytes().get(..at).unwrap_or_default();
        let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        let Some((before, line)) = text.split_at_checked(start) else { return MOST };
        let (line, after) = line.split_once('\n').unwrap_or((line, ""));
        // Lines after a malformed table header belong to no other table.
        let head = if line.trim_start().starts_with('[') {
            format!("[\"unreadable {count}\"]")
        } else {
            String::new()
        };
        *text = format!("{before}{head}\n{after}");
    }
    MOST
}

type Name = (&'static str, &'static str);

/// Values of the salvaged keys; `None` for one of a wrong type.
fn values<'a>(whole: &'a DeTable<'_>) -> impl Iterator<Item = (Name, Option<String>)> + 'a {
    let keys = KEYS.into_iter().flat_map(|(table, keys)| keys.iter().map(move |key| (table, *key)));
    keys.filter_map(move |(table, key)| {
        let within = match table {
            "" => whole,
            name => match whole.get(name)?.get_ref() {
                DeValue::Table(table) => table,
                _ => return Some(((table, key), None)),
            },
        };
        Some(((table, key), written(within.get(key)?.get_ref())))
    })
}

/// Formats a value as TOML.
fn written(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(quoted(text)),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Array(values) => {
            let all: Option<Vec<String>> = values
                .iter()
                .map(|value| match value.get_ref() {
                    DeValue::String(text) => Some(quoted(text)),
                    _ => None,
                })
                .collect();
            all.map(|all| format!("[{}]", all.join(",")))
        }
        _ => None,
    }
}

/// Formats a basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        if c.is_control() || matches!(c, '"' | '\\') {
            let _ = write!(quoted, "\\U{:08x}", u32::from(c)); // writing to a String cannot fail
        } else {
            quoted.push(c);
        }
    }
    quoted + "\""
}

fn document<'a>(values: impl IntoIterator<Item = (Name, &'a String)>) -> String {
    let line = |((table, key), value): (Name, &String)| match table {
        "" => format!("{key} = {value}\n"),
        table => format!("{table}.{key} = {value}\n"),
    };
    values.into_iter().map(line).collect()
}
