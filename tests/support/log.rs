//! The log of a program in the background, shown when the test that started it fails.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// The file that a program writes to. Dropped by a test that fails, it is printed.
pub(crate) struct Log {
    /// Which program it is.
    name: String,
    path: PathBuf,
}

impl Log {
    pub(crate) fn new(name: &str, path: PathBuf) -> Self {
        Self { name: name.to_owned(), path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file as stdout or stderr of the program; what is there already stays.
    pub(crate) fn to_append(&self) -> Stdio {
        File::options().create(true).append(true).open(&self.path).expect("a log file").into()
    }

    pub(crate) fn text(&self) -> String {
        let bytes = fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what {} wrote ---\n{}--- end ---", self.name, self.text());
        }
    }
}
