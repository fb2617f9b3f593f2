//! Other people's programs with the device's identity, as docs/using-the-identity.md tells them: what is in its blocks is run
//! as it stands, by somebody who is not root, while the agent renews every few seconds. And the examples for containers.
//! Most of it needs root, to become somebody else and to mount.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code)] // what the tests in tests/agent use besides
#[path = "../agent/world.rs"]
mod world;

mod abrmd;
mod clients;
mod containers;
mod device;
mod grpc;
mod nginx;
mod page;
mod peer;
mod process;
mod sockets;
