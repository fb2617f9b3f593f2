//! Other projects' programs with the device's identity, as in docs/using-the-identity.md: its
//! blocks are run as they stand, by a user other than root, while the agent renews every few
//! seconds. The examples for containers. And docs/identities.md and docs/est.md, followed. Most of it
//! needs root, to change the user and to mount.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code)] // for the tests in tests/agent
#[path = "../agent/world.rs"]
mod world;

mod abrmd;
mod clients;
mod containers;
mod device;
mod est;
mod grpc;
mod identities;
mod nginx;
mod page;
mod peer;
mod process;
mod site;
mod sockets;
