//! The agent with the released programs of Margo, which the programs in Python in this directory
//! replay: their MIS, and their WFM client on the files that the agent publishes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;

mod client;
mod documents;
mod program;
mod world;

#[test]
fn replayed_programs_pass_their_own_tests() {
    support::python::unit_tests(program::DIRECTORY);
}
