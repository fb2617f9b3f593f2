//! Fuzz target: a configuration file and a drop-in.

use std::path::Path;

use super::Config;
use crate::fuzzing::check_error;

/// A configuration file. A text means the same each time it is read.
pub(crate) fn config(data: &[u8]) -> bool {
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
