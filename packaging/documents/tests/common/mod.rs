//! The documents of the packages, made once for each test.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

pub(crate) type Outcome = Result<(), Box<dyn Error>>;

/// A package's root with the documents in it; removed when dropped.
pub(crate) struct Documents(TempDir);

impl Documents {
    pub(crate) fn make() -> Result<Self, Box<dyn Error>> {
        let root = tempfile::tempdir()?;
        let made = Command::new(env!("CARGO_BIN_EXE_packaged-documents"))
            .args(["--epoch", "1790000000"])
            .arg(root.path())
            .current_dir(repository())
            .output()?;
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Ok(Self(root))
    }

    pub(crate) fn share(&self) -> PathBuf {
        self.0.path().join("usr/share")
    }
}

/// The top of the checkout, where the program is run.
pub(crate) fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
