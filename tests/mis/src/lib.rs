//! The development MIS: a small, strict Margo Identity Service that speaks MIAF v0 or the released
//! documents of Margo, for demonstrations and end-to-end tests. Not for production: its private keys lie in plain files.
//!
//! Comments name the rules (D, B, T, K, E, R, P, W) of this project's restatement of MIAF v0, and
//! those of released Margo (N).
//!
//! ```no_run
//! use development_mis::{Endpoint, Fault, Mis, Settings};
//!
//! let mis = Mis::start(Settings { directory: "mis-data".into(), ..Settings::default() })?;
//! println!("discovery at {}", mis.discovery_url());
//! mis.policy(|policy| policy.rotation_at_renewal = false);
//! mis.fault(Endpoint::Renewal, Fault::LoseAnswer);
//! # Ok::<(), development_mis::Error>(())
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod binding;
mod clients;
mod csr;
mod documents;
mod est;
mod faults;
mod issue;
mod journal;
mod keys;
mod mint;
mod mis;
mod names;
mod pem;
mod pki;
mod policy;
mod registry;
mod server;
mod service;
mod tls;
mod wire;
mod x509;

pub use binding::{ASSERTION_TYPE, LONGEST_ASSERTION};
pub use development_server::{Connection, Error, RawResponse, Result};
pub use est::{ADMIN_SOCKET, Alert, Authorization, EST_PATH, Est, Held, Issued, Token, TokenSpec, ask};
pub use faults::{DocumentFault, Endpoint, EstFault, Fault, RetryAfter, ServerFault, SvidFault};
pub use journal::{ClientKind, Entry, Violation};
pub use keys::KeyKind;
pub use mint::{ALLOW_LIST, MINTED_LIFETIME, MintKey, MintSpec, Minted, bundle_of, mint};
pub use mis::{Device, Mis, Settings};
pub use pki::{AnchorStep, FactorySpec, IssuerAlgorithm, IssuingMode};
pub use policy::{
    Admission, ClientCertificates, Documents, EstBaseUri, EstPolicy, LONGEST_LIFETIME, Limit, Policy,
    SHORTEST_LIFETIME, esi,
};
pub use server::Observer;
pub use wire::{BINDING_METHOD, BUNDLE_PATH, DISCOVERY_PATH, FACTORY_METHOD, IDENTITIES_PATH, X509_PROFILE};
