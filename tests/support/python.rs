//! Programs in Python that other people wrote, as `scripts/python` installs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// A script of the tests, run in the virtual environment.
pub(crate) fn script(path: &str) -> Command {
    let mut command = Command::new(program("python"));
    command.arg("-B").arg(path); // no compiled files in the checkout
    command
}

/// Runs the unit tests (`test_*.py`) of a directory.
///
/// # Panics
/// If one fails.
pub(crate) fn unit_tests(directory: &str) {
    let run = Command::new(program("python"))
        .args(["-B", "-W", "ignore::DeprecationWarning", "-m", "unittest", "discover", "--start-directory"])
        .arg(directory)
        .output()
        .expect("Python");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

/// What the first line of a script names (`#!`).
fn interpreter(script: &[u8]) -> Option<&str> {
    let line = script.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    std::str::from_utf8(line).ok()?.split_whitespace().next()
}
