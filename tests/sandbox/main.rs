//! The agent with the released programs of Margo, which the programs in Python in this directory
//! replay: their MIS, and their WFM client on the files that the agent publishes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::process::Command;

#[path = "../support/mod.rs"]
mod support;

mod client;
mod documents;
mod program;
mod world;

#[test]
fn replayed_programs_pass_their_own_tests() {
    let run = Command::new(support::python::program("python"))
        .args(["-B", "-W", "ignore::DeprecationWarning", "-m", "unittest", "discover", "--start-directory"])
        .arg(program::DIRECTORY)
        .output()
        .expect("Python");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}
