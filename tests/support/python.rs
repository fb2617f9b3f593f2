//! Programs in Python that other people wrote, as `scripts/setup` installs them.

use std::path::PathBuf;

/// A program in the virtual environment.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/python/bin")).join(name);
    assert!(path.exists(), "{} is missing: run scripts/setup", path.display());
    path
}
