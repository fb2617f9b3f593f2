//! Private keys: they sign, and their private halves stay where they are.
//!
//! The rest of the agent sees a [`Key`]. A [`Provider`] creates keys and opens them again: in the
//! TPM ([`tpm`], rule K1), or in software, sealed ([`software`], rule K2). [`Providers`] holds one
//! of each: it creates with the one that an identity asks for, and opens with the one that a key's
//! record names.
//! [`csr`] and [`rustls`] use any [`Key`]; [`factory_key`] opens the key that the device maker left
//! on disk or in the TPM (rule K5), which the agent only uses for TLS; [`Providers::import`] takes
//! over one that the operator brought in (rule N9), as a software key.
//!
//! libtss2 writes to stderr on its own and reads `TSS2_LOG` when it is loaded. Start the process
//! with `TSS2_LOG=all+none`: every failure is reported as a [`KeyError`] anyway.

mod checked_signature;
pub mod csr;
mod error;
pub mod factory_key;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod installed_key;
mod key;
mod provider;
pub mod rustls;
pub mod software;
pub mod tpm;
pub mod tss2;

pub use error::{ErrorKind, KeyError, KeyFileError, KeyForm};
pub use key::{Key, KeyAlgorithm, KeyFile, PublicKey};
pub use miaf_client::api::Protection;
pub use provider::{KeyFloor, Provider, ProviderKind, Providers, check_record};
