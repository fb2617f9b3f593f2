//! Salvage of a configuration that cannot be used: the locations of state and sockets, and the names
//! of the identities in their order, so that the current identities are served and the commands find
//! the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::reader::Reader;
use super::sources::{Readable, ReadableText, Sources};
use super::{Config, ConfigError, IdentityConfig, KeyConfig};
use miaf_client::api::IdentityName;

/// The keys that are salvaged, by table; those of the file itself first. None of them leads outside
/// of this device.
const KEYS: [(&str, &[&str]); 7] = [
    ("", &["state_dir"]),
    ("bundle", &["max_age", "when_stale"]),
    ("key", &["provider", "tcti", "require"]),
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

/// The keys of an `[[identity]]` that are salvaged: its name, the way to it, who may have its
/// software key, and the unit that its files concern. Without the others the way could not be read.
const IDENTITY_KEYS: [(&str, &[&str]); 4] = [
    ("", &["name", "enroll", "svid_file", "key_file", "users", "notify"]),
    ("key", &["provider"]),
    ("wfm", &["url", "id", "client_handle"]),
    ("est", &["allow_nonstandard"]),
];

/// A restriction. It may contradict other keys, so it is salvaged apart from them.
const REQUIRE: Name = ("key", "require");

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
        let mut identities = Identities::default();
        for ReadableText { mut text, state_dir_lines } in texts {
            let mut is_state_dir_read = false;
            is_whole &= leave_out_errors(&mut text) == 0;
            let (table, _errors) = DeTable::parse_recoverable(&text);
            identities.overlay(table.get_ref());
            for (name, value) in values(&KEYS, table.get_ref()) {
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
        let require = found.remove(&REQUIRE);
        let whole = document(found.iter().map(|(name, value)| (*name, value)));
        let (mut config, is_state_known) = match Self::parse(&whole, file, state_directory) {
            Ok(config) => (config, is_state_known),
            Err(_) => {
                (Self::parse("", file, state_directory)?, is_state_known && !found.contains_key(&STATE_DIR))
            }
        };
        identities.is_complete &= is_whole;
        config.identities = identities.read(&config, file);
        if let Some(require) = require {
            config.key.require =
                Self::parse(&document([(REQUIRE, &require)]), file, state_directory)?.key.require;
        }
        Ok(Salvaged { config, is_state_known })
    }
}

/// `[[identity]]`, as far as it can be read.
struct Identities {
    /// In the order of the configuration: so the default identity stays the same.
    named: Vec<(IdentityName, BTreeMap<Name, String>)>,
    /// Whether none is missing, and all grants are known.
    is_complete: bool,
}

impl Default for Identities {
    fn default() -> Self {
        Self { named: Vec::new(), is_complete: true }
    }
}

impl Identities {
    /// Overlays the entries of a later file, by name.
    fn overlay(&mut self, file: &DeTable<'_>) {
        let entries = match file.get("identity").map(|value| value.get_ref()) {
            None => return,
            Some(DeValue::Array(entries)) => entries.iter(),
            Some(_) => return self.is_complete = false,
        };
        let mut in_this_file = BTreeSet::new();
        for entry in entries {
            let DeValue::Table(entry) = entry.get_ref() else { return self.is_complete = false };
            let name = match entry.get("name").map(|name| name.get_ref()) {
                Some(DeValue::String(name)) => IdentityName::parse(name).ok(),
                _ => None,
            };
            let Some(name) = name else {
                self.is_complete = false;
                continue;
            };
            // One of the two was to have another name, and its users were to have another key.
            self.is_complete &= in_this_file.insert(name.clone());
            let at = self.named.iter().position(|(known, _)| *known == name).unwrap_or(self.named.len());
            if at == self.named.len() {
                self.named.push((name, BTreeMap::new()));
            }
            let Some((_, known)) = self.named.get_mut(at) else { continue };
            for (key, value) in values(&IDENTITY_KEYS, entry) {
                match value {
                    Some(value) => drop(known.insert(key, value)),
                    None => self.is_complete &= key != USERS,
                }
            }
        }
    }

    /// Reads them. `config` is what else was salvaged: it has the one identity of a configuration
    /// without `[[identity]]`, with the users of the default identity.
    fn read(self, config: &Config, file: &Path) -> Vec<IdentityConfig> {
        let Self { named, mut is_complete } = self;
        if named.is_empty() && is_complete {
            return config.identities.clone();
        }
        let default_users = config.identities.first().map(|first| first.users.clone()).unwrap_or_default();
        let mut identities = Vec::new();
        if !is_complete && named.iter().all(|(name, _)| *name != IdentityName::DEVICE) {
            // What is missing may have named it, and before the others.
            identities.push(IdentityConfig::device(&config.key, default_users.clone()));
        }
        for (nth, (name, values)) in named.into_iter().enumerate() {
            let read = read_identity(&values, &config.key, file);
            let (is_read, has_users) = (read.is_some(), values.contains_key(&USERS));
            let mut identity = read.unwrap_or_else(|| IdentityConfig::stored(name));
            is_complete &= is_read || !has_users;
            let is_default = nth == 0 && !has_users;
            if is_default {
                identity.users = default_users.clone();
            }
            identities.push(identity);
        }
        if !is_complete {
            identities.iter_mut().for_each(|identity| identity.users = Arc::default());
        }
        identities
    }
}

/// Reads one `[[identity]]`. `None`: its way cannot be read.
fn read_identity(values: &BTreeMap<Name, String>, key: &KeyConfig, file: &Path) -> Option<IdentityConfig> {
    let read = |values: &BTreeMap<Name, String>| read_valid_identity(values, key, file);
    // A unit of a wrong name is no reason to misread the way.
    let without_unit = || {
        let mut values = values.clone();
        values.remove(&NOTIFY).and_then(|_unit| read(&values))
    };
    read(values).or_else(without_unit)
}

fn read_valid_identity(
    values: &BTreeMap<Name, String>,
    key: &KeyConfig,
    file: &Path,
) -> Option<IdentityConfig> {
    let lines = document(values.iter().map(|(name, value)| (*name, value)));
    let sources = Sources::one(file, &format!("[[identity]]\n{lines}"));
    let raw = sources.parse().ok()?;
    let reader = Reader { sources: &sources, directory: file.parent().unwrap_or(Path::new("")) };
    reader.identity(raw.identity.0.first()?, key, Arc::default()).ok()
}

const USERS: Name = ("", "users");
const NOTIFY: Name = ("", "notify");
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
fn values<'a>(
    keys: &'a [(&'static str, &'static [&'static str])],
    whole: &'a DeTable<'_>,
) -> impl Iterator<Item = (Name, Option<String>)> + 'a {
    let keys = keys.iter().flat_map(|(table, keys)| keys.iter().map(move |key| (*table, *key)));
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
