//! Programs in Python that other people wrote, as `scripts/python` installs them.

use std::fs;
use std::path::{Path, PathBuf};

/// A program in the virtual environment.
///
/// # Panics
/// If it is missing, or the Python that it is run by: a virtual environment is of use only where it
/// was made.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/python/bin")).join(name);
    assert!(path.exists(), "{} is missing: run scripts/python", path.display());
    let begin = fs::read(&path).expect("a program that can be read");
    if let Some(interpreter) = interpreter(&begin) {
        assert!(
            Path::new(interpreter).exists(),
            "{} is missing, which {} is run by: run scripts/python",
            interpreter,
            path.display()
        );
    }
    path
}

/// What the first line of a script names (`#!`).
fn interpreter(script: &[u8]) -> Option<&str> {
    let line = script.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    std::str::from_utf8(line).ok()?.split_whitespace().next()
}
