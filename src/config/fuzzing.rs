//! Fuzz target: a configuration file and a drop-in.

use std::path::Path;

use super::sources::Readable;
use super::{Config, Salvaged};
use miaf_spiffe::testing::check_error;

/// Checks a configuration file. The same text parses to the same configuration.
pub(crate) fn config(data: &[u8]) -> bool {
    let readable = Readable::of_one(data);
    let salvaged = Config::salvage_from(readable, Path::new("/etc/miaf-agent/config.toml"), None);
    assert!(salvaged.is_ok_and(
        |Salvaged { config: salvaged, .. }| salvaged.mis.is_none() && salvaged.bootstrap.is_none()
    ));
    let Ok(text) = std::str::from_utf8(data) else { return false };
    match Config::parse(text, Path::new("/etc/miaf-agent/config.toml"), None) {
        Ok(config) => {
            let again = Config::parse(text, Path::new("/etc/miaf-agent/config.toml"), None);
            assert!(again.is_ok_and(|again| again == config));
            true
        }
        Err(e) => {
            assert!(e.line.is_none_or(|line| line <= text.lines().count() + 1));
            check_error(e)
        }
    }
}
