//! What the development MIS and the development WFM share: an HTTPS listener with outages, the TLS
//! side of client certificates, a journal, a queue of faults, and errors. Which client certificates
//! are good is decided by each server with code of its own, on purpose; nothing here is the
//! agent's.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod error;
mod faults;
mod http;
mod journal;
mod listener;
mod tls;

pub use error::{Context, Error, Result};
pub use faults::Faults;
pub use http::{Cut, RawResponse, Reply, reply};
pub use journal::{Connection, Journal};
pub use listener::{Bound, Counted, Server, accept};
pub use tls::{ClientCheck, Verifier, without_resumption};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, poisoned or not: a panic of one test thread must not take the server down.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lowercase hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
