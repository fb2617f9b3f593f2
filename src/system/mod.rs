//! The machine underneath: clocks, randomness, files that survive a power cut, logging, the service manager.

pub mod clock;
pub mod files;
pub mod log;
pub mod notify;
pub mod random;
pub mod secret;
