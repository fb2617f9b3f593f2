//! The agent at EST servers that were written without a look at it, with other people's front ends before them;
//! and a foreign client at the development EST server. See README.md in this directory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;

mod est_ca;
mod front;
mod fronts;
mod generic;
mod odd;
mod server;
mod strongswan;
mod tls;
mod world;

#[test]
fn est_peer_passes_its_own_tests() {
    support::python::unit_tests(server::DIRECTORY);
}
