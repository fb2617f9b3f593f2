//! Malicious local peers and servers, against the real agent: what they can cost. Bounds are in
//! bytes, counts and processor time, which hold on a busy machine as on an idle one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code)] // for the tests in tests/agent
#[path = "../agent/world.rs"]
mod world;

mod bundle;
mod bursts;
mod disconnects;
mod enrollment;
mod frames;
mod limits;
mod server_chain;
mod texts;
#[allow(dead_code)] // not all of them measure everything
mod usage;
mod users;
