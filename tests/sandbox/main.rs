//! The self-tests of the programs in this directory, which replay the released programs of Margo.
#![allow(clippy::expect_used, clippy::panic)]

use std::process::Command;

#[path = "../support/python.rs"]
mod python;

#[test]
fn replayed_programs_pass_their_own_tests() {
    let run = Command::new(python::program("python"))
        .args(["-B", "-W", "ignore::DeprecationWarning", "-m", "unittest", "discover", "--start-directory"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sandbox"))
        .output()
        .expect("Python");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}
