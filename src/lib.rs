//! The identity agent of an industrial edge device: it obtains a SPIFFE identity from a Margo
//! Identity Service, keeps its key in the TPM, renews it for as long as the device lives, and hands
//! it to local programs.
//!
//! `docs/architecture.md` draws the rooms of this crate and the way of an SVID through them.

#![forbid(unsafe_code)]
#![allow(rustdoc::private_intra_doc_links)] // contributors read these pages, too
// Tests may break off where they please.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod agent;
pub mod cli;
pub mod config;
pub mod factory_credential;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
pub mod fuzzing;
pub mod hint;
pub mod issuer;
pub mod keys;
pub mod lifecycle;
pub mod platform;
pub mod problem;
pub mod publish;
pub(crate) mod server;
pub mod state;
pub mod transport;
pub mod uri;
pub(crate) mod x509;

pub use miaf_client as client;
pub use miaf_spiffe::{self as spiffe, time};
