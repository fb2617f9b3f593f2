//! The agent under faults: its file system fails at any call, and it is killed at any call or
//! moment. In short form within `cargo test`, as a program of its own because it keeps the machine
//! busy; `RELIABILITY=long` (make reliability) has all of it. The faults need root, for strace,
//! mounts and limits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code)] // the tests in tests/agent use the rest
#[path = "../agent/world.rs"]
mod world;

mod est;
mod est_renewals;
mod faults;
mod identities;
mod kills;

fn is_long() -> bool {
    std::env::var_os("RELIABILITY").is_some_and(|form| form == "long")
}
