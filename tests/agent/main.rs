//! The real agent, a real TPM 2.0 (swtpm), the strict development MIS and real TLS between them.
//! Each test has all of them for itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;

mod admin_commands;
mod admission;
mod answers;
mod api;
mod bootstrap;
mod client;
mod commands;
mod configuration;
mod credentials;
mod dates;
mod discovery;
mod est;
mod est_command;
mod files;
mod grpc;
mod identities;
mod issuers;
mod keys;
mod lost_key;
mod main_job;
mod misconfigured;
mod moves;
mod offline;
mod proxy;
mod refusals;
mod service_manager;
mod side_by_side;
mod sockets;
mod software;
mod stale_bundle;
mod static_bundle;
mod trust;
mod wfm_binding;
mod workload;
mod world;
