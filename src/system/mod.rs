//! The machine underneath: clocks and timers, randomness, files that survive a power cut, folders that change, routes, logging,
//! the service manager.

pub mod access;
pub mod alarm;
pub mod clock;
pub mod dir;
pub mod files;
pub mod log;
pub mod process;
pub mod random;
pub mod route;
pub mod secret;
pub mod service;
pub mod watch;
