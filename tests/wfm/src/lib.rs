//! The development WFM: a small, strict Workload Fleet Manager for demonstrations and end-to-end
//! tests. It onboards WFM Clients with a binding assertion and serves them their deployments, over
//! mTLS with SVIDs on both sides. Not for production.
//!
//! Comments name the rules (W, N) of this project's restatements of MIAF v0 and of released Margo.
//! The verification of clients is this crate's own code and shares nothing with the agent's, so
//! that a misreading of a rule cannot hide in both.
//!
//! ```no_run
//! use development_wfm::{Credential, Endpoint, Fault, Settings, Wfm};
//!
//! let wfm = Wfm::start(Settings::new(
//!     Credential::new("wfm.pem", "wfm.key"),
//!     "bundle.json",
//!     "https://127.0.0.1:8443",
//! ))?;
//! println!("onboarding at {}/api/v1/onboarding", wfm.url());
//! wfm.fault(Endpoint::Onboarding, Fault::LoseResponse);
//! # Ok::<(), development_wfm::Error>(())
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod assertion;
mod bundle;
mod clients;
mod faults;
mod journal;
mod policy;
mod problem;
mod server;
mod service;
mod tls;
mod wfm;

pub use clients::{Name, verify};
pub use development_server::{Error, RawResponse, Result};
pub use faults::{AssertionFault, Endpoint, Fault};
pub use journal::{Client, ClientKind, Connection, Entry};
pub use policy::{Limit, Policy};
pub use server::Observer;
pub use service::{DEPLOYMENTS_PATH, ONBOARDING_PATH};
pub use tls::Credential;
pub use wfm::{Settings, Wfm};
